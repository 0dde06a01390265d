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


class PeerError(MetaproxError, RuntimeError):
    """Another process of the group failed, ended or is silent, so that there is no sum over all of them.

    Attributes:
        rank: which one, or None where it is not known.
    """

    def __init__(self, message: str, *, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RunFolderError(MetaproxError, OSError):
    """A run folder or a file in it can't be used: it exists, is missing, is corrupt, or is not metaprox's."""


class InUseError(RunFolderError):
    """Another process, or another thread, works in the folder; says which."""


class DamagedFileError(RunFolderError):
    """A file is not as it was written: cut short, changed, or another's."""


class DataWarning(UserWarning):
    """Something in the data was left out: which, why, and what became of the rest."""


class TransductiveWarning(UserWarning):
    """Predictions depend on which examples are given together; says by which module of the model."""


class MissingExtraError(MetaproxError, ImportError):
    """A part was used without the packages that an extra, such as ``metaprox[data]``, or metaprox itself brings."""


class HealthWarning(UserWarning):
    """Base class of what training is warned of, once a run, by what its meta-gradients say of themselves."""


class UnmovedWarning(HealthWarning):
    """The base solve hardly moves: y_0 is x, next to the way that is left."""


class InaccurateWarning(HealthWarning):
    """g is error for the most part: base or branches end far from their solutions."""


class RatioWarning(HealthWarning):
    """Most tasks' g is longer than their query gradient, as it is where inner steps lose hold."""


class LossWarning(HealthWarning):
    """The query loss is a multiple of what it has been."""


class AstrayWarning(HealthWarning):
    """Branches at -nu have left what has a minimum."""


class RoundingWarning(HealthWarning):
    """Rounding, divided by the step of the difference, rules the error."""


class IndefiniteWarning(HealthWarning):
    """H + lam I has negative curvature along the last steps, so that y_0 is near no minimum."""


@contextmanager
def needs_extra(part: str, extra: str | None = None) -> Iterator[None]:
    """Around imports that only an extra brings, or (None) what the command line needs: says so where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        wanted = f"'metaprox[{extra}]'" if extra else "metaprox"
        raise MissingExtraError(f"{part} needs {error.name}, which comes with: pip install {wanted}") from error


def with_notes(error: BaseException) -> str:
    """Its message and its notes, in a line."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])
