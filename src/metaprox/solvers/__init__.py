"""Inner solvers: frozen settings with ``init`` and ``step``, one file each. The loop is in ``metaprox.inner.solve``."""

from metaprox.solvers.adam import Adam
from metaprox.solvers.adaptive import AdaptiveGradientDescent
from metaprox.solvers.anderson import Anderson
from metaprox.solvers.conjugate_gradient import ConjugateGradient
from metaprox.solvers.gradient_descent import GradientDescent
from metaprox.solvers.nesterov import Nesterov
from metaprox.solvers.protocol import InnerSolver
from metaprox.solvers.torch_optimizer import TorchOptimizer

__all__ = [
    "Adam",
    "AdaptiveGradientDescent",
    "Anderson",
    "ConjugateGradient",
    "GradientDescent",
    "InnerSolver",
    "Nesterov",
    "TorchOptimizer",
]
