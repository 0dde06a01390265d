"""Runs of a comparison: what is missing is run, what is there is kept."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.comparison.cost import measure, sent
from metaprox.comparison.plan import FILES, Contender, Plan, run_path
from metaprox.comparison.results import collect
from metaprox.errors import InputError, NonFiniteError, RunFolderError
from metaprox.training import Progress, RunFolder, Trainer, configuration_of
from metaprox.training.stored import different


def compare(
    plan: Plan, out: str | Path, jobs: int = 1, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run what ``plan`` says in ``out``/label/seed_N, and write comparison.json.

    A comparison that was stopped goes on where it was: finished runs are kept, others resume from their last
    checkpoint. A run that diverges is a result, and is shown as one.

    Args:
        plan: the methods, their settings and seeds.
        out: the folder of all runs.
        jobs: how many runs at once, each in a process and with the threads of its own.
        say: gets a line after each run.

    Returns:
        What comparison.json holds.

    Raises:
        InputError: an argument is not of its kind, or several jobs can't get what the plan makes runs with.
        RunFolderError: ``out`` holds something else, such as runs with other settings; nothing is touched.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"plan must be a comparison.Plan, got {checks.shown(plan)}")
    jobs, out = checks.count("jobs", jobs), checks.path("out", out)
    if jobs > 1 and sent(plan) is None:
        raise InputError(
            f"jobs={jobs} makes runs in other processes, which can't get lambdas and functions within functions: give "
            "functions of a module, or jobs=1"
        )
    _refuse_strangers(plan, out)
    costs = measure(plan.contenders, plan.seeds[0])
    if plan.budget == "gradients":
        plan = plan.with_equal_gradients(costs)
    _refuse_other_settings(plan, out)
    failures: dict[str, dict[int, str]] = {label: {} for label in plan.contenders}
    runs = plan.runs()
    for done, (label, seed, failure) in enumerate(_run_all(runs, out, jobs), start=1):
        if failure:
            failures[label][seed] = failure
        say(f"run {done} of {len(runs)}: {label}, seed {seed}: {failure or 'done'}")
    results = collect(plan, costs, failures, out)
    RunFolder(out).write_text("comparison.json", json.dumps(results, indent=2) + "\n")
    return results


def _refuse_strangers(plan: Plan, out: Path) -> None:
    known = {*FILES, *(f"{name}.partial" for name in FILES), *plan.contenders}
    strange = sorted(path.name for path in out.iterdir() if path.name not in known) if out.exists() else []
    if strange:
        raise RunFolderError(f"{out} holds {', '.join(strange)}, which is not of this comparison: choose another --out")


def _refuse_other_settings(plan: Plan, out: Path) -> None:
    for label, seed, contender in plan.runs():
        path = run_path(out, label, seed)
        if not (path / "config.json").exists():
            continue
        if odd := different(configuration_of(RunFolder.open(path)), contender.configuration(seed)):
            raise RunFolderError(f"{path} is a run with other settings ({'; '.join(odd)}): choose another --out")


def _run_all(runs: list[tuple[str, int, Contender]], out: Path, jobs: int) -> Iterator[tuple[str, int, str | None]]:
    """(label, seed, failure) of each run as it ends."""
    if jobs == 1:
        for label, seed, contender in runs:
            yield label, seed, _run(contender, seed, run_path(out, label, seed))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_run, contender, seed, run_path(out, label, seed)): (label, seed)
            for label, seed, contender in runs
        }
        for future in as_completed(futures):
            yield (*futures[future], future.result())


def _run(contender: Contender, seed: int, path: Path) -> str | None:
    """Start a run, or go on with it; returns why it failed, if it did."""
    try:
        train_or_resume(contender.trainer(seed), path)
    except NonFiniteError as error:
        return " ".join([str(error), *getattr(error, "__notes__", ())])
    return None


def train_or_resume(trainer: Trainer, path: Path, watch: Callable[[Progress], None] = lambda progress: None) -> None:
    """Go on with the run in ``path`` from its last checkpoint, or start it where there is none."""
    if (path / "checkpoint.safetensors").exists():
        trainer.resume(path, watch)
    else:
        _forget_a_run_without_checkpoint(path)
        trainer.train(path, watch)


def _forget_a_run_without_checkpoint(path: Path) -> None:
    """A run that was killed before its first checkpoint left nothing but its configuration."""
    if path.exists() and {child.name for child in path.iterdir()} <= {"config.json", "config.json.partial"}:
        for child in path.iterdir():
            child.unlink()
