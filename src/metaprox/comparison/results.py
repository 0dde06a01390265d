"""What the runs of a comparison say: means and intervals, paired differences, costs, curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaprox import checks
from metaprox.comparison.cost import Cost
from metaprox.comparison.plan import Contender, Plan, per_meta_step, run_path
from metaprox.comparison.statistics import Estimate, OfSeed
from metaprox.errors import RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import damaged, json_of, read_bytes, text_of
from metaprox.training import RunFolder
from metaprox.training.stored import flat

Failures = Mapping[str, Mapping[int, str]]  # label -> seed -> why the run diverged


@dataclass(frozen=True)
class Runs:
    """The runs of one method. values: seed -> result on each test task, of those that finished.

    before: seed -> mean over the test tasks before meta-training, of those that diverged; None where that diverged too.
    """

    values: dict[int, Tensor]
    before: dict[int, float | None]

    def by_seed(self, metric: str) -> dict[int, OfSeed] | None:
        """Returns the result of every seed; None where not even the initial weights of one that diverged have one.

        That one counts as the worse of two: the initial weights, which are what is left of it, and the worst seed that
        finished, so that no method gains from diverging.
        """
        done = {seed: OfSeed.of(values) for seed, values in self.values.items()}
        worst = min if metric == "accuracy" else max
        for seed, before in self.before.items():
            if before is None:
                return None
            done[seed] = OfSeed(worst([before, *(OfSeed.of(values).mean for values in self.values.values())]), None, 0)
        return dict(sorted(done.items()))


def collect(plan: Plan, costs: Mapping[str, Cost], failures: Failures, out: Path) -> dict[str, Any]:
    """What comparison.json holds."""
    labels = list(plan.contenders)
    metric = _metric(plan, out)
    runs = {label: _runs(plan, label, failures[label], metric, out) for label in labels}
    methods = {
        label: {
            "settings": flat(contender.configuration(plan.seeds[0])),
            "meta_steps": contender.pace.meta_steps,
            "failures": {str(seed): why for seed, why in failures[label].items()},
            **statistics(runs[label], runs[labels[0]] if label != labels[0] else None, metric),
            "cost": _cost(plan, label, costs),
            "curve": _curve(plan, label, failures[label], metric, out),
            "tasks_skipped": _skipped(plan, label, failures[label], out),
        }
        for label, contender in plan.contenders.items()
    }
    return {
        "metric": metric,
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "torch": torch.__version__,
        "methods": methods,
    }


def _metric(plan: Plan, out: Path) -> str:
    """What is compared: accuracy, where all runs have that, and else the loss."""
    folders = (RunFolder(run_path(out, label, seed)) for label, seed, _ in plan.runs())
    first = [records[0] for folder in folders if (records := folder.read_metrics())]
    return "accuracy" if first and all("accuracy" in record for record in first) else "loss"


def recount(results: Mapping[str, Any], out: str | Path) -> dict[str, Any]:
    """Returns the same with means and intervals taken anew from the test_tasks.json of every run in ``out``.

    Costs and curves stay, and so does what diverged runs had before training: it needs neither weights nor metrics.

    Raises:
        RunFolderError: a result is missing.
    """
    metric, seeds, out = results["metric"], results["seeds"], checks.path("out", out)
    runs = {label: _kept(method, label, seeds, metric, out) for label, method in results["methods"].items()}
    first = next(iter(runs))
    methods = {
        label: method | statistics(runs[label], runs[first] if label != first else None, metric)
        for label, method in results["methods"].items()
    }
    return {**results, "methods": methods}


def _kept(method: Mapping[str, Any], label: str, seeds: Sequence[int], metric: str, out: Path) -> Runs:
    """The runs of a method from what was kept of them; ``method``: its part of comparison.json."""
    failed = [seed for seed in seeds if str(seed) in method["failures"]]
    known = method.get("before", {})
    return Runs(
        {seed: _values(out, label, seed, metric) for seed in seeds if seed not in failed},
        {seed: known.get(str(seed)) or _before(run_path(out, label, seed), metric) for seed in failed},
    )


def write(results: Mapping[str, Any], out: Path) -> None:
    """Keep ``results`` as comparison.json in ``out``, with their SHA-256."""
    RunFolder(out).write_text("comparison.json", json.dumps(checksums.sealed(results), indent=2) + "\n")


def read(out: str | Path) -> dict[str, Any]:
    """What comparison.json in ``out`` holds. Raises RunFolderError where there is none, or it is damaged."""
    place = checks.path("out", out) / "comparison.json"
    if not place.is_file():
        raise RunFolderError(f"{out} is not the folder of a finished comparison: it has no comparison.json")
    results: dict[str, Any] = json_of(place, text_of(place, read_bytes(place)))
    if not isinstance(results, dict) or not {"metric", "seeds", "methods"} <= results.keys():
        raise RunFolderError(f"{place} is not the comparison.json of a comparison")
    return checksums.unsealed(place, results)


def statistics(mine: Runs, first: Runs | None, metric: str) -> dict[str, Any]:
    """The result of a method and its difference to the first one, which are pairs of runs of equal seed."""
    own = mine.by_seed(metric)
    return {
        "before": {str(seed): before for seed, before in mine.before.items()},
        "test": _estimate(own),
        "test_by_seed": _as_json(own),
        "minus_first": _paired(mine, first, metric) if first else None,
    }


def _paired(mine: Runs, first: Runs, metric: str) -> dict[str, Any]:
    own, others, differences = mine.by_seed(metric), first.by_seed(metric), None
    if own and others:
        both = mine.values.keys() & first.values.keys()
        tasks = {seed: mine.values[seed] - first.values[seed] for seed in both}
        differences = {seed: own[seed].minus(others[seed], tasks.get(seed)) for seed in own}
    return {"all": _estimate(differences), "by_seed": _as_json(differences)}


def _estimate(by_seed: Mapping[int, OfSeed] | None) -> dict[str, Any] | None:
    return asdict(Estimate.of(list(by_seed.values()))) if by_seed else None


def _as_json(by_seed: Mapping[int, OfSeed] | None) -> dict[str, Any]:
    return {str(seed): asdict(one) for seed, one in (by_seed or {}).items()}


def _runs(plan: Plan, label: str, failures: Mapping[int, str], metric: str, out: Path) -> Runs:
    finished = [seed for seed in plan.seeds if seed not in failures]
    return Runs(
        {seed: _values(out, label, seed, metric) for seed in finished},
        {seed: _before(run_path(out, label, seed), metric) for seed in failures},
    )


def _values(out: Path, label: str, seed: int, metric: str) -> Tensor:
    folder = RunFolder.open(run_path(out, label, seed))
    with damaged(folder.test_values, f"the results of a run with a {metric}"):
        return torch.tensor(folder.read_test_values()[metric], dtype=torch.float64, device="cpu")


def _before(path: Path, metric: str) -> float | None:
    """The mean over the test tasks before meta-training, with which a run begins its log; None where that diverged."""
    folder = RunFolder.open(path)
    records = folder.read_metrics()
    found = [record[metric]["mean"] for record in records if record["kind"] == "evaluation" and record["step"] == 0]
    return float(found[0]) if found else None


def _cost(plan: Plan, label: str, costs: Mapping[str, Cost]) -> dict[str, Any] | None:
    """Of a meta-step and of a whole run; None for a method that diverges at the first meta-step."""
    if label not in costs:
        return None
    one, cost, first = plan.contenders[label], costs[label], next(iter(plan.contenders))
    return {
        "per_task_and_meta_step": asdict(cost.counts),
        "gradient_evaluations": per_meta_step(one.pace, cost) * one.pace.meta_steps,
        "peak_bytes": cost.peak_bytes,
        "meta_step_seconds": cost.seconds,
        "time_to_first": _seconds(one, cost) / _seconds(plan.contenders[first], costs[first])
        if first in costs
        else None,
    }


def _skipped(plan: Plan, label: str, failures: Mapping[int, str], out: Path) -> int:
    """Training tasks left out because they diverged, over the seeds that finished."""
    finished = [seed for seed in plan.seeds if seed not in failures]
    return sum(RunFolder.open(run_path(out, label, seed)).tasks_skipped() for seed in finished)


def _seconds(one: Contender, cost: Cost) -> float:
    return cost.seconds * one.pace.meta_steps


def _curve(plan: Plan, label: str, failures: Mapping[int, str], metric: str, out: Path) -> list[dict[str, float]]:
    """Mean over the seeds that finished of the evaluations during training, by meta-step."""
    rows: dict[int, list[float]] = {}
    for seed in plan.seeds:
        if seed not in failures:
            records = RunFolder.open(run_path(out, label, seed)).read_metrics()
            evaluations = [r for r in records if r["kind"] == "evaluation"][:-1]  # the last is the final test
            for record in [r for r in evaluations if r["split"] == plan.contenders[label].pace.eval_split]:
                rows.setdefault(record["step"], []).append(record[metric]["mean"])
    return [{"step": step, metric: sum(values) / len(values)} for step, values in sorted(rows.items())]
