"""metaprox: meta-learn the parameters of any PyTorch model, with first derivatives only."""

from metaprox import optim
from metaprox.checking import Check, Finding, check
from metaprox.data.microbatches import MicroBatches
from metaprox.data.task import Task
from metaprox.errors import InputError, MetaproxError, MissingExtraError, NonFiniteError, RunFolderError, UnstableError
from metaprox.estimators import FOBMAML, FOMAML, IMAML, MAML, Estimator, Info, MetaGradient, Reptile, Tangent
from metaprox.estimators.exact import ExactMetaGradient, exact_meta_gradient
from metaprox.evaluation import Evaluation, Statistic, adapt, evaluate
from metaprox.losses.gradients import Counts
from metaprox.problem import ProximalProblem
from metaprox.solvers import (
    Adam,
    AdaptiveGradientDescent,
    Anderson,
    GradientDescent,
    InnerSolver,
    Nesterov,
    TorchOptimizer,
)
from metaprox.suggesting import Suggestion, suggest

__all__ = [
    "FOBMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "Adam",
    "AdaptiveGradientDescent",
    "Anderson",
    "Check",
    "Counts",
    "Estimator",
    "Evaluation",
    "ExactMetaGradient",
    "Finding",
    "GradientDescent",
    "Info",
    "InnerSolver",
    "InputError",
    "MetaGradient",
    "MetaproxError",
    "MicroBatches",
    "MissingExtraError",
    "Nesterov",
    "NonFiniteError",
    "ProximalProblem",
    "Reptile",
    "RunFolderError",
    "Statistic",
    "Suggestion",
    "Tangent",
    "Task",
    "TorchOptimizer",
    "UnstableError",
    "adapt",
    "check",
    "evaluate",
    "exact_meta_gradient",
    "optim",
    "suggest",
]

__version__ = "0.1.0"
