"""Euclidean norms whose squares neither overflow nor vanish: plain ones in float32 are inf from 2e19, 0 below 1e-23.

Those of vectors in shards are over the numbers of all ranks, and the same on all of them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from metaprox.vectors.devices import launches
from metaprox.vectors.rest import Vector, whole
from metaprox.vectors.shards import current, gathered, groups_of, hypot_of, is_sharded, part_here, total

# Numbers that are converted at a time, so that no second vector of P numbers is ever there.
BLOCK, BLOCK_WHERE_LAUNCHED = 2**18, 2**20
LONG = 2**16  # numbers from which on a norm by rows takes less time
ROW = 2**8  # numbers whose squares are summed in float32: with more of them that are alike, rounding shows
DOUBLE = ("cpu", "cuda")  # which sum squares in float64, where those of float32 numbers neither overflow nor vanish


def norm(vectors: Vector) -> Tensor:
    """|| . || over the last dimension, which stays: [..., P] -> [..., 1]. NaN or inf where an entry is."""
    shards = current()
    if shards is None:
        return norm_here(vectors)
    if vectors.shape[-1]:
        own = norm_here(vectors)
    else:
        own = torch.zeros(*vectors.shape[:-1], 1, dtype=vectors.dtype, device=vectors.device)
    return norm_here(torch.cat(shards.gathered(own), -1))


def norm_here(vectors: Vector) -> Tensor:
    """The same of the numbers that this rank has."""
    if vectors.dtype == torch.float32 and vectors.device.type in DOUBLE:
        if isinstance(vectors, Tensor) and _is_long(vectors):
            return _by_rows(vectors).to(torch.float32)
        return _by_parts(vectors).to(torch.float32)
    most = _largest(vectors)
    scale = torch.where((most > 0) & (most < torch.inf), most, 1.0)
    return scale * _joined([_plain(part / scale) for part in _parts(vectors)])


def largest(vectors: Tensor) -> Tensor:
    """The largest absolute value over the last dimension, which stays and is not empty; NaN where an entry is."""
    return torch.maximum(vectors.amax(-1, keepdim=True), -vectors.amin(-1, keepdim=True))


def mark(vectors: Tensor) -> Tensor:
    """A number [..., 1] where all are over the last dimension [..., P], and else none: cheaper than their norm."""
    total = vectors.sum(-1, keepdim=True)
    if total.device.type == "cpu" and bool(total.isfinite().all()):  # an accelerator is not waited for
        return total
    return largest(vectors)  # a sum may overflow


def inner(vectors: Vector, directions: Vector, lengths: Tensor) -> Tensor:
    """Returns <vectors, directions> / lengths [T] of [T, 1, P], with the directions' ``lengths``; NaN where that is 0.

    Divided before it is summed, so that it is a number wherever the vectors' own norms are.
    """
    return total(inner_here(vectors, directions, lengths))


def inner_here(vectors: Vector, directions: Vector, lengths: Tensor) -> Tensor:
    """The same of the numbers that this rank has."""
    scale = lengths.reshape(-1, 1, 1)
    if torch.compiler.is_dynamo_compiling() and vectors.dtype == torch.float32 and vectors.device.type in DOUBLE:
        products = whole(directions).double() * whole(vectors).double()  # which a graph makes no vector of
        return (products.sum((1, 2)) / lengths).to(torch.float32)
    if vectors.numel() <= _block_on(vectors.device):
        return ((whole(directions) / scale) * whole(vectors)).sum((1, 2))
    pieces = zip(_blocks(directions), _blocks(vectors), strict=True)
    return torch.stack([((one / scale) * other).sum((1, 2)) for one, other in pieces]).sum(0)


def joint_norm(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Returns (s, n) with s n = || . || of all tensors together, which may lie on several devices, or in shards.

    s is 1 where the plain norm will do, and else the largest absolute value, or what is not finite.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return 1.0, 0.0
    plain = _hypot(filled, lambda parts: _numbers(torch._foreach_norm(parts)))
    if max(_least_safe(tensor.dtype) for tensor in filled) < plain < math.inf:
        return 1.0, plain
    most = largest_of(filled)
    scale = math.nan if any(map(math.isnan, most)) else max(most)
    if scale == 0 or not math.isfinite(scale):
        return 1.0, scale
    return scale, _hypot(filled, lambda parts: [float(norm_here((part / scale).flatten())) for part in parts])


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all are known to be finite, by one look from the host; False too where it takes another one to say so."""
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    if len({tensor.device for tensor in filled}) != 1 or any(map(is_sharded, filled)):
        return not filled
    most = torch._foreach_norm(filled, torch.inf)
    alike = most if len({one.dtype for one in most}) == 1 else [one.double() for one in most]
    return math.isfinite(float(torch.stack(list(alike)).sum()))


