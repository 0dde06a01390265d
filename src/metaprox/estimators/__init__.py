"""Meta-gradient estimators, one file per idea, behind one interface."""

from metaprox.estimators.base import Info, MetaGradient
from metaprox.estimators.finite_difference import FOBMAML

__all__ = ["FOBMAML", "Info", "MetaGradient"]
