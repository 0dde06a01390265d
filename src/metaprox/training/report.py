"""One self-contained HTML page about a run."""

import base64
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from metaprox.checks import shown as shown_value
from metaprox.errors import InputError
from metaprox.losses.gradients import Counts
from metaprox.training.figures import draw
from metaprox.training.folder import RunFolder
from metaprox.training.loop import load_weights
from metaprox.training.methods import NAMES
from metaprox.training.setup import build


def write_report(folder: RunFolder) -> Path:
    """Draw the figures of a finished run and write report.html with them and the final table."""
    if not isinstance(folder, RunFolder):
        raise InputError(f"folder must be a training.RunFolder, got {shown_value(folder)}: RunFolder.open(path)")
    config = folder.config()
    setup = build(config)
    initial = {name: p.detach().clone() for name, p in setup.model.named_parameters()}
    load_weights(folder, setup)
    figures = draw(folder, setup, initial)
    records = folder.read_metrics()
    steps = [r for r in records if r["kind"] == "step"]
    page = render(
        "run.html.jinja",
        config=config,
        settings={name: shown(value) for name, value in vars(config).items()},
        table=final_table(records),
        transductive=next(r for r in records if r["kind"] == "evaluation")["transductive"],
        figures={caption: data_url(path) for caption, path in figures.items()},
        minutes=f"{steps[-1]['seconds'] / 60:.1f}",
        method=NAMES[config.method],
        cost=_cost(steps[-1], config.meta_batch or 1),
        skipped=folder.tasks_skipped(),
    )
    return folder.write_text("report.html", page)


def final_table(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each quantity on the test tasks: before and after meta-training, mean and 95 % interval over tasks."""
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    before, after = evaluations[0], evaluations[-1]
    names = [name for name, value in before.items() if isinstance(value, dict)]
    return [
        {
            "quantity": f"query {name}",
            "before": show(name, before[name]),
            "after": show(name, after[name]),
            "n": str(after[name]["n"]),
        }
        for name in sorted(names)
    ]


def show(name: str, statistic: dict[str, float]) -> str:
    """``61.2 ± 0.8 %`` for an accuracy, ``0.123 ± 0.004`` for anything else."""
    if name.endswith("accuracy"):
        return f"{100 * statistic['mean']:.1f} ± {100 * statistic['ci95']:.1f} %"
    return f"{statistic['mean']:.3f} ± {statistic['ci95']:.3f}"


def shown(value: object) -> str:
    """A setting as text."""
    if value is None:
        return "default"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cost(step: dict[str, Any], tasks: int) -> str:
    """What one task of a meta-step costs: ``29 support gradients, 19 query gradients``."""
    names = [field.name for field in fields(Counts) if step[field.name]]
    return ", ".join(f"{step[name] // tasks} {name.replace('_', ' ')}" for name in names)


def render(template: str, **values: Any) -> str:
    """An HTML page from one of the templates; every value is escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("metaprox.training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
