"""Vectors whose numbers the ranks of a mesh share: each holds a part, and what is of all numbers is of all ranks."""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.errors import InputError

SAMPLE = 2**16  # numbers of a tensor by which it is compared with those of other ranks
ALIKE = 1e-6  # relative
ONE_DIMENSION = (
    "shard over a mesh of one dimension, fully_shard(model, mesh=mesh['shards']) of "
    "mesh = init_device_mesh(device, (groups, ranks), mesh_dim_names=('tasks', 'shards')), and let the estimator sum "
    "over tasks: reduce=mp.distributed.AllReduce(group=mesh.get_group('tasks'))"
)


_PLAIN = (Tensor, torch.nn.Parameter)


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor of torch."""
    kind = type(value)
    return kind not in _PLAIN and any(base.__name__ == "DTensor" for base in kind.__mro__)


def refuse_shards(params: Iterable[object], what: str) -> None:
    """Raise InputError where one of ``params`` is a DTensor."""
    if any(map(is_sharded, params)):
        raise InputError(
            f"{what} does not take a model in shards (fully_shard), of which each rank has a part: FOBMAML, FOMAML, "
            "Reptile and mp.evaluate do; or give the model before it is sharded"
        )


def part_here(tensor: Tensor) -> Tensor:
    """The numbers of ``tensor`` that this rank holds, itself where that is all; of a DTensor it shares the memory."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor.detach()
    with torch.no_grad():
        part: Tensor = sharded.to_local()
    return part


def groups_of(tensor: Tensor) -> tuple[Any, ...]:
    """The process groups over which the numbers of ``tensor`` are spread; none where this rank has them all."""
    if not is_sharded(tensor):
        return ()
    sharded: Any = tensor
    for placement in sharded.placements:
        if placement.is_partial():
            raise InputError(f"a tensor of placements {sharded.placements} is a part of a sum: redistribute it first")
    spread = [dim for dim, placement in enumerate(sharded.placements) if placement.is_shard()]
    return tuple(sharded.device_mesh.get_group(dim) for dim in spread)


def gathered(numbers: Tensor, groups: Iterable[Any]) -> list[Tensor]:
    """Those of all ranks, in their order; of several groups, which cross each other, of all that they lead to."""
    rows = [numbers.contiguous()]
    for group in groups:
        whole = torch.stack(rows)
        others = [torch.empty_like(whole) for _ in range(dist.get_world_size(group))]
        dist.all_gather(others, whole, group=group)
        rows = [row for other in others for row in other]
    return rows


