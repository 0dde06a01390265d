"""Settings of a method by successive halving: many candidates for a few meta-steps, the best of them for more.

Candidates are the same points of the unit cube for every method, a scrambled Sobol sequence, each method with a map of
its own from the cube to its settings. A candidate that goes on does so from where it stopped, under the schedule of the
whole run, so that the last rung is the run that the comparison makes. Source: Jamieson & Talwalkar, arXiv 1502.07943.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch.quasirandom import SobolEngine

from metaprox.experiments.base import Remember
from metaprox.training import Composition, Settings
from metaprox.tuning import COST, judged_after

Interval = tuple[float, float]
Row = dict[str, Any]
AXES = 6  # inner step, lam, outer optimizer, outer step, inner steps, a setting of the method's own


@dataclass(frozen=True)
class Space:
    """The settings that a method is tuned over.

    inner_lr, lam, outer (optimizer -> step) and own intervals are searched on a log scale, steps and own tuples of
    whole numbers by choice. no_lam: a quarter of the candidates have lam = 0, for methods that can do without.
    """

    fixed: dict[str, Any]
    inner_lr: Interval = (0.03, 0.6)
    lam: Interval = (0.01, 1.0)
    no_lam: bool = False
    steps: tuple[int, ...] = (5, 10, 20)
    outer: dict[str, Interval] = field(default_factory=lambda: {"normalized": (0.05, 0.8), "adam": (3e-4, 5e-3)})
    own: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def candidates(self, count: int, seed: int) -> list[dict[str, Any]]:
        """The settings at ``count`` points; equal points for equal count and seed, whatever the method."""
        points = SobolEngine(AXES, scramble=True, seed=seed).draw(count).tolist()
        return [self._at(*point) for point in points]

    def _at(self, inner: float, lam: float, optimizer: float, outer: float, steps: float, own: float) -> dict[str, Any]:
        chosen = _choice(tuple(self.outer), optimizer)
        return self.fixed | {
            "inner_lr": _log(self.inner_lr, inner),
            "lam": self._lam(lam),
            "optimizer": chosen,
            "lr": _log(self.outer[chosen], outer),
            "steps": _choice(self.steps, steps),
            **{name: self._own(values, own) for name, values in self.own.items()},
        }

    def _lam(self, u: float) -> float:
        if not self.no_lam:
            return _log(self.lam, u)
        return 0.0 if u < 0.25 else _log(self.lam, (u - 0.25) / 0.75)

    def _own(self, values: tuple[float, ...], u: float) -> float:
        if all(isinstance(value, int) for value in values):
            return int(_choice(values, u))
        low, high = values
        return _log((low, high), u)


def _choice(values: tuple[Any, ...], u: float) -> Any:
    return values[min(int(u * len(values)), len(values) - 1)]


def _log(interval: Interval, u: float) -> float:
    """At u in [0, 1) of an interval on a log scale, with two digits."""
    low, high = map(math.log, interval)
    return float(f"{math.exp(low + u * (high - low)):.2g}")


@dataclass(frozen=True)
class Halving:
    """counts[i] candidates are judged after rungs[i] meta-steps; the last of ``rungs`` is a whole run."""

    counts: tuple[int, ...]
    rungs: tuple[int, ...]

    def meta_steps(self) -> int:
        """What the search takes for each method: a candidate that goes on does not begin again."""
        begun = (0, *self.rungs)
        return sum(count * (rung - before) for count, rung, before in zip(self.counts, self.rungs, begun, strict=False))

    def search(self, label: str, space: Space, shared: Settings, remember: Remember) -> list[Row]:
        """A row for every candidate of a method: its settings, and what was found after each rung that it ran to."""
        often = self.rungs[0]
        shared = shared.but(meta_steps=self.rungs[-1], eval_every=often, checkpoint_every=often)
        rows: list[Row] = [
            {"method": label, "settings": settings, "rungs": []}
            for settings in space.candidates(self.counts[0], shared.given.get("seed", 0))
        ]
        for count, rung in zip(self.counts, self.rungs, strict=True):
            for row in best(rows, count):
                name = f"{label}_{rows.index(row)}"
                config = shared.variant(row["settings"]).composition()
                run = remember.folder / "parts" / f"{remember.run}_{name}"
                row["rungs"].append(remember(f"{name}_{rung}", partial(judge, config, run, rung)))
        return rows


def best(rows: Sequence[Row], count: int) -> list[Row]:
    """The ``count`` rows that ran furthest and, of those, were most accurate at the end; of equal ones, the first."""
    return sorted(rows, key=lambda row: (len(row["rungs"]), accuracy(row)), reverse=True)[:count]


def accuracy(row: Row) -> float:
    """On the validation tasks, where the candidate stopped."""
    return float(row["rungs"][-1]["validation_accuracy"]) if row["rungs"] else 0.0


def judge(config: Composition, path: Path, rung: int) -> dict[str, float]:
    """Returns accuracy on validation tasks after ``rung`` meta-steps of the run in ``path``, and cost.

    One that diverged has accuracy 0, and the cost until then.
    """
    found = judged_after(config, path, rung)
    cost = {name: getattr(found, name) for name in COST}
    return {"validation_accuracy": 0.0 if found.failure else found.values["accuracy"], **cost}


def validation_accuracy(config: Composition) -> float:
    """On ``eval_tasks`` validation tasks at the end of a run, which leaves nothing; 0 for one that diverged."""
    meta_steps = config.pace.meta_steps
    config = config.but(eval_every=meta_steps, checkpoint_every=meta_steps)
    with tempfile.TemporaryDirectory() as folder:
        return judge(config, Path(folder) / "run", meta_steps)["validation_accuracy"]


def best_candidates(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """method -> the settings ``names`` of the row with its highest validation accuracy; of equal ones, the last."""
    ordered = sorted(rows, key=lambda row: row["validation_accuracy"])
    return {row["method"]: {name: row[name] for name in names} for row in ordered}
