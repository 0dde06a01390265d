"""How many branch steps, and perturbed where? Variants of FO-B-MAML trained at equal gradient evaluations.

- sinusoid: regression, MLP 1-40-40-1 with ReLU, 25 tasks a meta-step, judged by the query loss.
- MNIST-1D, MLP: 5 ways, 5 shots, MLP 40-24-24-5 with ReLU, 8 tasks a meta-step, judged by accuracy, as the next.
- MNIST-1D, conv: three strided convolutions of 16 channels with batch statistics.

Variants differ in the base steps K, the branch steps J, and where nu enters, and some are FO-MAML; the inner step is
found by AdaptiveGradientDescent() or, where that is said, fixed: 0.01 on sinusoids, 0.1 on MNIST-1D; "conjugate":
branches are solved by ConjugateGradient, whose first trial is that step. lam = 0.5; the step of the difference is the
default one. Each gets 3,000 gradient evaluations a task ("short") and 12,000 ("long"), a support and a query gradient
counting one each, as many meta-steps as these pay for, by normalized SGD with momentum 0.9 and a step that decays
linearly to 0; seeds 0 to 4, counted from the seed given. (quick: sinusoid, two variants, 300 evaluations, two seeds.)

The outer step is tuned for each problem, variant and budget on its own: of 0.05, 0.1 and 0.2 (MNIST-1D: 0.2, 0.4 and
0.8) the best on 200 validation tasks after a run of that budget and of seed 10 + the seed given, which is not among
those compared; while the best is at an edge of what was tried, the next step beyond, of half or twice, is tried too. On
the MLP of MNIST-1D two seeds choose, 10 and 11: by one alone the default's two best steps were half a point apart, and
five on other seeds. Judged on 400 unseen tasks after K inner steps, as in training; a run that diverged counts with its
initial weights. A run is lost where its query loss ends above 3, which is what a network that answers 0 whatever it is
given comes to, or its accuracy below 25 %, where guessing has 20 %. Takes two hours on one core (quick: two minutes).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from metaprox.comparison.statistics import Estimate, OfSeed
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.budgets_settings import TRAININGS, VARIANTS, Training, evaluations, train, variants_of
from metaprox.reports import style

BUDGETS = {"short": 3_000, "long": 12_000}
FARTHEST = 5  # powers of 2 by which an outer step may differ from the problem's
FIRST = "center, K = 10, J = 10"  # the default
OTHERS = ("loss, K = 10, J = 10", "center, K = 10, J = 5")
SEEDS = {"full": 5, "quick": 2}
Rows = list[dict[str, Any]]


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    rows: Rows = []
    for name in list(TRAININGS) if size == "full" else ["sinusoid"]:
        for variant in variants_of(name) if size == "full" else [FIRST, "center, K = 10, J = 2"]:
            rows += rows_of(name, variant, size, seed, remember)
    return {"rows": rows}


def rows_of(name: str, variant: str, size: Size, seed: int, remember: Remember) -> Rows:
    """One for each budget."""
    cost = remember(f"cost_{name}_{variant}", partial(evaluations, name, variant))
    rows: Rows = []
    for budget, total in (BUDGETS if size == "full" else {"short": 300}).items():
        steps, part = total // cost, f"{name}_{variant}_{budget}"
        lr, tried = _outer_step(part, partial(train, name, variant), steps, 10 + seed, TRAININGS[name], remember)
        runs = [
            remember(f"{part}_{lr:g}_{own}", partial(train, name, variant, own, steps, lr, split="test"))
            for own in range(seed, seed + SEEDS[size])
        ]
        rows.append(
            {"problem": name, "variant": variant, "budget": budget, "gradients": cost, "meta_steps": steps}
            | {"outer_step": lr, "tried": tried, "runs": runs}
        )
    return rows


def _outer_step(
    part: str, run_with: Callable[..., Any], steps: int, first: int, training: Training, remember: Remember
) -> tuple[float, dict[str, float]]:
    """The best on validation tasks, and what each came to; more are tried while the best is at an edge."""

    def validated(power: int) -> float:
        lr = training.outer_lr * 2.0**power
        found = [
            remember(f"tuned_{part}_{lr:g}_{own}", partial(run_with, own, steps, lr, split="validation"))
            for own in range(first, first + training.tuning_seeds)
        ]
        values = [-math.inf if one["died"] else training.sign * float(one["result"]["mean"]) for one in found]
        return sum(values) / len(values)

    tried = {power: validated(power) for power in (-1, 0, 1)}
    while True:
        best = max(tried, key=lambda power: tried[power])
        beyond = best - 1 if best == min(tried) else best + 1
        if beyond in tried or abs(beyond) > FARTHEST:
            break
        tried[beyond] = validated(beyond)
    by_step = {training.outer_lr * 2.0**power: tried[power] for power in sorted(tried)}
    return training.outer_lr * 2.0**best, {f"{lr:g}": value for lr, value in by_step.items()}


def _estimate(row: dict[str, Any], first: dict[str, Any] | None = None) -> Estimate:
    """Over the seeds: of the results or, paired by seed, of what they are above those of ``first``."""
    means = [one["result"]["mean"] for one in row["runs"]]
    if first is not None:
        means = [mean - one["result"]["mean"] for mean, one in zip(means, first["runs"], strict=True)]
    return Estimate.of([OfSeed(mean, None, 0) for mean in means])


def _settings(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(problem, budget), each once."""
    return list(dict.fromkeys((row["problem"], row["budget"]) for row in results["rows"]))


