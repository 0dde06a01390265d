"""``mp.suggest``: a first guess of lam, inner step and steps, from what a few tasks show."""

from metaprox.suggesting.suggest import suggest
from metaprox.suggesting.suggestion import Suggestion, Tried

__all__ = ["Suggestion", "Tried", "suggest"]
