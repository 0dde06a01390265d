"""What a run folder says of a run, finished or not, for pages."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate
from typing import Any

from torch import Tensor

from metaprox.comparison import gradient_evaluations
from metaprox.errors import RunFolderError
from metaprox.losses.counts import Counts
from metaprox.reports import style
from metaprox.reports.health import health_table
from metaprox.reports.page import shown, time_of
from metaprox.storage.files import damaged
from metaprox.storage.lock import holder
from metaprox.training import RunFolder, configuration_of, starts, whole
from metaprox.training.stored import flat

Record = dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run as it stands on disk; nothing is written, and another process may be at work there."""

    folder: RunFolder
    name: str
    configuration: Mapping[str, Any]
    records: Sequence[Record]
    starts: Sequence[Record]
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, folder: RunFolder, name: str = "", *, with_weights: bool = False) -> "RunView":
        """Read it, with its weights if asked. Raises RunFolderError where a file is damaged; names it."""
        ended = folder.weights.exists()
        one = cls(folder, name, configuration_of(folder), folder.read_metrics(), starts.read(folder.starts))
        with damaged(folder.path / "config.json", "the configuration of a run"):
            one._check_configuration()
        weights = whole.check(folder)
        if not one.records and (ended or folder.test_values.exists()):
            raise RunFolderError(f"{folder.metrics} is missing or empty: there is nothing to report")
        if ended and not one._log_ends:
            raise RunFolderError(f"{folder.metrics} is cut short: the run has finished, and its log does not say so")
        with damaged(folder.metrics, "the log of a run"):
            one._check_log()
        if one.finished and one.metric not in folder.read_test_values():
            raise RunFolderError(f"{folder.test_values} is damaged: it has no {one.metric}")
        return replace(one, weights=weights) if with_weights else one

    def _check_configuration(self) -> None:
        """Raise what ``damaged`` takes where something is missing that pages show."""
        if not isinstance(self.tasks, str):
            raise TypeError(f"its tasks are {self.tasks!r}")
        for name in ("seed", "meta_steps", "meta_batch", "eval_split"):
            _ = self.pace[name]
        _ = self.method

    def _check_log(self) -> None:
        """Raise what ``damaged`` takes where a line lacks something that pages show."""
        for one in self.evaluations:
            _ = one["split"], one["transductive"], one[self.metric]
            for value in one.values():
                if isinstance(value, dict):
                    _ = float(value["mean"]), float(value["ci95"]), int(value["n"])
        for name in ("curves", "health", "warnings", "minutes", "skipped"):
            getattr(self, name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return flat(self.configuration)

    @property
    def shown_settings(self) -> dict[str, str]:
        return {name: shown(value) for name, value in self.settings.items()}

    @property
    def pace(self) -> Mapping[str, Any]:
        return self.configuration["run"]

    @property
    def tasks(self) -> str:
        return self.settings["tasks"]

    @property
    def method(self) -> str:
        return style.method_name(str(self.settings["method"]).lower())

    @property
    def seed(self) -> str:
        return f"Seed {self.pace['seed']}"

    @cached_property
    def steps(self) -> list[Record]:
        """Of the meta-steps."""
        return [one for one in self.records if one["kind"] == "step"]

    @cached_property
    def step(self) -> int:
        """How many meta-steps are done."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @cached_property
    def evaluations(self) -> list[Record]:
        """All, in their order."""
        return [one for one in self.records if one["kind"] == "evaluation"]

    @cached_property
    def before(self) -> Record | None:
        """The test before meta-training."""
        first = self.evaluations[:1]
        return first[0] if first and first[0]["step"] == 0 else None

    @cached_property
    def finished(self) -> bool:
        """Whether there are results on test tasks, and the log says so."""
        return self.folder.test_values.is_file() and self._log_ends

    @property
    def _log_ends(self) -> bool:
        """Whether its last lines are the last evaluation during training, and the test after it."""
        last = [one["kind"] for one in self.records[-2:]]
        return last == ["evaluation"] * 2 and self.records[-1]["step"] > 0

    @cached_property
    def final(self) -> Record | None:
        """The test after meta-training."""
        return self.evaluations[-1] if self.finished else None

    @cached_property
    def during(self) -> list[Record]:
        """The evaluations during training."""
        own = [one for one in self.evaluations if one["step"] > 0]
        return own[:-1] if self.finished else own

    @cached_property
    def metric(self) -> str:
        """What a run is judged by first: its accuracy where it has one."""
        known = [*self.records[:1], *self.steps[:1]]
        return "accuracy" if known and all("accuracy" in one for one in known) else "loss"

    @property
    def state(self) -> str:
        """How far it is: ``meta-step 40 of 100, last heard of 2026-03-05 14:02 UTC, in use by process 12 on ...``."""
        text = f"meta-step {self.step} of {self.pace['meta_steps']}"
        if self.folder.metrics.exists():
            heard = datetime.fromtimestamp(os.stat(self.folder.metrics).st_mtime, UTC)
            text += f", last heard of {time_of(heard.isoformat(timespec='seconds'))}"
        who = holder(self.folder.path)
        return f"{text}, {'nobody works there' if who is None else f'in use{who}'}"

    @cached_property
    def minutes(self) -> str:
        return f"{self.steps[-1]['seconds'] / 60:.1f}" if self.steps else "0"

    @cached_property
    def skipped(self) -> int:
        """Training tasks that diverged and were left out."""
        return int(sum(one.get("tasks_skipped", 0) for one in self.steps))

    @cached_property
    def health(self) -> list[dict[str, str]]:
        return health_table(self.steps)

    @cached_property
    def warnings(self) -> dict[str, str]:
        return {str(name): str(text) for one in self.steps for name, text in one.get("warnings", {}).items()}

    @cached_property
    def curves(self) -> dict[str, "Curves"]:
        """By what they are against: meta-steps, gradient evaluations, seconds of meta-steps."""
        spent = accumulate(gradient_evaluations(_counts(one)) for one in self.steps)
        places = {
            "step": {one["step"]: one["step"] for one in self.steps},
            "gradients": {one["step"]: total for one, total in zip(self.steps, spent, strict=True)},
            "seconds": {one["step"]: one["seconds"] for one in self.steps},
        }
        own = {one["step"]: one[self.metric]["mean"] for one in self.during if one["step"] in places["step"]}
        return {
            name: Curves(
                [float(x) for x in place.values()],
                style.smooth([float(one[self.metric]) for one in self.steps]),
                [float(place[step]) for step in own],
                [float(value) for value in own.values()],
            )
            for name, place in places.items()
        }


@dataclass(frozen=True)
class Curves:
    """Training, a mean of 25 meta-steps, and the evaluations during it, against one measure of cost."""

    at: list[float]
    training: list[float]
    evaluated_at: list[float]
    evaluated: list[float]


def _counts(step: Record) -> Counts:
    return Counts(**{field.name: int(step[field.name]) for field in fields(Counts)})


def named(folders: Sequence[RunFolder]) -> list[RunView]:
    """Returns each run, named by as much of the end of its path as tells it from the others.

    Raises:
        RunFolderError: a folder is no run, or a file in it is damaged.
    """
    parts = [folder.path.absolute().parts for folder in folders]
    length = 1
    while max(Counter(one[-length:] for one in parts).values()) > 1 and length < max(map(len, parts)):
        length += 1
    return [RunView.of(one, "/".join(own[-length:])) for one, own in zip(folders, parts, strict=True)]
