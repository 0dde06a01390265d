"""Regression or classification of the rows of tables of one's own, a task for each group."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.data import Grouped
from metaprox.data.contents import Contents, checksum
from metaprox.data.examples import Examples
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.models import Rescaled, ScaledError, cross_entropy
from metaprox.modules.loss import ModelLoss
from metaprox.readers import Columns, read_tables
from metaprox.readers.rows import columns_in
from metaprox.readers.tables import number
from metaprox.serving import Blueprint
from metaprox.tasks.base import Picture, TaskSource
from metaprox.tasks.own import OwnData, digest, stamp, tell, warn_of
from metaprox.tasks.pictures import probabilities
from metaprox.tasks.remembered import Facts, Remembered


@dataclass(frozen=True)
class Tables(OwnData):
    """Prediction of a column from the others, for groups of rows: patients, machines, shops.

    A task is a group: a file of the folder, or the rows with the same value of ``by``. Test tasks 0, 1, ... are the
    groups that are held out, each once; training goes through its groups again and again, with other rows as support.
    Support is (columns [S, F], standardized over the training groups; targets, [S, 1] numbers or [S] classes); query
    likewise. Groups of unequal sizes come as a list of tasks. The model is an MLP; the loss is the mean squared error,
    in units of the targets' standard deviation, or the cross-entropy.

    Args:
        data: folder with a table for each group, or a file with one table, in CSV, JSON lines or Parquet.
        target: the column to predict, of numbers or of classes.
        by: the column that names the group of a row. Default: each file is a group.
        order: the column by which the rows of a group are sorted, such as a time; support comes first then.
        columns: those to predict from. Default: all others, which must hold numbers.
        target_kind: whether the target is a number, or one of some classes. auto: as most of its values are.
        support: how many rows of a group are support, or which share of them, in (0, 1).
        queries: how many of the others are query, at most. Default: all.
        hidden: widths of the hidden layers of the MLP.
        seed: of the tasks and weights.
        split: which groups.

    Raises:
        InputError: a file or column is missing or holds no numbers, or there are too few groups or rows.
    """

    target: str | None = None
    by: str | None = None
    order: str | None = None
    columns: tuple[str, ...] | None = None
    target_kind: Literal["auto", "numbers", "classes"] = "auto"
    support: float = 0.5
    queries: int | None = None
    hidden: tuple[int, ...] = (64, 64)

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 8,
        "meta_steps": 500,
        "solver": "adaptive",  # of unknown numbers no step is known that is not too long
        "inner_lr": 0.1,  # of other solvers
        "lam": 0.5,
        "lr": 0.1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = dict.fromkeys(("target", "by", "order"), checks.optional(checks.text))
        checks.settle(self, **texts, hidden=checks.counts)
        checks.settle(self, columns=checks.optional(lambda name, value: checks.tuple_of(name, value, checks.text)))
        checks.settle(self, target_kind=checks.one_of("auto", "numbers", "classes"))
        if self.data is None or self.target is None:
            raise InputError("data and target are needed: give the tables and the column to predict (--data, --target)")
        self.look()

    def batch(self, ids: Sequence[int]) -> Task | list[Task]:
        """Tasks with inputs in float32; targets in float32, or classes in int64."""
        return self.drawn.batch(ids)

    scales: ClassVar[bool] = True

    def fingerprint(self) -> str:
        """Of every number, target and group."""
        rows = self._all
        return digest(rows.columns, rows.names, rows.groups, rows.items, rows.targets)

    def contents(self) -> Contents:
        """Of the numbers and the target of every row."""
        rows = self._all
        assert isinstance(rows.items, Tensor)
        numbers = torch.cat([rows.items, rows.targets.double().view(len(rows), -1)], 1).numpy()
        groups = rows.groups or [""] * len(rows)
        first = {group: row for row, group in reversed([*enumerate(groups)])}
        sums = [checksum(row.tobytes()) for row in numbers]
        return Contents(groups, sums, lambda row: f"row {row - first[groups[row]] + 1} of {groups[row]!r}")

    def known(self) -> dict[str, Any]:
        """The columns, the names of the classes, the scales of the training groups, and lists of the splits."""
        return {**super().known(), "facts": asdict(self.facts)}

    @cached_property
    def facts(self) -> Facts:
        """What the model and its inputs have of the data."""
        if isinstance(self.data, Remembered):
            return Facts.of(self.data)
        rows, targets = self._training.items, self._training.targets
        assert isinstance(rows, Tensor)
        std = rows.std(0, correction=0)
        mean, std = rows.mean(0), torch.where(std > 0, std, 1.0)
        scale = (0.0, 1.0) if self._all.names else (float(targets.mean()), float(targets.std(correction=0)) or 1.0)
        return Facts(self._all.columns, self._all.names, tuple(mean.tolist()), tuple(std.tolist()), scale)

    @property
    def distinct(self) -> int:
        """The groups of the split: an evaluation is over groups, however few there are."""
        return self.drawn.distinct

    def on(self, path: str | Path) -> TaskSource:
        """The groups of other tables. Raises InputError where they can't be read, or have others columns or classes."""
        return self._grouped(self.examples(path), None, str(path))

    def preprocessing(self) -> Columns:
        """Columns with the means and standard deviations of the training groups."""
        return Columns(self.facts.columns, self.facts.mean, self.facts.std)

    def examples(self, path: str | Path, *, labels: bool = True) -> Examples:
        """Rows, by the columns of the family."""
        columns, names = self.facts.columns, self.facts.names or None
        if labels:
            return read_tables(path, self.target, by=self.by, order=self.order, columns=columns, names=names)
        return read_tables(path, columns=columns)

    reads: ClassVar[tuple[str, ...]] = ("target", "by", "order")
    one_group: ClassVar[bool] = True

    def of_one(self, path: str | Path) -> Self:
        """As it is; or, of a file without the column ``by``, by none: that file is the group."""
        columns = columns_in(checks.path("path", path)) if self.by is not None else ()
        return self if self.by in columns else self.reading(by=None)

    @classmethod
    def items(cls, path: str | Path, preprocessing: Any, **columns: Any) -> Examples:
        """Rows, by the columns of the inputs; others are not looked at."""
        return read_tables(path, columns=checks.instance_of(Columns)("preprocessing", preprocessing).names)

    def model(self) -> nn.Module:
        facts = self.facts
        made = self.made(inputs=len(facts.columns), outputs=len(facts.names) or 1)
        return made if self.network is None or facts.names else Rescaled(made, *facts.target)

    def blueprint(self) -> Blueprint | None:
        if self.network is not None:
            return None
        facts = self.facts
        sizes = [len(facts.columns), *self.hidden, len(facts.names) or 1]
        if facts.names:
            return Blueprint("mlp", {"sizes": sizes, "seed": self.seed})
        mean, std = facts.target
        return Blueprint("rescaled_mlp", {"sizes": sizes, "mean": mean, "std": std, "seed": self.seed})

    @property
    def loss(self) -> ModelLoss:
        return cross_entropy if self.facts.names else ScaledError(self.facts.target[1])

    def baseline(self, model: nn.Module, tasks: Any) -> dict[str, Tensor]:
        """Of numbers, the error of the mean of the support's targets."""
        if self.facts.names:
            return {}
        if isinstance(tasks, Task):
            pairs = list(zip(tasks.support[1], tasks.query[1], strict=True))
        else:
            pairs = [(task.support[1], task.query[1]) for task in tasks]
        errors = [(query - support.mean(0)).square().mean().sqrt() for support, query in pairs]
        return {"error of the support's mean": torch.stack(errors)}

    @property
    def answers(self) -> tuple[str, ...] | None:
        return self.facts.names or None

    def picture(self) -> Picture | None:
        return probabilities("Classes in an unseen group, after adaptation") if self.facts.names else None

    @cached_property
    def _all(self) -> Examples:
        """The rows of all splits."""
        assert self.target is not None
        place = self.place
        return _rows(place, stamp(place), self.target, self.by, self.order, self.columns, self.target_kind)

    @cached_property
    def _of_splits(self) -> dict[str, tuple[str, ...]]:
        return self.of_splits(sorted(set(self._all.groups or ())), None, str(self.place))

    @cached_property
    def _training(self) -> Examples:
        """The rows of the training groups, of which inputs and targets have their scales."""
        groups, chosen = self._all.groups or (), set(self._of_splits["train"])
        return self._all.where([i for i, group in enumerate(groups) if group in chosen])

    @cached_property
    def drawn(self) -> Grouped:
        groups = self._of_splits[self.split]
        return self._grouped(self._all, groups, f"the {self.split} split of {self.place}")

    def _grouped(self, rows: Examples, groups: Sequence[str] | None, what: str) -> Grouped:
        try:
            found = Grouped(
                rows,
                support=self.support,
                queries=self.queries,
                how="random" if self.order is None else "time",
                seed=self.seed,
                groups=groups,
                inputs=self.preprocessing(),
                small="leave out",
            )
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        if found.left_out:
            warn_of(f"{what}: left out, with too few rows: ", found.left_out)
        return found


@lru_cache(maxsize=4)
def _rows(
    place: Path,
    stamp: Any,
    target: str,
    by: str | None,
    order: str | None,
    columns: tuple[str, ...] | None,
    kind: Literal["auto", "numbers", "classes"],
) -> Examples:
    """Every row; classes are those that there are."""
    if kind == "numbers":
        return tell(read_tables(place, target, by=by, order=order, columns=columns))
    found = read_tables(place, target, by=by, order=order, columns=columns, names=())
    numeric = torch.tensor([number(name) is not None for name in found.names], device="cpu")[found.targets]
    if kind == "auto" and 2 * int(numeric.sum()) > len(found):
        return _rows(place, stamp, target, by, order, columns, "numbers")
    return tell(found)
