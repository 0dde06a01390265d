"""Euclidean norms whose squares neither overflow nor vanish: plain ones in float32 are inf from 2e19, 0 below 1e-23."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 2**18  # numbers that are scaled at a time, so that no second vector of P numbers is ever there
DOUBLE = ("cpu", "cuda")  # which sum squares in float64, where those of float32 numbers neither overflow nor vanish


def norm(vectors: Tensor) -> Tensor:
    """|| . || over the last dimension, which stays: [..., P] -> [..., 1]. NaN or inf where an entry is."""
    if vectors.dtype == torch.float32 and vectors.device.type in DOUBLE and vectors.numel() <= BLOCK:
        return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64).to(torch.float32)
    largest = torch.linalg.vector_norm(vectors, torch.inf, dim=-1, keepdim=True)
    scale = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)
    width = max(1, BLOCK * vectors.shape[-1] // max(1, vectors.numel()))
    parts = [_plain(part / scale) for part in vectors.split(width, -1)]
    return scale * (parts[0] if len(parts) == 1 else _plain(torch.cat(parts, -1)))


def inner(vectors: Tensor, directions: Tensor, lengths: Tensor) -> Tensor:
    """Returns <vectors, directions> / lengths [T] of [T, 1, P], with the directions' ``lengths``; NaN where that is 0.

    Divided before it is summed, so that it is a number wherever the vectors' own norms are.
    """
    scale = lengths.reshape(-1, 1, 1)
    if vectors.numel() <= BLOCK:
        return ((directions / scale) * vectors).sum((1, 2))
    width = max(1, BLOCK * vectors.shape[-1] // vectors.numel())
    pieces = zip(directions.split(width, -1), vectors.split(width, -1), strict=True)
    return torch.stack([((one / scale) * other).sum((1, 2)) for one, other in pieces]).sum(0)


def joint_norm(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Returns (s, n) with s n = || . || of all tensors together, which may lie on several devices.

    s is 1 where the plain norm will do, and else the largest absolute value, or what is not finite.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return 1.0, 0.0
    plain = math.hypot(*_numbers(torch._foreach_norm(filled)))
    if max(_least_safe(tensor.dtype) for tensor in filled) < plain < math.inf:
        return 1.0, plain
    largest = _numbers(torch._foreach_norm(filled, torch.inf))
    scale = math.nan if any(map(math.isnan, largest)) else max(largest)
    if scale == 0 or not math.isfinite(scale):
        return 1.0, scale
    return scale, math.hypot(*(float(norm((tensor / scale).flatten())) for tensor in filled))


def _numbers(values: Sequence[Tensor]) -> list[float]:
    numbers: list[float] = torch.stack([value.to(values[0].device, torch.float64) for value in values]).tolist()
    return numbers


def _least_safe(dtype: torch.dtype) -> float:
    """Where squares that vanish change nothing any more."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny) / info.eps


def _plain(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