@dataclass(frozen=True)
class Shards:
    """Where parameters in shards (``fully_shard``) lie: on a mesh of one dimension, each along one of its own.

    A vector of P numbers is then a vector of those that this rank holds, on each of ``size`` ranks.
    """

    mesh: Any
    kinds: Mapping[str, tuple[torch.Size, tuple[int, ...], int]] = field(
        repr=False
    )  # shape, strides, sharded dimension

    @classmethod
    def of(cls, params: Mapping[str, Tensor]) -> "Shards | None":
        """Returns it for ``params``; None where none of them is a DTensor.

        Raises:
            InputError: some are and others are not; or not all are on one mesh of one dimension, in shards.
        """
        sharded: dict[str, Any] = {name: value for name, value in params.items() if is_sharded(value)}
        if not sharded:
            return None
        for name in params:
            if name not in sharded:
                raise InputError(
                    f"parameter {name!r} is whole and {next(iter(sharded))!r} is in shards: call fully_shard on the "
                    "model itself after its layers, without ignored_params; where a forward pass has left it whole, "
                    "model.reshard() first"
                )
        mesh = next(iter(sharded.values())).device_mesh
        for name, value in sharded.items():
            if value.device_mesh != mesh or value.device_mesh.ndim != 1:
                raise InputError(f"parameter {name!r} lies on {value.device_mesh}, of several: {ONE_DIMENSION}")
            if not value.placements[0].is_shard():
                raise InputError(f"parameter {name!r} has placements {value.placements}, not a shard: {ONE_DIMENSION}")
        kinds = {name: (value.shape, value.stride(), value.placements[0].dim) for name, value in sharded.items()}
        return cls(mesh, kinds)

    @property
    def group(self) -> Any:
        """The process group of the mesh."""
        return self.mesh.get_group()

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return int(self.mesh.size())

    @property
    def ranks(self) -> list[int]:
        """Which, of all processes."""
        return dist.get_process_group_ranks(self.group)

    def gathered(self, numbers: Tensor) -> list[Tensor]:
        """Those of all ranks, in their order."""
        return gathered(numbers, (self.group,))

    def named(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors [..., *part], of which this rank holds these, as DTensors [..., *shape] on the mesh."""
        from torch.distributed.tensor import DTensor, Shard

        found: dict[str, Tensor] = {}
        for name, part in parts.items():
            shape, strides, dim = self.kinds[name]
            lead = part.shape[: part.dim() - len(shape)]
            if lead:
                shape = torch.Size((*lead, *shape))
                strides = torch.empty(shape, device="meta").stride()
            placed = [Shard(dim + len(lead))]
            found[name] = DTensor.from_local(part, self.mesh, placed, run_check=False, shape=shape, stride=strides)
        return found

    def same(self, seed: int, given: Any) -> int:
        """Returns the seed of the first rank. ``given``: data, which are to be the same on all ranks.

        Compares up to 65,536 numbers of each tensor, and what numbers and texts there are.

        Raises:
            InputError: on all ranks, where those of one are other ones.
        """
        own = torch.tensor(_digest(given), dtype=torch.float64, device="cpu").view(torch.int64)
        row = torch.cat([torch.tensor([seed], dtype=torch.int64, device="cpu"), own])
        rows = [found.cpu() for found in self.gathered(row.to(self.mesh.device_type))]
        first = rows[0][1:].view(torch.float64)
        for rank, other in enumerate(rows):
            if not torch.allclose(other[1:].view(torch.float64), first, rtol=ALIKE, atol=0):
                raise InputError(
                    f"rank {self.ranks[rank]} was given other tasks, or weights of tasks, than rank {self.ranks[0]}: "
                    "the ranks that share a model's shards work on the same tasks together. To give groups of ranks "
                    f"tasks of their own, {ONE_DIMENSION}"
                )
        return int(rows[0][0])


def _digest(given: Any) -> list[float]:
    """Three numbers that other data hardly have."""
    leaves, total = pytree.tree_leaves(given), [0.0, 0.0]
    for place, leaf in enumerate(leaves, start=1):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested:
            sample = leaf.detach().flatten()[:: max(1, leaf.numel() // SAMPLE)]
            sample = (sample.abs() if sample.is_complex() else sample).double().nan_to_num().cpu()
            mixed = torch.cos(torch.arange(len(sample), dtype=torch.float64, device="cpu"))
            numbers = (float(sample @ mixed), float(sample.norm()) + leaf.numel())
        elif isinstance(leaf, str):
            numbers = (zlib.crc32(leaf.encode(errors="replace")), len(leaf))
        else:
            numbers = (float(leaf) if isinstance(leaf, (int, float)) and math.isfinite(leaf) else 0.0, 1.0)
        total = [one + math.cos(place) * other for one, other in zip(total, numbers, strict=True)]
    return [*total, float(len(leaves))]


_OVER: ContextVar[Shards | None] = ContextVar("shards", default=None)


def current() -> Shards | None:
    """Where the vectors at hand lie; None where each is whole, as all are in a compiled graph."""
    return None if torch.compiler.is_dynamo_compiling() else _OVER.get()


@contextmanager
def over(shards: Shards | None) -> Iterator[None]:
    """Within, norms and inner products of vectors are over those of all ranks."""
    token = _OVER.set(shards)
    try:
        yield
    finally:
        _OVER.reset(token)


def total(numbers: Tensor) -> Tensor:
    """The sum over ranks, the same on all of them, of what each has of a sum over the numbers of vectors."""
    shards = current()
    return numbers if shards is None else torch.stack(shards.gathered(numbers)).sum(0)


def everywhere(flags: Tensor) -> Tensor:
    """Whether they hold on all ranks."""
    shards = current()
    if shards is None:
        return flags
    return torch.stack(shards.gathered(flags.to(torch.uint8))).bool().all(0)


def hypot_of(lengths: Sequence[float], groups: tuple[Any, ...], device: torch.device) -> float:
    """The length of what ranks have parts of these lengths of; that of the parts where there are no ``groups``."""
    own = math.hypot(*lengths)
    if not groups:
        return own
    rows = gathered(torch.tensor([own], dtype=torch.float64, device=device), groups)
    return math.hypot(*(float(row) for row in rows))
