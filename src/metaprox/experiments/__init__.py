"""The claims about the method, one script each: raw numbers, a figure, checks. ``metaprox reproduce`` runs them."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.experiments"):
    from metaprox.experiments import (
        accuracy,
        bias,
        convergence,
        defaults,
        logistic_accuracy,
        memory,
        normalize,
        sinusoid_stability,
        smoothness,
        tuning,
    )
    from metaprox.experiments.base import Experiment, Outcome, has_results, judge, reproduce
    from metaprox.experiments.report import write_summary

MODULES = (
    convergence,
    bias,
    logistic_accuracy,
    defaults,
    smoothness,
    normalize,
    sinusoid_stability,
    memory,
    tuning,
    accuracy,
)
EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}

__all__ = ["EXPERIMENTS", "Experiment", "Outcome", "has_results", "judge", "reproduce", "write_summary"]
