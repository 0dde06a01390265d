"""What is around an evaluation of the user's losses."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from metaprox.errors import MetaproxError
from metaprox.losses.checked import CheckedLoss


class Unwritten:
    """Parameters that do not adapt [W], on which no loss is to write."""

    def __init__(self, w: Tensor) -> None:
        self._w, self._version = w, w._version

    def check(self) -> None:
        """Raise MetaproxError where one has."""
        if self._w._version != self._version:
            raise MetaproxError(
                "a loss wrote on parameters that do not adapt, which it did not when it was first looked at; let them "
                "adapt, or write on a copy"
            )


@contextmanager
def evaluation(tasks: tuple[int, int], half: str, losses: tuple[CheckedLoss, ...], others: Unwritten) -> Iterator[None]:
    """Errors of the user's code say in which ``tasks`` and ``half`` they rose; then losses let go of its tensors.

    Raises:
        MetaproxError: one wrote on the ``others``.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, MetaproxError):
            first, stop = tasks
            some = f"s {first} to {stop - 1}" if stop > first + 1 else f" {first}"
            error.add_note(f"metaprox: in task{some}{half and f', {half}'}")
        raise
    for loss in losses:
        loss.release()
    others.check()
