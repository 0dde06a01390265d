"""A comparison for people: a table, a figure and one self-contained HTML page."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from metaprox import checks
from metaprox.comparison.statistics import ENOUGH_SEEDS
from metaprox.reports import style
from metaprox.reports.page import Shown, render, told_apart, write_page
from metaprox.training import RunFolder, starts

COLUMNS = {
    "method": "method",
    "test": "unseen tasks, ± over seeds",
    "test_tasks": "± over tasks",
    "difference": "difference, ± over seeds",
    "difference_tasks": "± over tasks",
    "support": "support",
    "query": "query",
    "products": "HVP",
    "memory": "MiB",
    "gradients": "gradients",
    "time": "time",
}
IN_A_TERMINAL = ("method", "test", "test_tasks", "difference", "difference_tasks", "gradients", "time")
LEGEND = (
    "Mean query {metric} after adaptation over {seeds} of training, with two 95 % intervals. Over seeds (Student's t): "
    "whether a method trains better than another. Over tasks: how well the test tasks measure these very runs, and "
    "nothing of how another run would turn out. Difference to the first method, paired by seed and, over tasks, task "
    "by task. Support gradients, query gradients and Hessian-vector products (HVP) per task and meta-step. MiB: peak "
    "memory of tensors in one meta-step. Gradients (an HVP is two) and time of all meta-steps relative to the first "
    "method, time from meta-steps measured in turn."
)
ONE_SEED = " With one seed the interval over seeds is unknown (n/a)."
FEW_SEEDS = f" Fewer than {ENOUGH_SEEDS} seeds are no ground for preferring a method."
DIVERGED = (
    " A seed on which a method diverged counts with its {metric} before meta-training, or with that of the method's "
    "worst seed where that is worse; where the method diverges before meta-training as well, there is no mean. An "
    "interval over tasks needs runs that finished."
)

LEARNING = (
    "Mean over the seeds that finished; at the end the test, with its interval over seeds. Whether a method is better "
    "than the first is told by the differences in the table, not by intervals that overlap. Healthy: curves go on "
    "getting better, or are level at the end; one that turns around has lost hold, or fits its training tasks alone."
)


def write_comparison(results: dict[str, Any], out: Path, page: str | Path | None = None) -> Path:
    """Write table.md, figures/comparison.png and report.html next to comparison.json, or ``page`` alone.

    Returns:
        The page.

    Raises:
        RunFolderError: the folder is in use or can't be written; or ``page`` is something else.
    """
    folder = RunFolder(out)
    figure = draw(results)
    if page is not None:
        return write_page(checks.path("page", page), _page(results, folder, figure))
    with folder.locked():
        folder.write_text("table.md", f"{markdown(comparison_table(results))}\n{legend(results)}\n")
        style.save(figure, folder.figure("comparison.png"))
        return folder.write_text("report.html", _page(results, folder, figure))


def _page(results: dict[str, Any], folder: RunFolder, figure: Figure) -> str:
    first = next(iter(results["methods"].values()))
    differing, alike = told_apart([method["settings"] for method in results["methods"].values()])
    seeds = [str(seed) for seed in results["seeds"]]
    return render(
        "comparison.html.jinja",
        results=results,
        columns=COLUMNS,
        legend=legend(results),
        rows=comparison_table(results),
        shared=first["settings"],
        seeds=f"{'Seeds' if len(seeds) > 1 else 'Seed'} {', '.join(seeds)}",
        starts=starts.read(folder.starts),
        labels=[style.method_name(label) for label in results["methods"]],
        settings=differing,
        alike=alike,
        failures={
            f"{style.method_name(label)}, seed {seed}": why
            for label, method in results["methods"].items()
            for seed, why in method["failures"].items()
        },
        figure=Shown.of("Learning against cost", figure, LEARNING),
    )


def comparison_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each method, by the names of COLUMNS; evaluations are per task and meta-step."""
    metric, first = results["metric"], next(iter(results["methods"].values()))
    rows = []
    for label, method in results["methods"].items():
        difference, failed = method["minus_first"], len(method["failures"])
        test = _over_seeds(metric, method["test"])
        rows.append(
            {
                "method": style.method_name(label),
                "test": test
                + (f" ({failed} of {len(results['seeds'])} seeds diverged)" if failed else "")
                + _skipped(method, len(results["seeds"]) - failed),
                "test_tasks": _over_tasks(metric, method["test"]),
                "difference": _over_seeds(metric, difference["all"], "+") if difference else "",
                "difference_tasks": _over_tasks(metric, difference["all"]) if difference else "",
                **_cost(method["cost"], first["cost"]),
            }
        )
    return rows


