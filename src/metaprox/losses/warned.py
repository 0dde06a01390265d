"""What is said of graphs that there are not, once each."""

import warnings
from typing import Any


class Warnings:
    """Those of the graphs of the loss of this ``name``. ``where``: what is the same for tasks of one shape.

    alone: those of the first of two losses, where it is about the graphs of both.
    """

    def __init__(self, name: str, alone: "Warnings | None" = None) -> None:
        self._name = name
        self._alone = alone or self
        self._failed: dict[str, Exception] = {}  # what is in no graph that was to be one, and why; not said yet
        self._warned: set[tuple[Any, ...]] = set()

    def fail_in_one(self, name: str, error: Exception) -> None:
        """Said as soon as smaller graphs are compiled, and not where these fail too."""
        self._alone._failed[name] = error

    def warn_of_solver(self, where: object, solver: type, error: Exception) -> None:
        self._warn(
            ("solver", id(where), solver),
            f"metaprox takes the steps of {solver.__qualname__} outside of graphs: {_said(error)}",
        )

    def warn_of_smaller(self, where: object, name: str) -> None:
        """``name`` was compiled, in whose place a larger graph may have failed."""
        for larger, smaller, words in (
            ("branched", "solve", "each solve alone, since base and branches"),
            ("solve", "step", "the step alone, since a solve"),
        ):
            error = self._failed.pop(larger, None) if name == smaller else None
            if error is not None:
                said = f"metaprox compiles {words} in one graph failed for {self._name}: {_said(error)}"
                self._warn((name, id(where)), said)

    def warn_of_failure(self, where: object, error: Exception) -> None:
        reason = _said(error)
        self._warn(
            ("failure", id(where)), f"metaprox goes on without compile=True, which failed for {self._name}: {reason}"
        )

    def warn_of_unseen(self, what: str) -> None:
        said = f"metaprox goes on without compile=True while {what}, which graphs would not see"
        self._alone._warn(("unseen", what), said)

    def warn_of_changes(self, count: int) -> None:
        self._warn(
            ("changes",),
            f"metaprox has compiled {self._name} {count} times for tasks of one shape, and goes on without where no "
            "graph fits: something in the loss or the model differs from call to call, as where every step makes a new "
            "loss around a new number. Make the problem once, and hand what changes to the loss as a tensor in the "
            "data. TORCH_LOGS=recompiles says what it is",
        )

    def warn_of_shapes(self, count: int) -> None:
        self._warn(
            ("shapes",),
            f"metaprox has compiled {self._name} for tasks of {count} shapes, and evaluates further shapes "
            "without compile=True: pad the data to fewer shapes, or raise metaprox.losses.compiled.MOST_SHAPES",
        )

    def _warn(self, what: tuple[Any, ...], message: str) -> None:
        """Once of each shape, or of all."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=2)


def _said(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
