"""Runs of a comparison: what is missing is run, what is there is kept."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.comparison.cost import measure, sent
from metaprox.comparison.plan import FILES, Contender, Plan, run_path
from metaprox.comparison.results import collect, write
from metaprox.errors import InputError, MetaproxError, NonFiniteError, RunFolderError, with_notes
from metaprox.storage.files import is_leftover, naming
from metaprox.training import Progress, RunFolder, Trainer, configuration_of, starts
from metaprox.training.stopping import Asked, Stop, Stopped, stoppable
from metaprox.training.stored import completed, different


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
    with RunFolder(out).made().locked(), stoppable("give the same comparison again") as stop:
        return _compare(plan, out, jobs, say, stop)


def _compare(plan: Plan, out: Path, jobs: int, say: Callable[[str], None], stop: Stop) -> dict[str, Any]:
    try:
        costs = measure(plan.contenders, plan.seeds[0])
        stop.check()
        if plan.budget == "gradients":
            plan = plan.with_equal_gradients(costs)
        _refuse_other_settings(plan, out)
        starts.append(RunFolder(out).starts)
        failures: dict[str, dict[int, str]] = {label: {} for label in plan.contenders}
        runs = plan.runs()
        for done, (label, seed, failure) in enumerate(_run_all(runs, out, jobs, stop), start=1):
            if failure:
                failures[label][seed] = failure
            say(f"run {done} of {len(runs)}: {label}, seed {seed}: {failure or 'done'}")
            stop.check()
    except (Asked, Stopped, MetaproxError) as error:  # the last, where a process that was asked to stop failed of it
        if stop.asked is None:
            raise
        where = error.where if isinstance(error, Stopped) else f"between two runs of the comparison in {out}"
        raise Stopped(stop.asked, where) from None
    results = collect(plan, costs, failures, out)
    write(results, out)
    return results


def _refuse_strangers(plan: Plan, out: Path) -> None:
    """Raise RunFolderError where the folder holds runs of other methods, or none of these and anything else."""
    with naming(out, "read"):
        there = sorted(path for path in out.iterdir() if not is_leftover(path)) if out.exists() else []
        strange = [path for path in there if path.name not in {*FILES, *plan.contenders}]
        if len(strange) < len(there):
            strange = [path for path in strange if any(path.glob("seed_*/config.json"))]
    if strange:
        names = ", ".join(path.name for path in strange)
        raise RunFolderError(f"{out} holds {names}, which is not of this comparison: choose another --out")


def _refuse_other_settings(plan: Plan, out: Path) -> None:
    for label, seed, contender in plan.runs():
        path = run_path(out, label, seed)
        if not (path / "config.json").exists():
            continue
        there, here = completed(configuration_of(RunFolder.open(path))), contender.configuration(seed)
        if odd := different(there, here):
            raise RunFolderError(f"{path} is a run with other settings ({'; '.join(odd)}): choose another --out")


def _run_all(
    runs: list[tuple[str, int, Contender]], out: Path, jobs: int, stop: Stop
) -> Iterator[tuple[str, int, str | None]]:
    """(label, seed, failure) of each run as it ends."""
    if jobs == 1:
        for label, seed, contender in runs:
            yield label, seed, _run(contender, seed, run_path(out, label, seed))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=follow_parent) as pool:
        futures = {
            pool.submit(_run_quietly, contender, seed, run_path(out, label, seed)): (label, seed)
            for label, seed, contender in runs
        }

        def end_all(number: int = signal.SIGTERM) -> None:
            for future in futures:
                future.cancel()
            for child in active_children():
                os.kill(child.pid or 0, signal.SIGTERM)

        stop.forward = end_all
        try:
            for future in as_completed(futures):
                if not future.cancelled():
                    yield (*futures[future], future.result())
        except BaseException:
            if stop.asked is None:  # that of one run is all that is told
                end_all()
            raise


def follow_parent() -> None:
    """In a process that does runs for another: end, once the state is saved, when that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other one gets it too, and passes it on
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _run_quietly(contender: Contender, seed: int, path: Path) -> str | None:
    """``_run`` in a process of its own, which ends with the run where the process that asked for it is gone."""
    try:
        with stoppable(""):
            return _run(contender, seed, path)
    finally:
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)


def _run(contender: Contender, seed: int, path: Path) -> str | None:
    """Start a run, or go on with it; returns why it failed, if it did."""
    try:
        train_or_resume(contender.trainer(seed), path)
    except NonFiniteError as error:
        return with_notes(error)
    return None


def train_or_resume(trainer: Trainer, path: Path, watch: Callable[[Progress], None] = lambda progress: None) -> None:
    """Go on with the run in ``path`` from its last checkpoint, or start it where there is none."""
    if (path / "config.json").exists():
        trainer.resume(path, watch)
    else:
        trainer.train(path, watch)