def largest_of(tensors: Sequence[Tensor]) -> list[float]:
    """The largest absolute value of each of ``tensors``, of all ranks if it is in shards; NaN where an entry is."""
    values = torch.zeros(len(tensors), dtype=torch.float64, device="cpu")
    for groups, places in _by_groups(tensors).items():
        parts = [part_here(tensors[place]) for place in places]
        filled = [index for index, part in enumerate(parts) if part.numel()]
        own = torch.zeros(len(parts), dtype=torch.float64, device=parts[0].device)
        if filled:
            own[filled] = torch.cat([largest(parts[index].flatten()).to(own) for index in filled])
        values[list(places)] = torch.stack(gathered(own, groups)).amax(0).cpu()
    return values.tolist()


def _hypot(tensors: Sequence[Tensor], lengths: Callable[[list[Tensor]], list[float]]) -> float:
    """|| . || of all together, by the ``lengths`` of their parts here."""
    found = []
    for groups, places in _by_groups(tensors).items():
        parts = [part for place in places if (part := part_here(tensors[place])).numel()]
        found.append(hypot_of(lengths(parts) if parts else [], groups, part_here(tensors[places[0]]).device))
    return math.hypot(*found)


def _by_groups(tensors: Sequence[Tensor]) -> dict[tuple[Any, ...], list[int]]:
    """The positions of those whose numbers are spread over the same ranks, in the same order on all of these."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault(groups_of(tensor), []).append(place)
    return found


def _numbers(values: Sequence[Tensor]) -> list[float]:
    numbers: list[float] = torch.stack([value.to(values[0].device, torch.float64) for value in values]).tolist()
    return numbers


def _least_safe(dtype: torch.dtype) -> float:
    """Where squares that vanish change nothing any more."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny) / info.eps


def _plain(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def _in_double(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64)


def _is_long(vectors: Tensor) -> bool:
    """Returns whether a norm by rows takes less time, and can be had: an accelerator sums in float64 as it reads.

    However many vectors there are, so that no task's norm depends on the others.
    """
    if vectors.shape[-1] < LONG or vectors.device.type != "cpu":
        return False
    return not (torch.compiler.is_dynamo_compiling() or _is_followed(vectors))


def _is_followed(vectors: Tensor) -> bool:
    """Whether they are differentiated, or under vmap, where no number is known; graphs differentiate no norm."""
    if torch.compiler.is_dynamo_compiling():
        return False
    differentiated = vectors.requires_grad and torch.is_grad_enabled()
    return differentiated or torch._C._functorch.is_functorch_wrapped_tensor(vectors)


def _by_parts(vectors: Vector) -> Tensor:
    """In float64."""
    return _joined([_in_double(part) for part in _parts(vectors)])


def _by_rows(vectors: Tensor) -> Tensor:
    """The same from norms of rows in float32, in a fifth of the time, unless their squares overflow or vanish."""
    size = vectors.shape[-1]
    rows, rest = vectors[..., : size // ROW * ROW].unflatten(-1, (-1, ROW)), vectors[..., size // ROW * ROW :]
    lengths = _plain(rows).squeeze(-1)
    found = _in_double(torch.cat([lengths, _plain(rest)], -1) if rest.shape[-1] else lengths)
    fits = (found > _least_safe(torch.float32) * math.sqrt(size)) & found.isfinite()
    return found if bool(fits.all()) else torch.where(fits, found, _by_parts(vectors))


def _largest(vectors: Vector) -> Tensor:
    """``largest``, block by block of what is away."""
    if isinstance(vectors, Tensor):
        return largest(vectors)
    return torch.cat([largest(part) for part in _blocks(vectors)], -1).amax(-1, keepdim=True)


def _joined(lengths: Sequence[Tensor]) -> Tensor:
    """Of a vector, from those of its parts."""
    return lengths[0] if len(lengths) == 1 else _plain(torch.cat(list(lengths), -1))


def _parts(vectors: Vector) -> Iterable[Tensor]:
    """``_blocks``, but all at once where it is short, or differentiated: parts that are 0 have no second derivative."""
    if isinstance(vectors, Tensor) and (vectors.numel() <= _block_on(vectors.device) or _is_followed(vectors)):
        return [vectors]
    return _blocks(vectors)


def _blocks(vectors: Vector) -> Iterable[Tensor]:
    size = _block_on(vectors.device)
    return vectors.split(max(1, size * vectors.shape[-1] // max(1, vectors.numel())), -1)


def _block_on(device: torch.device) -> int:
    return BLOCK_WHERE_LAUNCHED if launches(device) else BLOCK
