"""What families of data of one's own have in common: what is held out, where the data are, a model of one's own."""

import hashlib
import inspect
import json
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from metaprox import checks
from metaprox.checks.places import imported
from metaprox.data import split_classes
from metaprox.data.draws import seeded
from metaprox.data.examples import Examples
from metaprox.errors import DataWarning, InputError
from metaprox.readers.hub import on_disk
from metaprox.tasks.base import SPLITS, Family
from metaprox.tasks.remembered import Remembered, place_of

DATA_VARIABLE = "METAPROX_DATA"


@dataclass(frozen=True)
class OwnData(Family):
    """A family of data of one's own: some classes, or groups, are held out; its model may be one of one's own too.

    Args:
        data: where the examples are.
    """

    data: str | Path | None = None
    network: str | None = field(default=None, metadata={"option": "model"}, kw_only=True)
    """A function that makes another model, package.module:function, called with what it names of: outputs, inputs,
    channels, size, seed. Default: as the family has it."""
    validation_share: float = field(default=0.2, kw_only=True)
    """Share of the classes, or of groups of them, that are for validation."""
    test_share: float = field(default=0.2, kw_only=True)
    """Share of the classes, or of groups of them, that are for the test."""
    splits: Path | None = field(default=None, kw_only=True)
    """JSON file with lists of classes, or of groups, in place of shares: {"train": [...], "validation": [...], ...}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = dict.fromkeys(("validation_share", "test_share"), checks.fraction)
        checks.settle(self, **shares, splits=checks.optional(checks.path), data=checks.optional(place_of))
        if self.validation_share + self.test_share >= 1:
            raise InputError(
                f"validation_share={self.validation_share} and test_share={self.test_share} leave nothing to train on"
            )

    @property
    def place(self) -> Path:
        """Where the data are. Raises InputError where nothing says it."""
        if self.given_place is None:
            raise InputError(f"data is needed: {self.wanted}")
        return self.given_place

    @property
    def given_place(self) -> Path | None:
        """Where ``data`` says that they are."""
        found = self.data.place if isinstance(self.data, Remembered) else self.data
        return None if found is None else Path(found)

    wanted: ClassVar[str] = "say where the examples are (--data)"

    def look(self) -> None:
        """Read the data, unless they are remembered: whatever can't be is refused here."""
        if not isinstance(self.data, Remembered):
            _ = self.drawn

    @property
    @abstractmethod
    def drawn(self) -> Any:
        """The tasks. Raises InputError where the data do not have them."""

    def known(self) -> dict[str, Any]:
        """The fixed lists of the splits, where a file gave them. All else is in the settings."""
        return (
            {} if self.splits is None else {"splits": {name: list(one) for name, one in (self._lists() or {}).items()}}
        )

    @classmethod
    def remembering(cls, data: Any, known: Mapping[str, Any]) -> Remembered:
        return Remembered(data, known)

    def of_splits(self, names: Sequence[str], groups: Sequence[str] | None, source: str) -> dict[str, tuple[str, ...]]:
        """The classes, or groups, of each split. Raises InputError where there are none for one."""
        shares = {"validation": self.validation_share, "test": self.test_share}
        fractions = {name: share for name, share in {"train": 1 - sum(shares.values()), **shares}.items() if share > 0}
        try:
            found = split_classes(names, fractions, groups=groups, lists=self._lists())
        except InputError as error:
            raise InputError(f"{self.splits or source}: {error}") from error
        for split in SPLITS:
            if not found.get(split):
                raise InputError(f"{source} has nothing for {split}: give it a share, or a list in --splits FILE")
        return found

    def _lists(self) -> Mapping[str, Sequence[str]] | None:
        """Fixed lists of classes or groups by split, where there are some."""
        if self.splits is None:
            return None
        try:
            found = json.loads(self.splits.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"splits {self.splits}: {error}") from error
        if not isinstance(found, dict) or sorted(found) != sorted(SPLITS):
            raise InputError(f"splits {self.splits} must hold an object with lists of names for {', '.join(SPLITS)}")
        for split, names in found.items():
            checks.tuple_of(f"{split} of splits {self.splits}", names, checks.text)
        return found

    def made(self, **known: Any) -> nn.Module:
        """Returns the model of ``blueprint`` or, where there is a ``network``, what that makes of what is ``known``.

        Raises:
            InputError: the network can't be imported or called, or gives no module.
        """
        if (blueprint := self.blueprint()) is not None:
            return blueprint.build()
        make = imported(checks.text("model", self.network), "model")
        if not callable(make):
            raise InputError(f"model {self.network!r} must be a function, got {checks.shown(make)}")
        known["seed"] = self.seed
        wanted = inspect.signature(make).parameters.values()
        named = [one.name for one in wanted if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        needed = {one.name for one in wanted if one.default is one.empty} & {*named}
        if odd := sorted(needed - known.keys()):
            raise InputError(f"model {self.network!r} asks for {', '.join(odd)}; it can have {', '.join(known)}")
        with seeded(self.seed):
            made = make(**{name: known[name] for name in named if name in known})
        return checks.instance_of(nn.Module)(f"what model {self.network!r} gives", made)


def warn_of(what: str, names: Sequence[str]) -> None:
    """Warn of what is left out, the first few by name."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    warnings.warn(f"{what}{', '.join(names[:10])}{more}", DataWarning, stacklevel=2)


def tell(examples: Examples) -> Examples:
    """The same; warns of what was left out, if anything was."""
    if examples.problems:
        warnings.warn(examples.report(), DataWarning, stacklevel=2)
    return examples


def below_data_variable(name: str, files: str) -> Path:
    """The folder of a known data set in that of METAPROX_DATA. Raises InputError where nothing names it."""
    if not os.environ.get(DATA_VARIABLE):
        raise InputError(
            f"{files}: give their place (--data), or put them into a folder {name} and name the folder around it in "
            f"the environment variable {DATA_VARIABLE}"
        )
    return Path(os.environ[DATA_VARIABLE]) / name


def digest(*parts: Any) -> str:
    """SHA-256 of lists of numbers and texts, and tensors."""

    def plain(leaf: torch.Tensor) -> str:
        return hashlib.sha256(leaf.contiguous().numpy().tobytes()).hexdigest()

    return hashlib.sha256(json.dumps(parts, default=plain).encode()).hexdigest()


def stamp(path: Path) -> str:
    """What changes with a file, or with any below a folder, so that none is taken for another that was read before."""
    path = on_disk(path)
    found, folders = hashlib.sha256(), [str(path)]
    with suppress(OSError):
        found.update(_line("", path.stat()))
    for folder in folders:  # which grows
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                with suppress(OSError):  # of a link to nowhere
                    found.update(_line(entry.path, entry.stat()))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return found.hexdigest()


def _line(name: str, about: os.stat_result) -> bytes:
    return f"{name} {about.st_mtime_ns} {about.st_size} {about.st_ino}\n".encode(errors="surrogateescape")
