"""The sum over the tasks of several processes, as a ``reduce`` of the estimators."""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from metaprox import checks
from metaprox.call import Place
from metaprox.distributed.exchange import Exchange
from metaprox.distributed.group import Group
from metaprox.distributed.packing import joined_results, packed_results
from metaprox.errors import InputError
from metaprox.estimators.reduce import Reduce, Start, Total
from metaprox.vectors.parameters import Parameters
from metaprox.vectors.shards import ONE_DIMENSION

ALIKE = 1e-4  # relative: how far parameters may be apart that were moved by equal gradients on unequal machines


@dataclass(frozen=True)
class AllReduce(Reduce):
    """The mean over the tasks of all processes, each of which gives its own: in all of them the same meta-gradient.

    Each process calls the estimator at the same parameters, with its part of the tasks, which may be of any size, also
    empty: ``mp.distributed.shard`` cuts a batch. The result is that of one process with all tasks, in the order of the
    ranks, to rounding: the mean, query losses, metrics and ``info`` are over all tasks, and the noise in a loss is that
    of the task's position among all. ``adapted`` and ``per_task`` are of the process's own tasks.

    Where a process raises in the call, all do: NonFiniteError as it is, naming the position of the task among all,
    PeerError for what is wrong elsewhere. Where one is killed, the others raise PeerError within seconds, and where one
    is stopped or cut off after ``patience``; it names the rank. Without a process group, or in one of a single process,
    it changes nothing.

    Communicates, in a call: 64 bytes of each process before the losses are evaluated; afterwards one all-reduce of P
    numbers, in buckets of 64 MB in float32, with who failed; and some 200 bytes a task of what is known of it.

    Args:
        group: a process group of torch; None: the default one.
        patience: seconds without a sign of life after which a process is given up; None: METAPROX_PATIENCE of the
            environment, or 60. A process that computes for longer gives signs of life.
    """

    group: Any = None
    patience: float | None = None

    takes_no_tasks = True
    takes_shards = True

    def __post_init__(self) -> None:
        checks.settle(self, patience=checks.optional(checks.positive))

    def call(self) -> AbstractContextManager[Reduce]:
        """Around one call: errors in it are told to the other processes."""
        return _one_call(self)


@contextmanager
def _one_call(setting: AllReduce) -> Iterator[Reduce]:
    group = Group.of(setting.group, setting.patience)
    if group is None:
        yield Reduce()
        return
    exchange = Exchange(group)
    with exchange.guarded():
        yield _OneCall(exchange)


class _OneCall(Reduce):
    """``AllReduce`` in a call."""

    takes_no_tasks = True
    takes_shards = True

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def start(self, start: Start) -> Start:
        _check_group(self._exchange.group, start.parameters)
        digest = _digest(start.parameters)
        rows = self._exchange.begin([start.count, start.place.seed, _structure(start.parameters), *map(_bits, digest)])
        self._exchange.vector = start.parameters.zeros
        ranks = range(len(rows))
        if odd := next((rank for rank in ranks if rows[rank][2] != rows[0][2]), None):
            raise self._refused(f"the parameters of rank {odd} have other names, shapes or dtypes than those of rank 0")
        if odd := next((rank for rank in ranks if _apart(rows[rank][3:6], rows[0][3:6])), None):
            raise self._refused(
                f"the parameters of rank {odd} have other values than those of rank 0: seed all processes alike before "
                "the model is made, or broadcast its parameters (torch.distributed.broadcast), and step all alike"
            )
        before = sum(row[0] for row in rows[: self._exchange.group.rank])
        return replace(start, place=Place(rows[0][1], before + start.place.first))

    def of_sum(self, total: Total) -> Total:
        own = torch.empty(0, dtype=torch.uint8, device="cpu") if total.tasks is None else packed_results(total.tasks)
        parts = [part for part in self._exchange.end(own, total.grad) if len(part)]
        if not parts:
            return total
        tasks = joined_results(parts, total.grad.device)
        kept = tasks.weights[tasks.kept]
        return replace(total, weight=float(kept.sum()), count=len(kept), tasks=tasks)

    def _refused(self, why: str) -> InputError:
        """All processes see it, so that none needs to be told."""
        self._exchange.settled()
        return InputError(why)


def _check_group(group: Group, parameters: Parameters) -> None:
    """Raise InputError where the sum would be over ranks that hold other parts of a vector."""
    shards = parameters.shards
    if shards is not None and len(set(shards.ranks) & set(group.ranks)) > 1:
        raise InputError(
            f"AllReduce is over ranks {group.ranks}, of which several share the model's shards, {shards.ranks}, and "
            "hold parts of one gradient: without other ranks leave reduce out; for groups of ranks with tasks of their "
            f"own, {ONE_DIMENSION}"
        )


def _structure(parameters: Parameters) -> int:
    """A number that parameters of other names, shapes or dtypes do not have."""
    layout = parameters.structure
    told = repr((layout.names, layout.adapted, layout.shared))
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=7).digest())


def _digest(parameters: Parameters) -> list[float]:
    """Two numbers that other values hardly have, and their scale: of the norms of x's parts and of first entries."""
    pieces = [piece for piece in (*parameters.pieces, parameters.w) if len(piece)]
    if not pieces:
        return [0.0] * 3
    norms = torch.stack(torch._foreach_norm(pieces)).double()
    firsts = torch.stack([piece[0] for piece in pieces]).double()
    mixed = torch.cos(torch.arange(len(pieces), dtype=torch.float64, device=norms.device))
    return torch.stack([norms @ mixed, firsts @ mixed, norms.sum()]).tolist()


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack(">d", value), signed=True)


def _apart(one: list[int], other: list[int]) -> bool:
    a, b, scale = (struct.unpack(">d", bits.to_bytes(8, signed=True))[0] for bits in one)
    c, d, _ = (struct.unpack(">d", bits.to_bytes(8, signed=True))[0] for bits in other)
    return not max(abs(a - c), abs(b - d)) <= ALIKE * scale
