"""Every exception and warning that metaprox raises."""

from collections.abc import Iterator
from contextlib import contextmanager


class MetaproxError(Exception):
    """Base class: ``except mp.MetaproxError`` catches whatever the library raises on purpose."""


class InputError(MetaproxError, ValueError):
    """A bad argument, found before any work is done. The message names the value, the place and the remedy."""


class NonFiniteError(MetaproxError, ArithmeticError):
    """A value became infinite or NaN in the middle of a computation.

    Attributes:
        task: position of the first affected task in the batch, or None where no task is to blame.
        step: the inner step at which it was first seen, or None outside an inner solve.
    """

    def __init__(self, message: str, *, task: int | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.task = task
        self.step = step


class UnstableError(InputError, NonFiniteError):
    """Inner steps that would diverge, whatever the losses are: known, and said, before any is taken."""


class RunFolderError(MetaproxError, OSError):
    """A run folder or a file in it can't be used: it exists, is missing, is corrupt, or is not metaprox's."""


class DamagedFileError(RunFolderError):
    """A file is not as it was written: cut short, changed, or another's."""


class MissingExtraError(MetaproxError, ImportError):
    """A part outside the core was used without the extra ``metaprox[experiments]``."""


@contextmanager
def needs_extra(part: str) -> Iterator[None]:
    """Around imports that only the extra brings: says so where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{part} needs {error.name}, which comes with: pip install 'metaprox[experiments]'"
        ) from error
