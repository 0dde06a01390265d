"""A comparison for people: a table, a figure and one self-contained HTML page."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from metaprox.training import style
from metaprox.training.config import foreign_options
from metaprox.training.folder import RunFolder
from metaprox.training.report import data_url, render, show, shown

COLUMNS = {
    "method": "method",
    "test": "unseen tasks",
    "difference": "difference",
    "support": "support",
    "query": "query",
    "products": "HVP",
    "memory": "MiB",
    "time": "time",
}
LEGEND = (
    "Mean query {metric} after adaptation and its 95 % interval over the test tasks of all seeds. Difference to the "
    "first method, paired on the same tasks. Support gradients, query gradients and Hessian-vector products (HVP) per "
    "task and meta-step. MiB: peak memory of tensors in one meta-step. Time of all meta-steps relative to the first "
    "method, from meta-steps measured in turn."
)


def write_comparison(results: dict[str, Any], out: Path) -> Path:
    """Write table.md, figures/comparison.png and report.html next to comparison.json; returns the page."""
    folder = RunFolder(out)
    rows = comparison_table(results)
    folder.write_text("table.md", f"{markdown(rows)}\n{legend(results)}\n")
    folder.figures.mkdir(exist_ok=True)
    picture = folder.figures / "comparison.png"
    draw(results).savefig(picture, dpi=120)
    first = next(iter(results["methods"].values()))
    page = render(
        "comparison.html.jinja",
        results=results,
        columns=COLUMNS,
        legend=legend(results),
        rows=rows,
        shared=first["settings"],
        settings=_differing_settings(results),
        failures={
            f"{style.method_name(label)}, seed {seed}": why
            for label, method in results["methods"].items()
            for seed, why in method["failures"].items()
        },
        figure=data_url(picture),
    )
    return folder.write_text("report.html", page)


def comparison_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each method, by the names of COLUMNS; evaluations are per task and meta-step."""
    metric = results["metric"]
    rows = []
    for label, method in results["methods"].items():
        difference, failed = (method["minus_first"] or {}).get("all"), len(method["failures"])
        test = show(metric, method["test"]) if method["test"] else "none finished"
        rows.append(
            {
                "method": style.method_name(label),
                "test": test + (f" ({failed} of {len(results['seeds'])} seeds diverged)" if failed else ""),
                "difference": _signed(metric, difference) if difference else "",
                **_cost(method["cost"]),
            }
        )
    return rows


def _cost(cost: dict[str, Any] | None) -> dict[str, str]:
    if cost is None:
        return dict.fromkeys(("support", "query", "products", "memory", "time"), "")
    counts, time = cost["per_task_and_meta_step"], cost["time_to_first"]
    return {
        "support": str(counts["support_gradients"]),
        "query": str(counts["query_gradients"]),
        "products": str(counts["hessian_vector_products"]),
        "memory": f"{cost['peak_bytes'] / 2**20:.1f}",
        "time": "" if time is None else f"{time:.2f}",
    }


def legend(results: dict[str, Any]) -> str:
    """What the columns of the table mean."""
    return LEGEND.format(metric=results["metric"])


def markdown(rows: list[dict[str, str]]) -> str:
    """The table as Markdown."""
    return style.markdown(list(COLUMNS.values()), ([row[key] for key in COLUMNS] for row in rows))


def draw(results: dict[str, Any]) -> Figure:
    """The test metric during training against gradient evaluations and against time."""
    metric = results["metric"]
    methods = {
        label: method
        for label, method in results["methods"].items()
        if method["curve"] and method["cost"] and method["cost"]["time_to_first"]
    }
    styles = style.method_styles(list(methods))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = (
        ("gradient evaluations (a Hessian-vector product is 2)", "gradient_evaluations"),
        ("time (1 = the whole run of the first method)", "time_to_first"),
    )
    for axes, (label, total) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for name, method in methods.items():
            scale = method["cost"][total] / method["meta_steps"]
            axes.plot(
                [row["step"] * scale for row in method["curve"]],
                [row[metric] for row in method["curve"]],
                label=style.method_name(name),
                **styles[name],
            )
        axes.set_xlabel(label)
        style.tidy(axes, "")
    left, right = figure.axes
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_title(f"{metric.capitalize()} on unseen tasks against what it cost", loc="left", fontsize="medium")
    left.set_ylabel(f"query {metric} after adaptation")
    if metric == "loss":
        style.log_scale(left)
    right.legend(frameon=False, fontsize="small")
    return figure


def _signed(metric: str, difference: dict[str, float]) -> str:
    text = show(metric, difference)
    return text if text.startswith("-") else f"+{text}"


def _differing_settings(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """label -> the settings that are not the same for all methods; nothing where a method does not have one."""
    settings = {label: method["settings"] for label, method in results["methods"].items()}
    names = next(iter(settings.values()))
    differing = [name for name in names if len({str(own[name]) for own in settings.values()}) > 1]
    return {
        style.method_name(label): {
            name: "" if name in foreign_options(own["method"]) else shown(own[name]) for name in differing
        }
        for label, own in settings.items()
    }
