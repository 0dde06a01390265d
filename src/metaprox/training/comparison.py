"""Several methods on the same tasks from the same initial points: runs, costs, paired differences."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from metaprox import checks
from metaprox.errors import InputError, NonFiniteError, RunFolderError
from metaprox.evaluation import Statistic
from metaprox.training import loop
from metaprox.training.config import DEFAULTS, TrainConfig
from metaprox.training.cost import Cost, measure
from metaprox.training.folder import RunFolder
from metaprox.training.setup import build

Budget = Literal["steps", "gradients"]


@dataclass(frozen=True)
class Plan:
    """What is compared: a configuration for each label, the seeds, and what is equal for all.

    budget: "steps": equal numbers of inner and outer steps; "gradients": as many meta-steps as the first method's
        gradient evaluations pay for, a Hessian-vector product counted as two.
    """

    configs: dict[str, TrainConfig]
    seeds: tuple[int, ...]
    budget: Budget = "steps"

    @classmethod
    def of(
        cls, shared: TrainConfig, variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], budget: Budget
    ) -> "Plan":
        """``variants``: label -> changes to the shared settings. Raises InputError before any work is done."""
        checks.choice("budget", budget, ("steps", "gradients"))
        if len(variants) < 2:
            raise InputError(f"a comparison needs at least two methods, got {list(variants)}")
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"seeds must be given, each once, got {list(seeds)}")
        for name, remedy in (("seed", "give --seeds"), ("method", "name methods in --methods or --variants")):
            if getattr(shared, name) != DEFAULTS[name]:
                raise InputError(f"{name}={getattr(shared, name)!r} can't be shared by all methods: {remedy}")
        for label, changes in variants.items():
            if not label or set(label) & set("/\\") or label.startswith("."):
                raise InputError(f"{label!r} names a folder: it can't be empty, start with a dot or have slashes")
            if {"seed", "tasks"} & changes.keys():
                raise InputError(f"{label}: seed and tasks are the same for all methods, got {dict(changes)}")
        configs = {label: shared.variant(changes).resolved() for label, changes in variants.items()}
        for config in configs.values():
            build(config)
        return cls(configs, tuple(seeds), budget)

    def with_equal_gradients(self, costs: Mapping[str, Cost]) -> "Plan":
        """The plan with each method's meta-steps such that its gradient evaluations are those of the first."""
        first = next(iter(self.configs))
        if first not in costs:
            raise InputError(f"{first} diverges at the first meta-step, so that its gradients are no budget")
        total = (self.configs[first].meta_steps or 0) * _per_meta_step(self.configs[first], costs[first])
        configs = {
            label: replace(config, meta_steps=max(1, round(total / _per_meta_step(config, costs[label]))))
            if label in costs
            else config
            for label, config in self.configs.items()
        }
        return replace(self, configs=configs)

    def runs(self) -> list[tuple[str, int, TrainConfig]]:
        """(label, seed, configuration) of every run, seed by seed."""
        return [(label, seed, replace(c, seed=seed)) for seed in self.seeds for label, c in self.configs.items()]


