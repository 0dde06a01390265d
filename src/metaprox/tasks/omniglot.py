"""N-way K-shot classification of handwritten characters: a preset of ``Images``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from metaprox.errors import InputError
from metaprox.tasks.images import Images
from metaprox.tasks.own import below_data_variable

# Whole alphabets of the background set, sorted, in the order of numpy.random.default_rng(30).permutation(30): 20, 5, 5.
ALPHABETS: dict[str, list[str]] = json.loads(
    resources.files("metaprox.tasks").joinpath("omniglot_alphabets.json").read_text(encoding="utf-8")
)
BACKGROUND = "images_background"
SOURCE = "images_background.zip of https://github.com/brendenlake/omniglot"


@dataclass(frozen=True)
class Omniglot(Images):
    """Few-shot classification of handwritten characters of 50 alphabets.

    What ``Images`` is, on the 30 alphabets of the background set, of which 20 are for training, 5 for validation and 5
    for the test, by fixed lists; ``metaprox evaluate RUN --data images_evaluation.zip`` has the other 20. Pictures are
    28 x 28, ink is 1 and paper 0, and in training characters that are turned are other characters.

    Args:
        data: the authors' archive images_background.zip, the folder in it, or one that has either. None: omniglot in
            the folder that METAPROX_DATA names.
        rotations: whether in training each character, turned by 90, 180 and 270 degrees, is three more characters.

    Raises:
        InputError: the data are missing or are not Omniglot's, or have too few characters or drawings.

    Source: Lake et al., Human-level concept learning through probabilistic program induction, Science 350 (2015).
    """

    size: int = 28
    channels: int = 1
    invert: bool = True
    rotations: bool = True
    fit: Literal["squeeze", "crop", "pad"] = field(default="squeeze", init=False)
    validation_share: float = field(default=0.2, init=False)
    test_share: float = field(default=0.2, init=False)
    splits: Path | None = field(default=None, init=False)
    image_column: str | None = field(default=None, init=False)
    label_column: str | None = field(default=None, init=False)
    subset: str | None = field(default=None, init=False)
    data_split: str | None = field(default=None, init=False)

    @property
    def place(self) -> Path:
        path = self.given_place or below_data_variable("omniglot", f"Omniglot needs its pictures ({SOURCE})")
        within = [path / BACKGROUND, *sorted(path.glob(f"{BACKGROUND}*.zip"))] if path.is_dir() else []
        return next((one for one in within if one.exists()), path)

    def of_splits(self, names: Sequence[str], groups: Sequence[str] | None, source: str) -> dict[str, tuple[str, ...]]:
        known = {alphabet for alphabets in ALPHABETS.values() for alphabet in alphabets}
        if missing := sorted(known - {*(groups or ())}):
            raise InputError(f"{source} has not the alphabets {', '.join(missing)}: it is not Omniglot's ({SOURCE})")
        return super().of_splits(names, groups, source)

    def _lists(self) -> Mapping[str, Sequence[str]]:
        return ALPHABETS
