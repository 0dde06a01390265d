"""Meta-gradient estimators, one file per idea, behind one interface."""

from metaprox.estimators.base import Estimator
from metaprox.estimators.finite_difference import FOBMAML
from metaprox.estimators.first_order import FOMAML, Reptile
from metaprox.estimators.implicit import IMAML
from metaprox.estimators.info import Info
from metaprox.estimators.reduce import Reduce, TaskGradients, Total
from metaprox.estimators.result import MetaGradient
from metaprox.estimators.tangent import Tangent
from metaprox.estimators.unrolled import MAML

__all__ = [
    "FOBMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "Estimator",
    "Info",
    "MetaGradient",
    "Reduce",
    "Reptile",
    "Tangent",
    "TaskGradients",
    "Total",
]
