"""N-way K-shot classification of texts of one's own."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.contents import checksum
from metaprox.data.examples import Examples
from metaprox.data.preprocessing import Preprocessing
from metaprox.data.sources import Source
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.readers import Texts, read_texts
from metaprox.serving import Blueprint
from metaprox.tasks.labelled import Labelled, Pool, class_groups
from metaprox.tasks.own import stamp, tell
from metaprox.text import (
    LEARNED,
    EncoderClassifier,
    Learned,
    check_tokens,
    nearest_mean_accuracy,
)


@dataclass(frozen=True)
class Text(Labelled):
    """Few-shot classification of texts in a table, with a pretrained sentence encoder.

    Tasks of ``ways`` labels with ``shots`` support and ``queries`` query texts each, repeated texts of a label left
    out. Support is ({"input_ids", "attention_mask"} [T, ways * shots, tokens], labels [T, ways * shots]), texts in
    random order and tokenized for MiniLM; query likewise. Files are read and tokenized once in a process. With a frozen
    encoder there are MiniLM's features of the texts, [T, ways * shots, width], in place of their tokens. The loss is
    cross-entropy. Evaluations report the accuracy of the nearest mean of the encoder's features beside that after
    adaptation.

    Args:
        data: file with the texts and their labels, in CSV, JSON lines or Parquet, or a folder of such files; or a
            dataset of HuggingFace, hf:NAME.
        ways: labels of a task.
        shots: support texts of each label.
        queries: query texts of each label.
        train_shots: support texts of each label in training tasks, where they are not as many.
        text_column: the column with the texts.
        label_column: the column with the labels.
        group_column: the column with a group of the label, such as a domain; labels of a group are in one split.
        tokens: length of all token sequences; longer texts are cut.
        encoder: what of the encoder is meta-learned: nothing, LoRA adapters, or all its weights. With a frozen encoder
            the head's start is what is learned.
        head: where the last layer starts in a task. zeros, means: at 0, or at the means of the classes, with a row for
            each label of the task, so that what was learned takes any number of labels. learned: as it was made, at 0,
            for as many labels as ``ways``, or where meta-learning says. Default: zeros; with a frozen encoder learned.
        adapt: what adapts to a task: the head alone, or also what of the encoder is meta-learned.
        seed: of the tasks and of the adapters.
        split: which labels.

    Raises:
        InputError: a file or column is missing, or there are too few labels or texts.
    """

    text_column: str = "text"
    label_column: str = "label"
    group_column: str | None = None
    tokens: int = 32
    encoder: Learned = "lora"
    adapt: Literal["head", "all"] = "head"

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 4,
        "meta_steps": 100,
        "solver": "adaptive",  # the head's curvature grows as the encoder learns, beyond what a fixed step takes
        "inner_lr": 0.3,  # of other solvers
        "lam": 0.5,
        "lr": 0.1,
    }
    reads: ClassVar[tuple[str, ...]] = ("text_column", "label_column")
    wanted: ClassVar[str] = "give the file with the texts (--data FILE.csv --text-column NAME --label-column NAME)"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, tokens=check_tokens, encoder=checks.one_of(*LEARNED), adapt=checks.one_of("head", "all"))
        columns = dict.fromkeys(("text_column", "label_column"), checks.text)
        checks.settle(self, **columns, group_column=checks.optional(checks.text))
        if self.encoder == "frozen" and self.network is None and self.task_head is not None:
            raise InputError(f"encoder='frozen' learns where the head starts, and nothing else: not head={self.head!r}")
        self.look()

    def files(self, path: Path) -> tuple[Path, ...]:
        """What is read at a path."""
        return (path,)

    def pool(self, path: Path) -> Pool:
        files, columns = self.files(path), (self.text_column, self.label_column, self.group_column)
        key = (files, columns, tuple(map(stamp, files)), self.subset, self.data_split)
        found, texts = _distinct(*key), self.preprocessing()

        def take(rows: list[int]) -> Any:
            chosen = torch.tensor(rows, device="cpu")
            return pytree.tree_map(lambda leaf: leaf[chosen], _inputs(key, texts))

        names, groups = found.names, class_groups(found)
        source = Source(len(found), found.targets.tolist(), take, names.__getitem__)
        sums = [checksum(text.encode()) for text in found.items]
        return Pool(source, names, groups, sums, lambda row: f"the text {checks.shown(found.items[row])}")

    def preprocessing(self) -> Texts:
        """Tokens, or features with a frozen encoder."""
        return Texts(self.tokens, self.encoder == "frozen" and self.network is None)

    def examples(self, path: str | Path, *, labels: bool = True) -> Examples:
        """Texts, by the columns of the family."""
        columns = (self.text_column, self.label_column, self.group_column)
        return read_texts(path, *columns, labels=labels, subset=self.subset, split=self.data_split)

    def of_one(self, path: str | Path) -> Self:
        """As it reads one task, whose labels need no groups."""
        found = copy.copy(self)
        object.__setattr__(found, "group_column", None)
        return found

    @classmethod
    def items(cls, path: str | Path, preprocessing: Any, **columns: Any) -> Examples:
        """Texts; of a .txt each line is one."""
        text = columns.get("text_column") or "text"
        return read_texts(path, text, labels=False, subset=columns.get("subset"), split=columns.get("data_split"))

    def model(self) -> nn.Module:
        return self.made(outputs=self.ways)

    def blueprint(self) -> Blueprint | None:
        if self.network is not None:
            return None
        if self.encoder == "frozen":
            return Blueprint("head_classifier", {"ways": self.ways})
        return Blueprint("minilm_classifier", {"ways": self.ways, "learned": self.encoder, "seed": self.seed})

    @property
    def usual_head(self) -> Literal["zeros", "learned"]:
        """With a frozen encoder there is only the head to learn."""
        return "learned" if self.encoder == "frozen" else super().usual_head

    @property
    def adapts(self) -> str | None:
        if self.network is not None or self.encoder == "frozen":
            return None  # frozen: there is only a head
        return "head.*" if self.adapt == "head" else None

    def learned(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Returns all but the head, where there is more to learn.

        The head starts every task at 0: labels are permuted from task to task, so that by symmetry its expected
        meta-gradient prefers no class, and what a batch of tasks says of it is noise that outweighs the rest.
        """
        if not isinstance(model, EncoderClassifier):
            return super().learned(model)
        return super().learned(model if self.encoder == "frozen" else model.encoder)

    def baseline(self, model: nn.Module, tasks: Task) -> dict[str, Tensor]:
        """The accuracy of the nearest mean of the encoder's features as they are."""
        if not isinstance(model, EncoderClassifier):
            return {}
        return {"nearest-mean accuracy": nearest_mean_accuracy(model.encoder, tasks)}


@lru_cache(maxsize=4)
def _distinct(
    files: tuple[Path, ...],
    columns: tuple[str, str, str | None],
    stamps: Any,
    subset: str | None = None,
    split: str | None = None,
) -> Examples:
    """Every text of a label once, whatever its case and spacing, in the order of the files."""
    found = tell(read_texts(files, *columns, subset=subset, split=split))
    seen: dict[tuple[int, str], int] = {}
    for row, (text, label) in enumerate(zip(found.items, found.targets.tolist(), strict=True)):
        seen.setdefault((label, " ".join(text.lower().split())), row)
    return found.where(list(seen.values()))


@lru_cache(maxsize=4)
def _inputs(key: tuple[Any, ...], texts: Preprocessing) -> Any:
    """Inputs of all these texts."""
    return texts(_distinct(*key).items)
