"""Several methods on the same tasks from the same initial points. Needs what the command line does."""

from metaprox.comparison.cost import Cost, gradient_evaluations, measure, peak_memory
from metaprox.comparison.plan import Budget, Plan
from metaprox.comparison.results import read, recount
from metaprox.comparison.runs import compare, train_or_resume

__all__ = [
    "Budget",
    "Cost",
    "Plan",
    "compare",
    "gradient_evaluations",
    "measure",
    "peak_memory",
    "read",
    "recount",
    "train_or_resume",
]