def compare(plan: Plan, out: Path, jobs: int = 1, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what ``plan`` says in ``out``/label/seed_N, and write comparison.json. Returns what it holds.

    A comparison that was stopped goes on where it was: finished runs are kept, others resume from their last
    checkpoint. A run that diverges is a result, and is shown as one.

    Args:
        jobs: how many runs at once, each in a process and with the threads of its own.
        say: gets a line after each run.

    Raises:
        RunFolderError: ``out`` holds something else, such as runs with other settings; nothing is touched.
    """
    checks.count("jobs", jobs)
    costs = measure(plan.configs)
    if plan.budget == "gradients":
        plan = plan.with_equal_gradients(costs)
    _check_folder(plan, out)
    failures: dict[str, dict[int, str]] = {label: {} for label in plan.configs}
    runs = plan.runs()
    for done, (label, seed, failure) in enumerate(_run_all(runs, out, jobs), start=1):
        if failure:
            failures[label][seed] = failure
        say(f"run {done} of {len(runs)}: {label}, seed {seed}: {failure or 'done'}")
    results = _collect(plan, costs, failures, out)
    RunFolder(out).write_text("comparison.json", json.dumps(results, indent=2) + "\n")
    return results


def _check_folder(plan: Plan, out: Path) -> None:
    known = {"comparison.json", "report.html", "table.md", "figures", *plan.configs}
    strange = sorted(path.name for path in out.iterdir() if path.name not in known) if out.exists() else []
    if strange:
        raise RunFolderError(f"{out} holds {', '.join(strange)}, which is not of this comparison: choose another --out")
    for label, seed, config in plan.runs():
        place = _place(out, label, seed)
        if not (place / "config.json").exists():
            continue
        there = asdict(RunFolder.open(place).config())
        odd = [f"{n}: {there[n]!r} there, {v!r} here" for n, v in asdict(config).items() if there[n] != v]
        if odd:
            raise RunFolderError(f"{place} is a run with other settings ({'; '.join(odd)}): choose another --out")


def _place(out: Path, label: str, seed: int) -> Path:
    return out / label / f"seed_{seed}"


def _run_all(runs: list[tuple[str, int, TrainConfig]], out: Path, jobs: int) -> Any:
    """(label, seed, failure) of each run as it ends."""
    if jobs == 1:
        for label, seed, config in runs:
            yield label, seed, _run(config, _place(out, label, seed))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, config, _place(out, label, seed)): (label, seed) for label, seed, config in runs}
        for future in as_completed(futures):
            yield *futures[future], future.result()


def _run(config: TrainConfig, place: Path) -> str | None:
    """Start a run, or go on with it; returns why it failed, if it did."""
    try:
        if (place / "checkpoint.safetensors").exists():
            loop.resume(place)
        else:
            _forget_a_run_without_checkpoint(place)
            loop.train(config, place)
    except NonFiniteError as error:
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return None


def _forget_a_run_without_checkpoint(place: Path) -> None:
    """A run that was killed before its first checkpoint left nothing but its configuration."""
    if place.exists() and {path.name for path in place.iterdir()} <= {"config.json", "config.json.partial"}:
        for path in place.iterdir():
            path.unlink()


def _collect(
    plan: Plan, costs: Mapping[str, Cost], failures: Mapping[str, Mapping[int, str]], out: Path
) -> dict[str, Any]:
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
        "gradient_evaluations": _per_meta_step(config, cost) * (config.meta_steps or 0),
        "peak_bytes": cost.peak_bytes,
        "meta_step_seconds": cost.seconds,
        "time_to_first": _seconds(config, cost) / _seconds(plan.configs[first], costs[first])
        if first in costs
        else None,
    }


def _seconds(config: TrainConfig, cost: Cost) -> float:
    return cost.seconds * (config.meta_steps or 0)


def _per_meta_step(config: TrainConfig, cost: Cost) -> int:
    return cost.gradients * (config.meta_batch or 0)


def _test_values(plan: Plan, label: str, failures: Mapping[int, str], out: Path) -> dict[int, dict[str, torch.Tensor]]:
    """seed -> name -> result on each test task, of the runs that finished."""
    finished = [seed for seed in plan.seeds if seed not in failures]
    read = {seed: RunFolder.open(_place(out, label, seed)).read_test_values() for seed in finished}
    return {
        seed: {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
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
            records = RunFolder.open(_place(out, label, seed)).read_metrics()
            evaluations = [r for r in records if r["kind"] == "evaluation"][:-1]  # the last is the final test
            for record in [r for r in evaluations if r["split"] == plan.configs[label].eval_split]:
                rows.setdefault(record["step"], []).append(record[metric]["mean"])
    return [{"step": step, metric: sum(values) / len(values)} for step, values in sorted(rows.items())]
