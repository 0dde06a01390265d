"""One self-contained HTML page about a run."""

import statistics
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from metaprox.checks import shown as shown_value
from metaprox.errors import InputError
from metaprox.estimators.monitor import WINDOW
from metaprox.losses.gradients import Counts
from metaprox.reports import style
from metaprox.reports.figures import draw
from metaprox.reports.page import data_url, render, shown
from metaprox.storage.files import damaged
from metaprox.training import RunFolder, Trainer, configuration_of, trainer_of
from metaprox.training.records import tested
from metaprox.training.script import SCRIPT
from metaprox.training.stored import flat


def write_report(folder: RunFolder, trainer: Trainer | None = None) -> Path:
    """Draw the figures of a finished run and write report.html with them and the final table.

    ``trainer``: of a script's run, for the picture of a task, if there is one: a fresh one, with the weights from
    before training; it gets those from after it. A run by settings is made again from its folder.

    Returns:
        The path of the page.

    Raises:
        InputError: ``folder`` is no RunFolder.
        RunFolderError: the run in it has not finished, or lost its metrics.
    """
    if not isinstance(folder, RunFolder):
        raise InputError(f"folder must be a training.RunFolder, got {shown_value(folder)}: RunFolder.open(path)")
    with folder.locked():
        return _write(folder, trainer)


def _write(folder: RunFolder, trainer: Trainer | None) -> Path:
    records = folder.read_finished()
    with damaged(folder.metrics, "the log of a finished run"):
        return _page(folder, trainer, records)


def _page(folder: RunFolder, trainer: Trainer | None, records: list[dict[str, Any]]) -> Path:
    configuration = configuration_of(folder)
    if trainer is None and configuration.get("made_by") != SCRIPT:
        trainer = trainer_of(folder)
    settings = flat(configuration)
    steps = [r for r in records if r["kind"] == "step"]
    figures = draw(folder, records, trainer)
    page = render(
        "run.html.jinja",
        tasks=settings["tasks"],
        pace=configuration["run"],
        meta_steps=steps[-1]["step"],
        steps=settings["steps"],
        perturb=_perturbation(settings),
        settings={name: shown(value) for name, value in settings.items()},
        table=final_table(records),
        transductive=next(r for r in records if r["kind"] == "evaluation")["transductive"],
        figures={caption: data_url(path) for caption, path in figures.items()},
        minutes=f"{steps[-1]['seconds'] / 60:.1f}",
        method=style.method_name(settings["method"].lower()),
        cost=_cost(steps[-1], configuration["run"]["meta_batch"]),
        skipped=folder.tasks_skipped(),
        health=health_table(steps),
        warnings={name: text for step in steps for name, text in step.get("warnings", {}).items()},
    )
    return folder.write_text("report.html", page)


def _perturbation(settings: dict[str, Any]) -> str:
    """What the page says of the difference, where the method has one."""
    if "scheme" not in settings:
        return ""
    corrected = ", residual correction" if settings["residual_correction"] else ""
    return f"; scheme {settings['scheme']}, perturbation of the {settings['perturb']}{corrected}"


def final_table(records: list[dict[str, Any]]) -> list[dict[str, str]]:
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


HEALTH = {
    "gradient_ratio_median": ("length of g by the query gradient's", "below 1; it rises before a run collapses"),
    "relative_error_median": (
        "relative error of g",
        "small where inner problems are solved; 0.7 to 0.9 for networks that adapt in a few steps; below 0.95",
    ),
    "sampling_error": ("standard error of the mean over tasks", "of no harm: more tasks lower it"),
}


def health_table(steps: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each number by which g judges itself: at the start and at the end, medians of 25 meta-steps at most."""
    rows = []
    for name, (quantity, healthy) in HEALTH.items():
        found = [step[name] for step in steps if name in step]
        if found:
            start, end = (f"{statistics.median(part):.2g}" for part in (found[:WINDOW], found[-WINDOW:]))
            rows.append({"quantity": quantity, "start": start, "end": end, "healthy": healthy})
    return rows


def show(name: str, statistic: dict[str, float]) -> str:
    """``61.2 ± 0.8 %`` for an accuracy, ``0.123 ± 0.004`` for anything else."""
    if name.endswith("accuracy"):
        return f"{100 * statistic['mean']:.1f} ± {100 * statistic['ci95']:.1f} %"
    return f"{statistic['mean']:.3f} ± {statistic['ci95']:.3f}"


def _cost(step: dict[str, Any], tasks: int) -> str:
    """What one task of a meta-step costs: ``29 support gradients, 19 query gradients``."""
    names = [field.name for field in fields(Counts) if step[field.name]]
    return ", ".join(f"{step[name] // tasks} {name.replace('_', ' ')}" for name in names)
