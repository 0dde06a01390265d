"""N-way K-shot classification of bank customers' questions by intent."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.models import cross_entropy
from metaprox.serving import Blueprint
from metaprox.tasks.base import SPLITS, Family, Picture, Split, generator, shots_of, stacked
from metaprox.tasks.pictures import probabilities
from metaprox.text import (
    LEARNED,
    EncoderClassifier,
    Learned,
    check_tokens,
    minilm_features,
    nearest_mean_accuracy,
    tokenize,
)

# 47, 15 and 15 intents: all names, sorted, in the order of numpy.random.default_rng(77).permutation(77).
INTENTS: dict[Split, list[str]] = json.loads(
    resources.files("metaprox.tasks").joinpath("banking77_intents.json").read_text(encoding="utf-8")
)
FILES = ("train.csv", "test.csv")
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets, folder banking_data"
DATA_VARIABLE = "METAPROX_DATA"


@dataclass(frozen=True)
class BANKING77(Family):
    """Few-shot classification of bank customers' questions by intent, with a pretrained sentence encoder.

    Tasks of ``ways`` intents with ``shots`` support and ``queries`` query questions each. The 77 intents are split into
    47 for training, 15 for validation and 15 for the test, by fixed lists. An intent's questions are those of both
    files of the data set, repeated ones left out. Labels are 0..ways-1 in a random order in each task.

    Support is ({"input_ids", "attention_mask"} [T, ways * shots, tokens], labels [T, ways * shots]), questions in
    random order and tokenized for MiniLM; query likewise. Files are read and tokenized once in a process. With a frozen
    encoder there are MiniLM's features of the questions, [T, ways * shots, width], in place of their tokens; they
    are computed once in a process, in half a minute for all splits. The loss is cross-entropy. Evaluations report the
    accuracy of the nearest mean of the encoder's features beside that after adaptation.

    Args:
        data: folder with train.csv and test.csv. None: banking77 in the folder that METAPROX_DATA names.
        ways: intents of a task.
        shots: support questions of each intent.
        queries: query questions of each intent.
        train_shots: support questions of each intent in training tasks, where they are not as many.
        tokens: length of all token sequences; longer questions are cut.
        encoder: what of the encoder is meta-learned: nothing, LoRA adapters, or all its weights. The head starts every
            task at 0; with a frozen encoder its start is what is learned.
        adapt: what adapts to a task: the head alone, or also what of the encoder is meta-learned.
        seed: of the tasks and of the adapters.
        split: which intents.

    Raises:
        InputError: the files are missing or are not those of BANKING77, or have too few intents or questions.

    Source: Casanueva et al., Efficient Intent Detection with Dual Sentence Encoders, arXiv 2003.04807.
    """

    data: str | Path | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 5
    train_shots: int | None = None
    tokens: int = 32
    encoder: Learned = "lora"
    adapt: Literal["head", "all"] = "head"

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 4,
        "meta_steps": 100,
        "inner_lr": 0.3,
        "lam": 0.5,
        "nu": 0.1,
        "eps": 0.1,
        "lr": 0.1,
    }
    loss = staticmethod(cross_entropy)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, **dict.fromkeys(("ways", "shots", "queries"), checks.count))
        checks.settle(self, data=checks.optional(checks.path), train_shots=checks.optional(checks.count))
        checks.settle(self, tokens=check_tokens, encoder=checks.one_of(*LEARNED), adapt=checks.one_of("head", "all"))
        intents = INTENTS[self.split]
        if self.ways > len(intents):
            raise InputError(
                f"{self.ways}-way tasks need {self.ways} intents, but the {self.split} split has {len(intents)}"
            )
        shots = shots_of(self)
        needed = shots + self.queries
        fewest = min(intents, key=lambda intent: len(questions(self.folder)[intent]))
        if needed > len(questions(self.folder)[fewest]):
            raise InputError(
                f"{shots} shots and {self.queries} queries need {needed} questions of an intent, but {fewest} has "
                f"{len(questions(self.folder)[fewest])}"
            )

    @property
    def folder(self) -> Path:
        """Where the files are."""
        if self.data is not None:
            return Path(self.data)
        if not os.environ.get(DATA_VARIABLE):
            raise InputError(
                f"BANKING77 needs its files {' and '.join(FILES)} ({SOURCE}): give their folder (--data), or put them "
                f"into a folder banking77 and name the folder around it in the environment variable {DATA_VARIABLE}"
            )
        return Path(os.environ[DATA_VARIABLE]) / "banking77"

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in int64; features in float32."""
        return stacked(self._task, ids)

    def model(self) -> nn.Module:
        return self.blueprint().build()

    def blueprint(self) -> Blueprint:
        if self.encoder == "frozen":
            return Blueprint("head_classifier", {"ways": self.ways})
        return Blueprint("minilm_classifier", {"ways": self.ways, "learned": self.encoder, "seed": self.seed})

    @property
    def adapts(self) -> str | None:
        return "head.*" if self.adapt == "head" and self.encoder != "frozen" else None  # frozen: there is only a head

    def learned(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Returns all but the head, where there is more to learn.

        The head starts every task at 0: labels are permuted from task to task, so that by symmetry its expected
        meta-gradient prefers no class, and what a batch of tasks says of it is noise that outweighs the rest.
        """
        assert isinstance(model, EncoderClassifier)
        return super().learned(model if self.encoder == "frozen" else model.encoder)

    def baseline(self, model: nn.Module, tasks: Task) -> dict[str, Tensor]:
        """The accuracy of the nearest mean of the encoder's features as they are."""
        assert isinstance(model, EncoderClassifier)
        return {"nearest-mean accuracy": nearest_mean_accuracy(model.encoder, tasks)}

    def picture(self) -> Picture:
        return probabilities("Intents of an unseen task, after adaptation")

    def _task(self, task_id: int) -> Task:
        shots = shots_of(self)
        rng = generator(self.seed, self.split, task_id)
        which = self.folder, self.split, self.tokens
        tokenized, ranges = _tokenized(*which)
        pool = _embedded(*which) if self.encoder == "frozen" else tokenized
        intents = rng.choice(len(ranges), self.ways, replace=False)
        count = shots + self.queries
        rows = np.stack([rng.choice(np.arange(*ranges[i]), count, replace=False) for i in intents])
        return Task(_shuffled(pool, rows[:, :shots], rng), _shuffled(pool, rows[:, shots:], rng))


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
    """Returns intent -> its questions, each once whatever its case and spacing, in the order of the files.

    Raises:
        InputError: a file is missing or holds other columns or intents than BANKING77.
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
