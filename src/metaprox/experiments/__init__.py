"""The claims about the method, one script each: raw numbers, a figure, checks. ``metaprox reproduce`` runs them."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.experiments"):
    from metaprox.experiments.base import Experiment, Outcome, has_results, judge, reproduce
    from metaprox.experiments.known import experiment_of, experiments
    from metaprox.experiments.report import write_summary

__all__ = [
    "Experiment",
    "Outcome",
    "experiment_of",
    "experiments",
    "has_results",
    "judge",
    "reproduce",
    "write_summary",
]
