"""``mp.check``: a verdict on a user's own model, losses and settings."""

from metaprox.checking.check import check
from metaprox.checking.findings import Check, Finding

__all__ = ["Check", "Finding", "check"]
