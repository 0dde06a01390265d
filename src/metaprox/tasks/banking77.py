"""N-way K-shot classification of bank customers' questions by intent: a preset of ``Text``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar, Literal

from metaprox.errors import InputError
from metaprox.tasks.base import Picture
from metaprox.tasks.labelled import Pool
from metaprox.tasks.own import below_data_variable
from metaprox.tasks.pictures import probabilities
from metaprox.tasks.text import Text

# 47, 15 and 15 intents: all names, sorted, in the order of numpy.random.default_rng(77).permutation(77).
INTENTS: dict[str, list[str]] = json.loads(
    resources.files("metaprox.tasks").joinpath("banking77_intents.json").read_text(encoding="utf-8")
)
FILES = ("train.csv", "test.csv")
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets, folder banking_data"


@dataclass(frozen=True)
class BANKING77(Text):
    """Few-shot classification of bank customers' questions by intent, with a pretrained sentence encoder.

    What ``Text`` is, on the questions of both files of the data set, whose 77 intents are split into 47 for training,
    15 for validation and 15 for the test, by fixed lists.

    Args:
        data: folder with train.csv and test.csv. None: banking77 in the folder that METAPROX_DATA names.
        ways: intents of a task.
        shots: support questions of each intent.
        queries: query questions of each intent.
        train_shots: support questions of each intent in training tasks, where they are not as many.
        split: which intents.

    Raises:
        InputError: the files are missing or are not those of BANKING77, or have too few intents or questions.

    Source: Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, arXiv 2003.04807.
    """

    text_column: str = field(default="text", init=False)
    label_column: str = field(default="category", init=False)
    group_column: str | None = field(default=None, init=False)
    validation_share: float = field(default=0.2, init=False)
    test_share: float = field(default=0.2, init=False)
    splits: Path | None = field(default=None, init=False)
    subset: str | None = field(default=None, init=False)
    data_split: str | None = field(default=None, init=False)

    small: ClassVar[Literal["refuse", "leave out"]] = "refuse"

    @property
    def place(self) -> Path:
        return self.given_place or below_data_variable(
            "banking77", f"BANKING77 needs its files {' and '.join(FILES)} ({SOURCE})"
        )

    def files(self, path: Path) -> tuple[Path, ...]:
        if path.is_file():
            return (path,)
        for file in FILES:
            if not (path / file).is_file():
                raise InputError(f"{path / file} is missing: BANKING77 needs {' and '.join(FILES)} ({SOURCE})")
        return tuple(path / file for file in FILES)

    def pool(self, path: Path) -> Pool:
        found = super().pool(path)
        known = {intent for intents in INTENTS.values() for intent in intents}
        if path == self.place and (odd := [name for name in found.names if name not in known]):
            raise InputError(f"{path} has the intent {odd[0]!r}, which BANKING77 does not have")
        if path == self.place and (missing := sorted(known - {*found.names})):
            raise InputError(f"{path} has no question of {', '.join(missing)}: its files are not complete ({SOURCE})")
        return found

    def _lists(self) -> Mapping[str, Sequence[str]]:
        return INTENTS

    def picture(self) -> Picture:
        return probabilities("Intents of an unseen task, after adaptation")
