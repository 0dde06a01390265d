"""One self-contained HTML page about a run."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError, MetaproxError, RunFolderError
from metaprox.losses.counts import Counts
from metaprox.reports import style
from metaprox.reports.figures import Drawn, draw
from metaprox.reports.page import Shown, render, write_page
from metaprox.reports.view import RunView
from metaprox.storage.files import damaged
from metaprox.training import RunFolder, Trainer, trainer_of
from metaprox.training.records import tested
from metaprox.training.script import SCRIPT


def write_report(folder: RunFolder, trainer: Trainer | None = None, out: str | Path | None = None) -> Path:
    """Write a page about a run as it stands, finished or not.

    ``trainer``: of a script's run, for the picture of a task, if there is one: a fresh one, with the weights from
    before training; it gets those from after it. A run by settings is made again from its folder. ``out``: the file.
    None: report.html in the run's folder, with the figures of a finished run in the folder figures.

    Returns:
        The path of the page.

    Raises:
        InputError: ``folder`` is no RunFolder.
        RunFolderError: a file of the run is damaged, or ``out`` is something else.
    """
    if not isinstance(folder, RunFolder):
        raise InputError(f"folder must be a training.RunFolder, got {checks.shown(folder)}: RunFolder.open(path)")
    run = RunView.of(folder, with_weights=trainer is None)
    if out is not None or not run.finished:  # which another process may be at work on
        page = _page(run, *_drawn(run, trainer))
        return folder.write_text("report.html", page) if out is None else write_page(checks.path("out", out), page)
    with folder.locked():
        drawn, left_out = _drawn(run, trainer)
        for one in drawn:
            style.save(one.figure, folder.figure(one.file))
        return folder.write_text("report.html", _page(run, drawn, left_out))


def _drawn(run: RunView, trainer: Trainer | None) -> tuple[list[Drawn], str]:
    """The figures, and why there is no picture of a task, where that can't be made again."""
    left_out = ""
    if trainer is None and run.finished and run.configuration.get("made_by") != SCRIPT:
        try:
            if not run.folder.weights.exists():
                raise RunFolderError(f"{run.folder.weights} is not there")
            trainer = trainer_of(run.folder)
        except MetaproxError as error:
            left_out = f"The picture of a task is left out: {error}"
            warnings.warn(f"{run.folder.path}: {left_out}", stacklevel=4)
    with damaged(run.folder.metrics, "the log of a run"):
        return draw(run, trainer), left_out


def _page(run: RunView, drawn: list[Drawn], left_out: str) -> str:
    tested = run.final or run.before
    with damaged(run.folder.metrics, "the log of a run"):
        return render(
            "run.html.jinja",
            run=run,
            perturb=_perturbation(run.settings),
            table=final_table(run.records) if run.finished else interim_table(run),
            transductive=tested["transductive"] if tested else None,
            figures=[Shown.of(one.title, one.figure, one.note) for one in drawn],
            cost=_cost(run.steps[-1], run.pace["meta_batch"]) if run.steps else "",
            health=[list(row.values()) for row in run.health],
            left_out=left_out,
        )


def _perturbation(settings: dict[str, Any]) -> str:
    """What the page says of the difference, where the method has one."""
    if "scheme" not in settings:
        return ""
    corrected = ", residual correction" if settings.get("residual_correction") else ""
    where = "centre" if settings.get("perturb") == "center" else "loss"
    return f"; scheme {settings['scheme']}, perturbation of the {where}{corrected}"


def final_table(records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each quantity on the test tasks: before and after meta-training, mean and 95 % interval over tasks."""
    before, after = tested(records).values()
    return [
        {
            "quantity": f"query {name}",
            "before": show(name, asdict(before[name])) if name in before else "n/a",
            "after": show(name, asdict(after[name])),
            "n": str(after[name].n),
        }
        for name in sorted(after)
    ]


def interim_table(run: RunView) -> list[dict[str, str]]:
    """The same of a run that has not finished: what there is of it."""
    last = run.during[-1] if run.during else {}
    where = f" ({last['split']} tasks, meta-step {last['step']})" if last else ""
    tested = run.before or {}
    return [
        {
            "quantity": f"query {name}",
            "before": show(name, tested[name]) if name in tested else "n/a",
            "after": show(name, last[name]) + where if name in last else "not yet",
            "n": str((tested or last)[name]["n"]) if name in (tested or last) else "n/a",
        }
        for name in quantities(tested or last)
    ]


def quantities(evaluation: Mapping[str, Any]) -> list[str]:
    """The names of what an evaluation has statistics of."""
    return sorted(name for name, value in evaluation.items() if isinstance(value, dict))


def show(name: str, statistic: Mapping[str, float]) -> str:
    """``61.2 ± 0.8 %`` for an accuracy, ``0.123 ± 0.004`` for anything else."""
    if name.endswith("accuracy"):
        return f"{100 * statistic['mean']:.1f} ± {100 * statistic['ci95']:.1f} %"
    return f"{statistic['mean']:.3f} ± {statistic['ci95']:.3f}"


def _cost(step: dict[str, Any], tasks: int) -> str:
    """What one task of a meta-step costs: ``29 support gradients, 19 query gradients``."""
    names = [field.name for field in fields(Counts) if step[field.name]]
    return ", ".join(f"{step[name] // tasks} {name.replace('_', ' ')}" for name in names)
