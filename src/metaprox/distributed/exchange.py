"""A computation of several processes that ends in all of them, also where one of them fails."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from metaprox.distributed.group import Group
from metaprox.distributed.packing import Failure
from metaprox.errors import PeerError

UNIT = 64  # bytes, in which the sizes of messages are counted: a float32 counts so up to a gigabyte


class Exchange:
    """One computation, in which each process calls ``begin`` once and then ``end`` once, or fails before either.

    A process that fails takes part in what the others wait for, and tells them why instead: all of them raise.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.vector: Callable[[], Tensor] | None = None  # what a process that fails adds to the sum of the others
        self._expected = "begin"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around the computation: its errors become those of all processes."""
        try:
            yield
        except PeerError:  # of which the others know, or whoever it names takes part in nothing more
            raise
        except Exception as error:
            self._fail(Failure.of(error))
            raise

    def settled(self) -> None:
        """Whatever is raised from here on, all processes raise."""
        self._expected = "nothing"

    def begin(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns the numbers of all processes. Raises what another one raised before this."""
        rows = self._gather([0, *numbers])
        self._expected = "end"
        if any(row[0] for row in rows):
            self._expected = "nothing"
            self._raise([row[0] for row in rows], torch.empty(0, dtype=torch.uint8, device="cpu"))
        return [row[1:] for row in rows]

    def end(self, message: Tensor, vector: Tensor | None = None) -> list[Tensor]:
        """Returns the bytes of all processes; ``vector`` becomes the sum of all. Raises what another one raised."""
        sizes = self._end(message, vector, 1)
        if min(sizes) < 0:
            self._raise(sizes, message)
        return self.group.gather_bytes(message, sizes)

    def _end(self, message: Tensor, vector: Tensor | None, sign: int) -> list[int]:
        """The sizes of all messages, below 0 for a failure."""
        self._expected = "nothing"
        units = -(-len(message) // UNIT)
        own = torch.zeros(self.group.size, device="cpu")
        own[self.group.rank] = sign * units
        all_units = self.group.gather(own).sum(0) if vector is None else self.group.sum_with(vector, own)
        return [UNIT * int(unit) for unit in all_units.tolist()]

    def _raise(self, sizes: Sequence[int], message: Tensor) -> None:
        """The error of the first process that failed."""
        for rank, data in enumerate(self.group.gather_bytes(message, [abs(size) for size in sizes])):
            if sizes[rank] < 0:
                raise Failure.unpacked(data).error(rank)

    def _fail(self, failure: Failure) -> None:
        """Tell the others, which wait for this process."""
        expected, self._expected = self._expected, "nothing"
        message = failure.packed()
        if expected == "begin":
            sizes = [row[0] for row in self._gather([-len(message)])]
            self.group.gather_bytes(message, [abs(size) for size in sizes])
        elif expected == "end":
            sizes = self._end(message, self.vector() if self.vector else None, -1)
            self.group.gather_bytes(message, [abs(size) for size in sizes])

    def _gather(self, numbers: Sequence[int]) -> list[list[int]]:
        row = torch.zeros(NUMBERS, dtype=torch.int64, device="cpu")
        row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        return self.group.gather(row).tolist()


NUMBERS = 8  # the most that ``begin`` takes, and one
