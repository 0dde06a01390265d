"""What a run knows of its data, so that it adapts and predicts where they are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError
from metaprox.readers.hub import HUB, Part, on_disk


@dataclass(frozen=True)
class Remembered:
    """Data that need not be there: ``place``, where they were; ``known``, what a family's ``known`` said of them.

    As the setting ``data`` of a family it has nothing read before a task is asked for.
    """

    place: str | Path | None
    known: Mapping[str, Any]


def place_of(name: str, value: Any) -> Path | Remembered:
    """A path, as it is from everywhere, or ``hf:`` and the name of a dataset. Raises InputError where it is none."""
    if isinstance(value, Remembered):
        return value
    path = checks.path(name, value)
    if Part.of(path) is None:
        return path.absolute()
    folder = on_disk(path)
    return Path(f"{HUB}{folder.absolute()}") if folder.is_dir() else path


@dataclass(frozen=True)
class Facts:
    """What a model of tables has of its data.

    Args:
        columns: of the inputs.
        names: of the classes; () for numbers.
        mean, std: of each column, over the training groups.
        target: mean and standard deviation of the targets there; 0 and 1 for classes.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: tuple[float, ...]

    @classmethod
    def of(cls, data: Remembered) -> "Facts":
        """What a run remembers. Raises InputError where that is no such thing."""
        try:
            return cls(**{name: tuple(value) for name, value in data.known["facts"].items()})
        except (TypeError, AttributeError, KeyError) as error:
            raise InputError(f"what is known of the run's data is not as it was written: {error}") from error
