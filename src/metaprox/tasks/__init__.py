"""Families of tasks, each a pure function of (seed, split, id). Needs the extra ``metaprox[experiments]``."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.tasks"):
    from metaprox.tasks.banking77 import BANKING77
    from metaprox.tasks.base import Split, TaskFamily
    from metaprox.tasks.mnist1d import MNIST1D
    from metaprox.tasks.quadratic import Quadratic
    from metaprox.tasks.sinusoid import Sinusoid

__all__ = ["BANKING77", "MNIST1D", "Quadratic", "Sinusoid", "Split", "TaskFamily"]
