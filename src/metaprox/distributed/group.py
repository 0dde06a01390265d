"""Collective operations that end: where a process of the group is dead, stopped or cut off, an error names it."""

import atexit
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from metaprox.distributed.meeting import outlives_processes
from metaprox.distributed.pulse import GONE, Pulse
from metaprox.errors import InputError, PeerError

BUCKET = 2**24  # numbers that are summed in one operation
LOOK = 1.0  # seconds of waiting between two looks at who lives
PATIENCE = "METAPROX_PATIENCE"
LOST = "lost "  # what a process says that ends since another one did: which one, and what is known of it


class Group:
    """The processes of a process group of torch; ``Group.of`` gives one for each.

    rank: of this process, of ``size``; ranks: of all, among those of the default group. patience: seconds of silence
    after which a process is given up.
    """

    def __init__(self, group: Any, patience: float) -> None:
        self._group, self.patience = group, patience
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.ranks: list[int] = dist.get_process_group_ranks(group)
        store = dist.distributed_c10d._get_default_store()
        self._pulse = Pulse(store, self.ranks[self.rank], self.ranks, patience)
        backend = str(dist.get_backend_config(group))
        self._by_cpu = "gloo" in backend or "mpi" in backend
        self._by_device = "nccl" in backend

    @classmethod
    def of(cls, group: Any = None, patience: float | None = None) -> "Group | None":
        """Returns that of ``group``, or of the default one; None where there are no others.

        Raises:
            InputError: torchrun has started several processes, and they have not been joined.
        """
        if not joined():
            return None
        group = group or dist.group.WORLD
        if dist.get_world_size(group) == 1:
            return None
        if group not in _KNOWN:
            _KNOWN[group] = cls(group, patience or float(os.environ.get(PATIENCE, 60)))
        found = _KNOWN[group]
        found.patience = patience or found.patience
        return found

    def gather(self, row: Tensor) -> Tensor:
        """Of equal rows [N] of all processes, all [size, N], on the CPU."""
        place = torch.device("cpu") if self._by_cpu else torch.device("cuda", torch.cuda.current_device())
        row = row.to(place)
        rows = [torch.empty_like(row) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(rows, row, group=self._group, async_op=True))
        return torch.stack(rows).cpu()

    def gather_bytes(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Of the bytes of all processes, of ``sizes`` that all know."""
        if not max(sizes):
            return [own.new_empty(0)] * self.size
        rows = self.gather(torch.nn.functional.pad(own.cpu(), (0, max(sizes) - len(own))))
        return [row[:size] for row, size in zip(rows, sizes, strict=True)]

    def sum_with(self, vector: Tensor, tail: Tensor) -> Tensor:
        """Replaces ``vector`` [N] by the sum over processes, in buckets; returns the sum of a short ``tail`` [n]."""
        *whole, last = vector.split(BUCKET)
        last = torch.cat([last, tail.to(vector)])
        for bucket in (*whole, last):
            self._sum(bucket)
        size = len(last) - len(tail)
        vector[len(vector) - size :] = last[:size]
        return last[size:]

    def _sum(self, bucket: Tensor) -> None:
        direct = self._by_device if bucket.device.type == "cuda" else self._by_cpu
        there = bucket if direct else bucket.to("cpu" if self._by_cpu else "cuda")
        self._wait(lambda: dist.all_reduce(there, group=self._group, async_op=True))
        if not direct:
            bucket.copy_(there)

    def together(self) -> None:
        """Returns once all have come here. Raises PeerError where a process will not."""
        self.gather(torch.zeros(1, device="cpu"))

    def tell(self, what: str, *, stay: bool = False) -> None:
        """Leave a word for the others about why this process stops; ``stay``: until those that wait have read it."""
        self._pulse.tell(what)
        if stay:
            self._stay()

    def _wait(self, begin: Any) -> None:
        """For an operation of all. Raises PeerError where a process will not take part in it."""
        try:
            work = begin()
        except RuntimeError as error:
            raise self._lost(error) from error
        if not self._by_cpu:
            while not work.is_completed():
                time.sleep(1e-4)
            work.wait()
            return
        while True:
            try:
                work.wait(timedelta(seconds=LOOK))
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise self._lost(error) from error
            try:
                self._look()
            except PeerError:
                _UNFINISHED.append(work)
                raise

    def _look(self) -> None:
        try:
            silence = self._pulse.silence()
            told = self._pulse.told()
        except RuntimeError as error:
            raise self._storeless() from error
        for rank, what in told.items():
            if not what.startswith(LOST):
                raise self._failed(rank, what)
        for rank, seconds in silence.items():
            if seconds > self.patience and rank not in told:
                raise self._without(
                    rank,
                    f"{self._pulse.name(rank)} has not been heard of for {seconds:.0f} s: it is stopped, or its "
                    f"machine is gone or cut off ({PATIENCE}, or AllReduce(patience=...), is how long is waited)",
                )

    def _lost(self, error: Exception) -> PeerError:
        """A connection broke: what is said of it by a process that failed or saw another one fail, or who is gone."""
        began = time.monotonic()
        try:
            while time.monotonic() - began < 2 * GONE:
                told = self._pulse.told()
                for rank, what in told.items():
                    if not what.startswith(LOST):
                        return self._failed(rank, what)
                if told:
                    whom, _, message = next(iter(told.values())).removeprefix(LOST).partition(" ")
                    return self._without(int(whom), message)
                gone = [rank for rank, seconds in self._pulse.silence().items() if seconds > GONE]
                if gone:
                    name = self._pulse.name(gone[0])
                    return self._without(
                        gone[0], f"{name} ended without a word: killed, or by an error of which its own output tells"
                    )
                time.sleep(GONE / 10)
        except RuntimeError:
            return self._storeless()
        return PeerError(f"the processes have lost each other: {str(error).splitlines()[0]}")

    def _failed(self, rank: int, what: str) -> PeerError:
        return PeerError(f"{self._pulse.name(rank)} failed: {what}", rank=rank)

    def _without(self, rank: int, message: str) -> PeerError:
        """The error where that one is lost. Rank 0, which may hold the store, stays until the others have seen it."""
        self._pulse.tell(f"{LOST}{rank} {message}")
        self._stay()
        return PeerError(message, rank=rank)

    def _stay(self) -> None:
        """Where the store ends with this process, which it does not where torchrun holds it, others may still read."""
        if self.ranks[self.rank] == 0 and not outlives_processes():
            time.sleep(3 * LOOK)

    def _storeless(self) -> PeerError:
        return PeerError(
            "the process that holds the store of the process group, rank 0 or torchrun, is gone or stopped"
        )


_KNOWN: WeakKeyDictionary[Any, Group] = WeakKeyDictionary()
_UNFINISHED: list[Any] = []  # operations in which a process will not take part


@atexit.register
def _leave() -> None:
    """At the end of this process, which torch would keep until an operation that another one is missing in times out.

    What was registered after the import of metaprox is done by then; the status is 1.
    """
    if any(not work.is_completed() for work in _UNFINISHED):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(1)


def joined() -> bool:
    """Whether there is a process group. Raises InputError where torchrun has started several and there is none."""
    if dist.is_available() and dist.is_initialized():
        return True
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        raise InputError(
            f"this is one of {os.environ['WORLD_SIZE']} processes, which do not know each other yet: call "
            "torch.distributed.init_process_group() first, or go on in: with metaprox.distributed.processes()"
        )
    return False
