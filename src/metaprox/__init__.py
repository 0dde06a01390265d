"""metaprox: meta-learn the parameters of any PyTorch model, with first derivatives only."""

from metaprox import distributed, optim
from metaprox.checking import Check, Finding, check
from metaprox.citing import citation
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
    PeerError,
    RatioWarning,
    RoundingWarning,
    RunFolderError,
    TransductiveWarning,
    UnmovedWarning,
    UnstableError,
)
from metaprox.estimators import (
    FOBMAML,
    FOMAML,
    IMAML,
    MAML,
    Estimator,
    Info,
    MetaGradient,
    Reduce,
    Reptile,
    Tangent,
    TaskGradients,
    Total,
)
from metaprox.estimators.exact import ExactMetaGradient, exact_meta_gradient
from metaprox.estimators.monitor import Monitor
from metaprox.evaluation import Evaluation, Statistic, adapt, evaluate
from metaprox.losses.counts import Counts
from metaprox.modules.head import Head
from metaprox.problem import ProximalProblem
from metaprox.serving import Adapted, Learner, load
from metaprox.solvers import (
    Adam,
    AdaptiveGradientDescent,
    Anderson,
    ConjugateGradient,
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
    "Adapted",
    "AdaptiveGradientDescent",
    "Anderson",
    "AstrayWarning",
    "Check",
    "ConjugateGradient",
    "Counts",
    "Estimator",
    "Evaluation",
    "ExactMetaGradient",
    "Finding",
    "GradientDescent",
    "Head",
    "HealthWarning",
    "InaccurateWarning",
    "IndefiniteWarning",
    "Info",
    "InnerSolver",
    "InputError",
    "Learner",
    "LossWarning",
    "MetaGradient",
    "MetaproxError",
    "MicroBatches",
    "MissingExtraError",
    "Monitor",
    "Nesterov",
    "NonFiniteError",
    "PeerError",
    "ProximalProblem",
    "RatioWarning",
    "Reduce",
    "Reptile",
    "RoundingWarning",
    "RunFolderError",
    "Statistic",
    "Suggestion",
    "Tangent",
    "Task",
    "TaskGradients",
    "TorchOptimizer",
    "Total",
    "TransductiveWarning",
    "UnmovedWarning",
    "UnstableError",
    "adapt",
    "check",
    "citation",
    "distributed",
    "evaluate",
    "exact_meta_gradient",
    "load",
    "optim",
    "suggest",
]

__version__ = "0.1.0"
