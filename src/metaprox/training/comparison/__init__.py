"""Several methods on the same tasks from the same initial points."""

from metaprox.training.comparison.plan import Budget, Plan
from metaprox.training.comparison.runs import compare

__all__ = ["Budget", "Plan", "compare"]
