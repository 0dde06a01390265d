"""What a few seeds of training say of a method: a mean, its interval over seeds and, another thing, over test tasks.

The interval over seeds is for the question whether a method trains better than another: a run with another seed of
weights and tasks is another draw. The interval over tasks is for these very runs: how well the test tasks measure them.
It says nothing of how the next run would turn out, however many tasks there are.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metaprox import checks
from metaprox.evaluation import Statistic

ENOUGH_SEEDS = 5  # Fewer are no ground for a recommendation.


@dataclass(frozen=True)
class OfSeed:
    """The result of one run.

    std: over its n test tasks. A run that diverged has n = 0 and no std; its mean is what counts in its place.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "OfSeed":
        """Of the results on every test task [n]."""
        one = Statistic.of(values)
        return cls(one.mean, None if math.isnan(one.std) else one.std, one.n)

    def minus(self, other: "OfSeed", differences: Tensor | None) -> "OfSeed":
        """The difference of two runs of a seed, task by task where both finished."""
        return OfSeed(self.mean - other.mean, None, 0) if differences is None else OfSeed.of(differences)


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and half-widths of its 95 % intervals, None where unknown.

    over_seeds: t(S - 1) s / sqrt(S), for S seeds whose means have the standard deviation s; unknown for one seed.
    over_tasks: 1.96 sqrt(sum_s std_s^2 / n_s) / S; unknown where a run diverged or had a single task. tasks: of all
    seeds together.
    """

    mean: float
    over_seeds: float | None
    over_tasks: float | None
    seeds: int
    tasks: int

    @classmethod
    def of(cls, runs: Sequence[OfSeed]) -> "Estimate":
        """From the result of every seed; every seed weighs the same."""
        count, means = len(runs), [run.mean for run in runs]
        spread = student(count - 1) * statistics.stdev(means) / math.sqrt(count) if count > 1 else None
        squares = [run.std**2 / run.n for run in runs if run.std is not None]
        within = 1.96 * math.sqrt(sum(squares)) / count if len(squares) == count else None
        return cls(statistics.fmean(means), spread, within, count, sum(run.n for run in runs))


def student(freedom: int, level: float = 0.95) -> float:
    """Returns t with P(-t < T < t) = ``level`` for Student's T with ``freedom`` degrees of freedom, an integer >= 1.

    By bisection in the angle atan(t / sqrt(freedom)), in which the probability is a finite sum: Abramowitz & Stegun,
    26.7.3 and 26.7.4.
    """
    checks.count("freedom", freedom)
    checks.fraction("level", level)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _central(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
