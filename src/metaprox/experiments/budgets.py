"""How many branch steps, and perturbed where? Variants of FO-B-MAML trained at equal gradient evaluations.

Sinusoid regression, MLP 1-40-40-1 with ReLU, lam = 0.5, 25 tasks a meta-step. Variants differ in the base steps K, the
branch steps J, and where nu enters, and some are FO-MAML; the inner step is found by AdaptiveGradientDescent() or,
where that is said, fixed at 0.01; "conjugate": branches are solved by ConjugateGradient(0.01); the step of the
difference is the default one. Each gets 3,000 gradient evaluations a task ("short") and 12,000 ("long"), a support and
a query gradient counting one each, as many meta-steps as these pay for, by normalized SGD with momentum 0.9 and a step
that decays linearly to 0; seeds 0 to 4, counted from the seed given. (quick: two variants, 300 evaluations, two seeds.)

The outer step is 0.05, 0.1 or 0.2, whichever is best on 200 validation tasks after a short run of seed 10 + the seed
given, which is not among those compared. Judged by the query loss on 400 unseen tasks after K inner steps, as in
training; a run that diverged counts with its initial weights. A run is lost where its query loss ends above 3, which
is what a network that answers 0 whatever it is given comes to. Takes half an hour on one core (quick: one minute).
"""

import math
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from metaprox.comparison.statistics import Estimate, OfSeed
from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.budgets_settings import TRAININGS, VARIANTS, Variant, evaluations, train
from metaprox.reports import style

BUDGETS = {"short": 3_000, "long": 12_000}
FACTORS = (0.5, 1.0, 2.0)
LOST = 3.0
FIRST = next(iter(VARIANTS))
SEEDS = {"full": 5, "quick": 2}
Rows = list[dict[str, Any]]


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    names = list(TRAININGS)
    variants = list(VARIANTS) if size == "full" else [FIRST, "center, K = 10, J = 2"]
    budgets = BUDGETS if size == "full" else {"short": 300}
    rows: Rows = []
    for name in names:
        for variant in variants:
            cost = remember(f"cost_{name}_{variant}", partial(evaluations, name, variant))
            lr, tried = _outer_step(name, variant, budgets["short"] // cost, 10 + seed, remember)
            for budget, total in budgets.items():
                steps = total // cost
                runs = [
                    remember(
                        f"{name}_{variant}_{budget}_{own}", partial(train, name, variant, own, steps, lr, split="test")
                    )
                    for own in range(seed, seed + SEEDS[size])
                ]
                rows.append(
                    {"problem": name, "variant": variant, "budget": budget, "gradients": cost, "meta_steps": steps}
                    | {"outer_step": lr, "tried": tried, "runs": runs}
                )
    return {"rows": rows}


def _outer_step(
    name: str, variant: str, meta_steps: int, seed: int, remember: Remember
) -> tuple[float, dict[str, float]]:
    """The best on validation tasks, and what each came to."""
    training = TRAININGS[name]
    tried = {}
    for factor in FACTORS:
        lr = factor * training.outer_lr
        one = remember(
            f"tuned_{name}_{variant}_{factor}", partial(train, name, variant, seed, meta_steps, lr, split="validation")
        )
        tried[lr] = -math.inf if one["died"] else training.sign * one["result"]["mean"]
    return max(tried, key=lambda lr: tried[lr]), {f"{lr:g}": value for lr, value in tried.items()}


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
        style.tidy(axes, f"{problem}, {BUDGETS[budget]} gradients a task")
    return {"training_budgets": figure}


def lost(row: dict[str, Any]) -> int:
    """How many of the runs end no better than a constant."""
    return sum(one["result"]["mean"] > LOST for one in row["runs"])


def measure(results: dict[str, Any]) -> dict[str, float]:
    """Runs that are lost after the largest budget, by kind of variant, and what the default comes to."""
    problem, budget = _settings(results)[-1]
    rows = _of(results, problem, budget)
    numbers: dict[str, float] = {}
    for variant, row in rows.items():
        name = f"{_kind(VARIANTS[variant])}: runs lost"
        numbers[name] = numbers.get(name, 0) + lost(row)
    return numbers | {f"{FIRST}: query loss": _estimate(rows[FIRST]).mean}


def _kind(variant: Variant) -> str:
    if "branch_steps" not in variant.settings:
        return "FO-MAML"
    if variant.conjugate:
        return "conjugate branches"
    few = 2 * variant.settings["branch_steps"] < variant.steps
    return ("J < K / 2" if few else "J >= K / 2") + (", fixed step" if variant.fixed else "")


CLAIM = "Branches of half as many steps as the base lose no runs; FO-MAML and branches of fewer, on long steps, do"
EXPERIMENT = Experiment("training-budgets", CLAIM, run, draw, measure, table)