def _skipped(method: dict[str, Any], runs: int) -> str:
    count, total = method.get("tasks_skipped", 0), runs * method["meta_steps"] * method["settings"]["meta_batch"]
    return f" ({count} of {total} training tasks skipped)" if count else ""


def _over_seeds(metric: str, estimate: dict[str, Any] | None, sign: str = "-") -> str:
    """``61.2 ± 0.8 %``; n/a for what is not known."""
    if estimate is None:
        return "n/a"
    return f"{_number(metric, estimate['mean'], sign)} ± {_number(metric, estimate['over_seeds'])}{_unit(metric)}"


def _over_tasks(metric: str, estimate: dict[str, Any] | None) -> str:
    return f"± {_number(metric, estimate['over_tasks'])}{_unit(metric)}" if estimate else "n/a"


def _number(metric: str, value: float | None, sign: str = "-") -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:{sign}.1f}" if metric == "accuracy" else f"{value:{sign}.3f}"


def _unit(metric: str) -> str:
    return " %" if metric == "accuracy" else ""


def _cost(cost: dict[str, Any] | None, first: dict[str, Any] | None) -> dict[str, str]:
    if cost is None:
        return dict.fromkeys(("support", "query", "products", "memory", "gradients", "time"), "")
    counts, time = cost["per_task_and_meta_step"], cost["time_to_first"]
    return {
        "support": str(counts["support_gradients"]),
        "query": str(counts["query_gradients"]),
        "products": str(counts["hessian_vector_products"]),
        "memory": f"{cost['peak_bytes'] / 2**20:.1f}",
        "gradients": f"{cost['gradient_evaluations'] / first['gradient_evaluations']:.2f}" if first else "",
        "time": "" if time is None else f"{time:.2f}",
    }


def legend(results: dict[str, Any]) -> str:
    """What the columns of the table mean, and what can't be said by it."""
    metric, count = results["metric"], len(results["seeds"])
    seeds = "one seed" if count == 1 else f"{count} seeds"
    text = LEGEND.format(metric=metric, seeds=seeds)
    text += ONE_SEED if count == 1 else FEW_SEEDS if count < ENOUGH_SEEDS else ""
    failed = any(method["failures"] for method in results["methods"].values())
    return text + (DIVERGED.format(metric=metric) if failed else "")


def markdown(rows: list[dict[str, str]]) -> str:
    """The table as Markdown."""
    return style.markdown(list(COLUMNS.values()), ([row[key] for key in COLUMNS] for row in rows))


def draw(results: dict[str, Any]) -> Figure:
    """Returns a figure of the test metric during training, the mean over the seeds that finished.

    Against gradient evaluations and against time. At the end of each curve the interval over seeds of the final test.
    """
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
                label=_name(results, name),
                **styles[name],
            )
            _final(axes, scale * method["meta_steps"], method["test"], styles[name]["color"])
        axes.set_xlabel(label)
        style.tidy(axes, "")
    left, right = figure.axes
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.set_title(f"{metric.capitalize()} on unseen tasks against what it cost", loc="left", fontsize="medium")
    left.set_ylabel(f"query {metric} after adaptation")
    if metric == "loss":
        style.loss_scale(left, [row[metric] for method in methods.values() for row in method["curve"]])
    right.legend(frameon=False, fontsize="small")
    return figure


def _final(axes: Axes, place: float, test: dict[str, Any] | None, color: str) -> None:
    if test and test["over_seeds"] is not None:
        axes.errorbar([place], [test["mean"]], [test["over_seeds"]], color=color, capsize=3, linewidth=1)


def _name(results: dict[str, Any], label: str) -> str:
    failed = len(results["methods"][label]["failures"])
    return style.plain(style.method_name(label)) + (
        f" ({failed} of {len(results['seeds'])} diverged)" if failed else ""
    )
