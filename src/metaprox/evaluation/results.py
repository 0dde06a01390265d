"""What an evaluation found: means and intervals over tasks, and the tasks' own numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaprox.checks.trees import kind
from metaprox.errors import InputError
from metaprox.modules.company import Company
from metaprox.problem import ProximalProblem


@dataclass(frozen=True)
class Statistic:
    """Mean over n tasks, standard deviation between tasks, and the half-width of the mean's 95 % interval."""

    mean: float
    std: float
    ci95: float
    n: int

    @classmethod
    def of(cls, values: Tensor) -> "Statistic":
        """ci95 = 1.96 std / sqrt(n), the normal approximation; std with n - 1. Both are NaN for n = 1."""
        if not isinstance(values, Tensor) or not values.numel():
            raise InputError(f"values must be a tensor of at least one number, got {kind(values)}")
        n = values.numel()
        std = float(values.double().std()) if n > 1 else math.nan
        return cls(float(values.double().mean()), std, 1.96 * std / math.sqrt(n), n)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.ci95:.2g} (n = {self.n})"


@dataclass(frozen=True)
class Evaluation:
    """What adaptation reaches on a fixed list of n tasks.

    loss: of the query loss after adaptation; metrics: of whatever else it returned. values: the same by name for
    every task [n], in the order of the ids, for paired comparisons. transductive: whether query examples were
    seen together in a way that their predictions depend on each other (None: unknown); transductive_by: the first
    module of the model by which they do, where that is known.
    """

    loss: Statistic
    metrics: dict[str, Statistic]
    values: dict[str, Tensor]
    transductive: bool | None
    transductive_by: str = ""

    @classmethod
    def of(cls, values: dict[str, Tensor], problem: ProximalProblem, seen: Sequence[Company] = ()) -> "Evaluation":
        """Returns it of the query loss of every task, as "loss", and its metrics, all [n].

        ``seen``: what was found of the model; where that is nothing, it is as the ``problem`` has it.
        """
        statistics = {name: Statistic.of(value) for name, value in values.items()}
        loss = statistics.pop("loss")
        if seen:
            return cls(loss, statistics, values, seen[0].depends, seen[0].by if seen[0].depends else "")
        return cls(loss, statistics, values, problem.transductive() if problem.transductive else None)


def check_metric(name: str, values: Any, n: int, known: Mapping[str, Tensor]) -> None:
    """Raise InputError unless ``values`` are a number for each of n tasks, of another name than those ``known``."""
    if name in known:
        raise InputError(f"there is a metric {name!r} already: give this one another name")
    if not isinstance(values, Tensor) or values.shape != (n,):
        raise InputError(f"metric {name!r} must be a tensor of a number for each of {n} tasks, got {kind(values)}")
