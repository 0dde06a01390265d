"""What meta-learning was for: a learner, the models that it adapts to tasks, and both on disk."""

from metaprox.serving.adapted import Adapted, Prediction
from metaprox.serving.blueprint import Blueprint
from metaprox.serving.doors import load
from metaprox.serving.learner import Learner

__all__ = ["Adapted", "Blueprint", "Learner", "Prediction", "load"]
