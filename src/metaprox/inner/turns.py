"""Branches that are alone on the device, one after another, each with all of its steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaprox.losses.memory import Memory
from metaprox.vectors.rest import Rest


@dataclass(frozen=True)
class Turns:
    """Branches that begin when their turn comes, and rest when they have ended.

    begin: (a branch) -> its start [1, 1, P], a new tensor, and the gradient there, if known. count: of the branches.
    like: a tensor [T, ...] of the solve's dtype and device.
    """

    begin: Callable[[slice], tuple[Tensor, Tensor | None]]
    count: int
    rest: Rest
    like: Tensor

    def visits(
        self,
        current: list[Any],
        states: list[Any],
        known: list[Tensor],
        max_steps: int,
        init: Callable[[Tensor], Any],
        memory: Memory | None,
    ) -> Iterator[tuple[int, int, slice]]:
        """Yields step, number and place of the branch that is to take it, whose point is in ``current`` meanwhile.

        So are its solver's state in ``states``, which ``init`` makes, and its first gradient in ``known``.
        """
        for index in range(self.count):
            where = slice(index, index + 1)
            y, grad = self.begin(where)
            if memory is not None:
                memory.own(y, index)
            current.append(y)
            states.append(init(y))
            known.extend([] if grad is None else [grad])
            del y, grad
            for step in range(max_steps):
                yield step, index, where
            known.clear()
            current[index], states[index] = self.rest.away(current[index]), None
            if memory is not None:
                memory.let_go()
