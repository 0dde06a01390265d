"""One self-contained HTML page about several runs: what differs in settings, learning, results, health and place."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import tensor

from metaprox import checks
from metaprox.errors import InputError
from metaprox.evaluation import Statistic
from metaprox.reports import style
from metaprox.reports.page import Shown, render, told_apart, write_page
from metaprox.reports.run import quantities, show
from metaprox.reports.view import RunView, named
from metaprox.training import RunFolder
from metaprox.training.script import SCRIPT
from metaprox.training.stored import flat

LEGEND = (
    "Query {metric} of unseen test tasks after adaptation: the mean, and its 95 % interval over tasks. Each row is one "
    "run, so that the intervals say nothing of how another seed would turn out: metaprox compare tells methods apart. "
    "The difference to the first run is task by task, where both are tested on the same tasks."
)
CURVES = (
    "Thin: training tasks, mean of 25 meta-steps. With markers: the evaluations during training. Healthy: both go on "
    "getting better, or are level, at a gap that does not widen. Time is that of meta-steps alone; a Hessian-vector "
    "product counts as two gradients."
)
AXES = {"step": "meta-steps", "gradients": "gradient evaluations", "seconds": "seconds of meta-steps"}
COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.BLACK, *style.OTHERS, style.LIGHT_BLUE, style.GREY)


def write_side_by_side(runs: Sequence[str | Path | RunFolder], out: str | Path) -> Path:
    """Write a page about several runs as they stand, finished or not.

    Runs of other tasks, or that are judged by another number, are shown apart; the page says so.

    Args:
        runs: their folders.
        out: the file; one of our pages there is written over.

    Returns:
        The path of the page.

    Raises:
        InputError: a run is given twice, or there is none.
        RunFolderError: a folder is no run, a file in it is damaged, or ``out`` is something else.
    """
    out = checks.path("out", out)
    folders = [one if isinstance(one, RunFolder) else RunFolder.open(checks.path("runs", one)) for one in runs]
    _refuse_doubles(folders)
    views = named(folders)
    groups: dict[tuple[str, ...], list[RunView]] = {}
    for one in views:
        groups.setdefault(_kind(one), []).append(one)
    page = render(
        "runs.html.jinja",
        count=len(views),
        runs=views,
        apart=_apart(list(groups.values())) if len(groups) > 1 else "",
        groups=[_group(own) for own in groups.values()],
    )
    return write_page(out, page)


def _refuse_doubles(folders: Sequence[RunFolder]) -> None:
    if not folders:
        raise InputError("give the folder of a run, or of several")
    seen: dict[str, Path] = {}
    for folder in folders:
        place = os.path.realpath(folder.path)
        if place in seen:
            raise InputError(f"{seen[place]} and {folder.path} are the same run: give each once")
        seen[place] = folder.path


def _kind(run: RunView) -> tuple[str, ...]:
    """Runs of one kind are judged by one number: that of their tasks and, of a script, of its loss."""
    return (run.tasks, run.metric, str(run.settings.get("query_loss", "")))


def _title(run: RunView) -> str:
    return f"{run.tasks}, query {run.metric}"


def _apart(groups: Sequence[Sequence[RunView]]) -> str:
    parts = [f"{_title(own[0])} ({', '.join(one.name for one in own)})" for own in groups]
    return f"{'; '.join(parts)}. Their numbers can't be compared, and each kind has its own table and figure"


def _group(runs: Sequence[RunView]) -> dict[str, Any]:
    metric = runs[0].metric
    differing, alike = told_apart([one.settings for one in runs])
    columns, rows = results_table(runs)
    return {
        "title": _title(runs[0]),
        "unlike": _unlike_tasks(runs),
        "columns": columns,
        "rows": rows,
        "legend": LEGEND.format(metric=metric),
        "figure": Shown.of("Learning against cost", draw(runs), CURVES) if any(one.steps for one in runs) else None,
        "names": [one.name for one in runs],
        "runs": runs,
        "calm": [one.name for one in runs if one.steps and not one.warnings],
        "health": _health(runs),
        "differing": differing,
        "alike": alike,
    }


def _unlike_tasks(runs: Sequence[RunView]) -> str:
    """What differs in the tasks of runs of one family, which makes their results those of other problems."""
    tasks = [flat(own) if isinstance(own := one.configuration["tasks"], dict) else {} for one in runs]
    differing, _ = told_apart(tasks)
    return f"they differ in {', '.join(differing)}, so that results are of other problems" if differing else ""


def _health(runs: Sequence[RunView]) -> list[list[str]]:
    """A row for each number that some run has: what it is, of each run at the start and at the end, and if healthy."""
    own = [{row["quantity"]: row for row in one.health} for one in runs]
    known = {name: row["healthy"] for rows in own for name, row in rows.items()}
    return [
        [name, *(f"{rows[name]['start']} → {rows[name]['end']}" if name in rows else "" for rows in own), healthy]
        for name, healthy in known.items()
    ]


def results_table(runs: Sequence[RunView]) -> tuple[list[str], list[list[str]]]:
    """Returns the header, and a row for each run: how far it is, and what it came to."""
    metric = runs[0].metric
    others = [name for name in _tested(runs) if name != metric]
    header = ["run", "method", "meta-steps", f"{metric} before", f"{metric} after", "difference to the first run"]
    header += [*(f"{name} after" for name in others), "tasks", f"last {metric} during training", "minutes"]
    rows = []
    for one in runs:
        known, total = one.final or {}, one.pace["meta_steps"]
        rows.append(
            [
                one.name,
                one.method,
                f"{one.step} of {total}" + ("" if one.finished else ", not finished"),
                show(metric, one.before[metric]) if one.before and metric in one.before else "n/a",
                show(metric, known[metric]) if metric in known else "not yet",
                "" if one is runs[0] else _difference(one, runs[0], metric),
                *(show(name, known[name]) if name in known else "n/a" for name in others),
                str(known[metric]["n"]) if metric in known else "n/a",
                _last(one, metric),
                one.minutes,
            ]
        )
    return header, rows


def _tested(runs: Sequence[RunView]) -> list[str]:
    return list(dict.fromkeys(name for one in runs if one.final for name in quantities(one.final)))


def _last(run: RunView, metric: str) -> str:
    """The last evaluation during training."""
    if not run.during:
        return "none yet"
    last = run.during[-1]
    return f"{show(metric, last[metric])} ({last['split']}, meta-step {last['step']})"


def _difference(run: RunView, first: RunView, metric: str) -> str:
    """Of the results on each test task to those of another run, where the tasks are known to be the same."""
    if not (run.finished and first.finished):
        return "not yet"
    same = run.configuration["tasks"] == first.configuration["tasks"] and run.pace["seed"] == first.pace["seed"]
    if not same or SCRIPT in (run.configuration.get("made_by"), first.configuration.get("made_by")):
        return "other tasks"
    mine, others = (tensor(one.folder.read_test_values()[metric], device="cpu").double() for one in (run, first))
    if mine.shape != others.shape:
        return "other tasks"
    found = Statistic.of(mine - others)
    text = show(metric, asdict(found))
    return text if found.mean < 0 else f"+{text}"


def draw(runs: Sequence[RunView]) -> Figure:
    """Returns training and validation of each run against meta-steps, gradient evaluations and time."""
    metric = runs[0].metric
    figure = Figure(figsize=(13.5, 4), layout="constrained")
    looks = list(product(("-", "--", ":"), COLORS))
    for axes, (name, label) in zip(figure.subplots(1, 3, sharey=True), AXES.items(), strict=True):
        for index, one in enumerate(one for one in runs if one.steps):
            line, color = looks[index % len(looks)]
            own = one.curves[name]
            axes.plot(own.at, own.training, color=color, linestyle=line, linewidth=0.8, alpha=0.6)
            shown = {"color": color, "linestyle": line, "marker": "o", "markersize": 3.5}
            axes.plot(own.evaluated_at, own.evaluated, label=style.plain(one.name), **shown)
        axes.set_xlabel(label)
        style.tidy(axes, f"{metric.capitalize()} after adaptation against {label}")
        if name != "step":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    left = figure.axes[0]
    left.set_ylabel(f"query {metric} after adaptation")
    if metric == "loss":
        every = [own for one in runs for own in (one.curves["step"].training, one.curves["step"].evaluated)]
        style.loss_scale(left, [value for own in every for value in own])
    return figure
