"""What the finished runs of a comparison say: statistics, paired differences, costs, curves."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metaprox.evaluation import Statistic
from metaprox.training.comparison.plan import Plan, per_meta_step, run_path
from metaprox.training.config import TrainConfig
from metaprox.training.cost import Cost
from metaprox.training.folder import RunFolder


def collect(
    plan: Plan, costs: Mapping[str, Cost], failures: Mapping[str, Mapping[int, str]], out: Path
) -> dict[str, Any]:
    """What comparison.json holds. ``failures``: label -> seed -> why a run diverged."""
    labels = list(plan.configs)
    values = {label: _test_values(plan, label, failures[label], out) for label in labels}
    metric = "accuracy" if any("accuracy" in of_seed for of in values.values() for of_seed in of.values()) else "loss"
    methods = {
        label: {
            "settings": asdict(config),
            "meta_steps": config.meta_steps,
            "failures": {str(seed): why for seed, why in failures[label].items()},
            "test": _statistic([of_seed[metric] for of_seed in values[label].values()]),
            "test_by_seed": {str(seed): _statistic([of_seed[metric]]) for seed, of_seed in values[label].items()},
            "minus_first": _paired(values[label], values[labels[0]], metric) if label != labels[0] else None,
            "cost": _cost(plan, label, costs),
            "curve": _curve(plan, label, failures[label], metric, out),
        }
        for label, config in plan.configs.items()
    }
    return {
        "metric": metric,
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "torch": torch.__version__,
        "methods": methods,
    }


def _cost(plan: Plan, label: str, costs: Mapping[str, Cost]) -> dict[str, Any] | None:
    """Of a meta-step and of a whole run; None for a method that diverges at the first meta-step."""
    if label not in costs:
        return None
    config, cost, first = plan.configs[label], costs[label], next(iter(plan.configs))
    return {
        "per_task_and_meta_step": asdict(cost.counts),
        "gradient_evaluations": per_meta_step(config, cost) * (config.meta_steps or 0),
        "peak_bytes": cost.peak_bytes,
        "meta_step_seconds": cost.seconds,
        "time_to_first": _seconds(config, cost) / _seconds(plan.configs[first], costs[first])
        if first in costs
        else None,
    }


def _seconds(config: TrainConfig, cost: Cost) -> float:
    return cost.seconds * (config.meta_steps or 0)


def _test_values(plan: Plan, label: str, failures: Mapping[int, str], out: Path) -> dict[int, dict[str, torch.Tensor]]:
    """seed -> name -> result on each test task, of the runs that finished."""
    finished = [seed for seed in plan.seeds if seed not in failures]
    read = {seed: RunFolder.open(run_path(out, label, seed)).read_test_values() for seed in finished}
    return {
        seed: {name: torch.tensor(column, dtype=torch.float64, device="cpu") for name, column in columns.items()}
        for seed, columns in read.items()
    }


def _statistic(parts: list[torch.Tensor]) -> dict[str, float] | None:
    return asdict(Statistic.of(torch.cat(parts))) if parts else None


def _paired(
    mine: Mapping[int, Mapping[str, torch.Tensor]], first: Mapping[int, Mapping[str, torch.Tensor]], metric: str
) -> dict[str, Any]:
    """Difference to the first method on the same tasks, over the seeds that both finished, and for each of them."""
    differences = {seed: mine[seed][metric] - first[seed][metric] for seed in mine if seed in first}
    return {
        "all": _statistic(list(differences.values())),
        "by_seed": {str(seed): _statistic([difference]) for seed, difference in differences.items()},
    }


def _curve(plan: Plan, label: str, failures: Mapping[int, str], metric: str, out: Path) -> list[dict[str, float]]:
    """Mean over seeds of the evaluations during training, by meta-step."""
    rows: dict[int, list[float]] = {}
    for seed in plan.seeds:
        if seed not in failures:
            records = RunFolder.open(run_path(out, label, seed)).read_metrics()
            evaluations = [r for r in records if r["kind"] == "evaluation"][:-1]  # the last is the final test
            for record in [r for r in evaluations if r["split"] == plan.configs[label].eval_split]:
                rows.setdefault(record["step"], []).append(record[metric]["mean"])
    return [{"step": step, metric: sum(values) / len(values)} for step, values in sorted(rows.items())]
