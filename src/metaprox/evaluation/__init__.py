"""Adapting to a new task, and judging x by how well adaptation works."""

from metaprox.evaluation.adapting import Solved, adapt, solved
from metaprox.evaluation.judging import Judge, evaluate
from metaprox.evaluation.results import Evaluation, Statistic, check_metric

__all__ = ["Evaluation", "Judge", "Solved", "Statistic", "adapt", "check_metric", "evaluate", "solved"]