def _of(results: dict[str, Any], problem: str, budget: str) -> dict[str, dict[str, Any]]:
    """Variant -> row."""
    return {row["variant"]: row for row in results["rows"] if (row["problem"], row["budget"]) == (problem, budget)}


def _shown(problem: str, estimate: Estimate, sign: str = "-") -> str:
    assert estimate.over_seeds is not None
    if TRAININGS[problem].metric == "accuracy":
        return f"{100 * estimate.mean:{sign}.1f} ± {100 * estimate.over_seeds:.1f} %"
    return f"{estimate.mean:{sign}.3f} ± {estimate.over_seeds:.3f}"


def table(results: dict[str, Any]) -> str:
    """Markdown: a table for each problem and budget."""
    parts = []
    for problem, budget in _settings(results):
        rows = _of(results, problem, budget)
        lines = [
            [
                variant + (f" ({gone} of {len(row['runs'])} lost)" if (gone := lost(row)) else ""),
                _shown(problem, _estimate(row)),
                "" if variant == FIRST else _shown(problem, _estimate(row, rows[FIRST]), "+"),
                str(row["gradients"]),
                str(row["meta_steps"]),
                f"{row['outer_step']:g}",
            ]
            for variant, row in rows.items()
        ]
        title = f"{problem}, {budget}: {TRAININGS[problem].metric} of the query, {BUDGETS[budget]} gradients a task"
        parts.append(f"{title}\n\n{style.markdown(COLUMNS, lines)}")
    return "\n".join(parts)


COLUMNS = ["variant", "unseen tasks, ± over seeds", "difference, paired", "gradients", "meta-steps", "outer step"]


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """Every variant's result with its interval over seeds; a panel for each problem and budget."""
    settings = _settings(results)
    figure = Figure(figsize=(9.5, 2.6 * -(-len(settings) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(settings) // 2), min(2, len(settings)), squeeze=False).flat
    for axes, (problem, budget) in zip(grid, settings, strict=False):
        rows = _of(results, problem, budget)
        for place, (variant, row) in enumerate(rows.items()):
            one = _estimate(row)
            color = style.ORANGE if variant == FIRST else style.GREY if "FO-MAML" in variant else style.BLUE
            axes.errorbar(one.mean, -place, xerr=one.over_seeds, fmt="o", color=color, capsize=3, markersize=5)
        axes.set_yticks([-place for place in range(len(rows))], list(rows), fontsize="small")
        axes.set_xlabel(f"query {TRAININGS[problem].metric} on unseen tasks", fontsize="small")
        style.tidy(axes, f"{problem}, {BUDGETS[budget]:,} gradients")
    return {"training_budgets": figure}


def lost(row: dict[str, Any]) -> int:
    """How many of the runs end no better than a constant."""
    return sum(TRAININGS[row["problem"]].lost(one["result"]["mean"]) for one in row["runs"])


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Returns the runs that are lost after the largest budget, and what the default and the next ones come to."""
    numbers: dict[str, float] = {}
    largest = dict(_settings(results))  # problem -> the last of its budgets
    for problem, budget in largest.items():
        for variant, row in _of(results, problem, budget).items():
            name = f"{problem}, {VARIANTS[variant].kind}: runs lost"
            numbers[name] = numbers.get(name, 0) + lost(row)
    for problem, budget in largest.items():
        rows, metric = _of(results, problem, budget), TRAININGS[problem].metric
        numbers[f"{problem}, {FIRST}: {metric}"] = _estimate(rows[FIRST]).mean
        for other in rows.keys() & set(OTHERS):  # none at quick size
            numbers[f"{problem}, {other}: {metric} above that"] = _estimate(rows[other], rows[FIRST]).mean
    return numbers


CLAIM = (
    "At equal gradients FO-B-MAML trains best at the centre, with as many branch steps as base steps or half as many"
)
EXPERIMENT = Experiment("training-budgets", CLAIM, run, draw, measure, table)
