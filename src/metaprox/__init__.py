"""metaprox: meta-learn the parameters of any PyTorch model, with first derivatives only."""

from metaprox import optim
from metaprox.checking import Check, Finding, check
from metaprox.data.microbatches import MicroBatches
from metaprox.data.task import Task
from metaprox.errors import (
    AstrayWarning,
    HealthWarning,
    InaccurateWarning,
    IndefiniteWarning,
    InputError,
    LossWarning,
    MetaproxError,
    MissingExtraError,
    NonFiniteError,
    RatioWarning,
    RoundingWarning,
    RunFolderError,
    UnmovedWarning,
    UnstableError,
)
from metaprox.estimators import FOBMAML, FOMAML, IMAML, MAML, Estimator, Info, MetaGradient, Reptile, Tangent
from metaprox.estimators.exact import ExactMetaGradient, exact_meta_gradient
from metaprox.estimators.monitor import Monitor
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

__all__ = [
    "FOBMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "Adam",
    "AdaptiveGradientDescent",
    "Anderson",
    "AstrayWarning",
    "Check",
    "Counts",
    "Estimator",
    "Evaluation",
    "ExactMetaGradient",
    "Finding",
    "GradientDescent",
    "HealthWarning",
    "InaccurateWarning",
    "IndefiniteWarning",
    "Info",
    "InnerSolver",
    "InputError",
    "LossWarning",
    "MetaGradient",
    "MetaproxError",
    "MicroBatches",
    "MissingExtraError",
    "Monitor",
    "Nesterov",
    "NonFiniteError",
    "ProximalProblem",
    "RatioWarning",
    "Reptile",
    "RoundingWarning",
    "RunFolderError",
    "Statistic",
    "Tangent",
    "Task",
    "TorchOptimizer",
    "UnmovedWarning",
    "UnstableError",
    "adapt",
    "check",
    "evaluate",
    "exact_meta_gradient",
    "optim",
]

__version__ = "0.1.0"
