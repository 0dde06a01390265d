"""The claims about the method, one script each: raw numbers, a figure, checks. ``metaprox reproduce`` runs them."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.experiments"):
    from metaprox.experiments import bias, logistic_accuracy
    from metaprox.experiments.base import Experiment, Outcome, judge, reproduce
    from metaprox.experiments.report import write_summary

EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in (bias, logistic_accuracy)}

__all__ = ["EXPERIMENTS", "Experiment", "Outcome", "judge", "reproduce", "write_summary"]
