"""One self-contained HTML page about a run."""

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from metaprox.training.figures import draw
from metaprox.training.folder import RunFolder
from metaprox.training.loop import load_weights
from metaprox.training.setup import build


def write_report(folder: RunFolder) -> Path:
    """Draw the figures of a finished run and write report.html with them and the final table."""
    config = folder.config()
    setup = build(config)
    initial = {name: p.detach().clone() for name, p in setup.model.named_parameters()}
    load_weights(folder, setup)
    figures = draw(folder, setup, initial)
    records = folder.read_metrics()
    steps = [r for r in records if r["kind"] == "step"]
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(resources.files("metaprox.training").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        config=config,
        settings={name: _shown(value) for name, value in vars(config).items()},
        table=final_table(records),
        transductive=next(r for r in records if r["kind"] == "evaluation")["transductive"],
        figures={caption: _data_url(path) for caption, path in figures.items()},
        minutes=f"{steps[-1]['seconds'] / 60:.1f}",
        support_gradients=steps[-1]["support_gradients"] // config.meta_batch,
        query_gradients=steps[-1]["query_gradients"] // config.meta_batch,
    )
    return folder.write_text("report.html", page)


def final_table(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each quantity on the test tasks: before and after meta-training, mean and 95 % interval."""
    before, after = (r for r in records if r["kind"] == "evaluation" and r["split"] == "test")
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
    if name == "accuracy":
        return f"{100 * statistic['mean']:.1f} ± {100 * statistic['ci95']:.1f} %"
    return f"{statistic['mean']:.3f} ± {statistic['ci95']:.3f}"


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
