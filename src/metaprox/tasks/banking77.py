"""N-way K-shot classification of bank customers' questions by intent."""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.tasks.base import SPLITS, Split, generator, stacked
from metaprox.text import check_tokens, minilm_features, tokenize

# 47, 15 and 15 intents: all names, sorted, in the order of numpy.random.default_rng(77).permutation(77).
INTENTS: dict[Split, list[str]] = json.loads(
    resources.files("metaprox.tasks").joinpath("banking77_intents.json").read_text(encoding="utf-8")
)
FILES = ("train.csv", "test.csv")
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets, folder banking_data"
DATA_VARIABLE = "METAPROX_DATA"


@dataclass(frozen=True)
class BANKING77:
    """Tasks of ``ways`` intents with ``shots`` support and ``queries`` query questions each.

    The 77 intents are split into 47 for training, 15 for validation and 15 for the test, by fixed lists. An intent's
    questions are those of both files of the data set, repeated ones left out. Labels are 0..ways-1 in a random
    order in each task.

    Support is ({"input_ids", "attention_mask"} [T, ways * shots, tokens], labels [T, ways * shots]), questions in
    random order and tokenized for MiniLM; query likewise. Files are read and tokenized once in a process.

    Args:
        path: folder with train.csv and test.csv. None: banking77 in the folder that METAPROX_DATA names.
        tokens: length of all token sequences; longer questions are cut.
        embedded: MiniLM's features of the questions, [T, ways * shots, width], in place of their tokens, for models
            that leave the encoder as it is. They are computed once in a process, in half a minute for all splits.

    Raises:
        InputError: the files are missing or are not those of BANKING77, or have too few intents or questions.

    Source: Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, arXiv 2003.04807.
    """

    path: str | Path | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 5
    seed: int = 0
    split: Split = "train"
    tokens: int = 32
    embedded: bool = False

    def __post_init__(self) -> None:
        checks.settle(self, **dict.fromkeys(("ways", "shots", "queries"), checks.count))
        checks.settle(self, seed=checks.seed, split=checks.one_of(*SPLITS), path=checks.optional(checks.path))
        checks.settle(self, tokens=check_tokens, embedded=checks.switch)
        intents = INTENTS[self.split]
        if self.ways > len(intents):
            raise InputError(
                f"{self.ways}-way tasks need {self.ways} intents, but the {self.split} split has {len(intents)}"
            )
        needed = self.shots + self.queries
        fewest = min(intents, key=lambda intent: len(questions(self.folder)[intent]))
        if needed > len(questions(self.folder)[fewest]):
            raise InputError(
                f"{self.shots} shots and {self.queries} queries need {needed} questions of an intent, but {fewest} has "
                f"{len(questions(self.folder)[fewest])}"
            )

    @property
    def folder(self) -> Path:
        """Where the files are."""
        if self.path is not None:
            return Path(self.path)
        if not os.environ.get(DATA_VARIABLE):
            raise InputError(
                f"BANKING77 needs its files {' and '.join(FILES)} ({SOURCE}): give their folder (--data), or put them "
                f"into a folder banking77 and name the folder around it in the environment variable {DATA_VARIABLE}"
            )
        return Path(os.environ[DATA_VARIABLE]) / "banking77"

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in int64; features in float32."""
        return stacked(self._task, ids)

    def _task(self, task_id: int) -> Task:
        rng = generator(self.seed, self.split, task_id)
        which = self.folder, self.split, self.tokens
        tokenized, ranges = _tokenized(*which)
        pool = _embedded(*which) if self.embedded else tokenized
        intents = rng.choice(len(ranges), self.ways, replace=False)
        count = self.shots + self.queries
        rows = np.stack([rng.choice(np.arange(*ranges[i]), count, replace=False) for i in intents])
        return Task(_shuffled(pool, rows[:, : self.shots], rng), _shuffled(pool, rows[:, self.shots :], rng))


Inputs = dict[str, Tensor] | Tensor


def _shuffled(pool: Inputs, rows: np.ndarray, rng: np.random.Generator) -> tuple[Inputs, Tensor]:
    """Questions ``rows`` [ways, count] of the pool with their labels, in random order."""
    order = rng.permutation(rows.size)
    chosen = torch.from_numpy(rows.flatten()[order])
    labels = torch.arange(len(rows), device="cpu").repeat_interleave(rows.shape[1])
    return pytree.tree_map(lambda leaf: leaf[chosen], pool), labels[torch.from_numpy(order)]


@lru_cache(maxsize=8)
def _embedded(folder: Path, split: Split, tokens: int) -> Tensor:
    """Features of all questions of a split, in the order of ``_tokenized``."""
    return minilm_features(_tokenized(folder, split, tokens)[0])


@lru_cache(maxsize=8)
def _tokenized(folder: Path, split: Split, tokens: int) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """All questions of a split, intent after intent, and the range [start, stop) of each intent."""
    groups = [questions(folder)[intent] for intent in INTENTS[split]]
    stops = np.cumsum([len(group) for group in groups]).tolist()
    return tokenize([text for group in groups for text in group], tokens), list(zip([0, *stops], stops, strict=False))


@lru_cache(maxsize=4)
def questions(folder: Path) -> dict[str, tuple[str, ...]]:
    """intent -> its questions, each once whatever its case and spacing, in the order of the files.

    Raises InputError where a file is missing or holds other columns or intents than BANKING77.
    """
    found: dict[str, dict[str, str]] = {intent: {} for split in SPLITS for intent in INTENTS[split]}
    for file in FILES:
        for text, intent in _rows(folder / file):
            if intent not in found:
                raise InputError(f"{folder / file} has the intent {intent!r}, which BANKING77 does not have")
            found[intent].setdefault(" ".join(text.lower().split()), text)
    missing = [intent for intent, texts in found.items() if not texts]
    if missing:
        raise InputError(f"{folder} has no question of {', '.join(missing)}: its files are not complete ({SOURCE})")
    return {intent: tuple(texts.values()) for intent, texts in found.items()}


def _rows(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"{path} is missing: BANKING77 needs {' and '.join(FILES)} in that folder ({SOURCE})")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"text", "category"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path} has the columns {reader.fieldnames}, not text and category")
        return [(row["text"], row["category"]) for row in reader]
