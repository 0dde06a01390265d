"""Families of tasks, a file each; tasks are pure functions of (seed, split, id). Needs numpy."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.tasks"):
    from metaprox.tasks.banking77 import BANKING77
    from metaprox.tasks.base import Family, Picture, Split, TaskSource
    from metaprox.tasks.known import families
    from metaprox.tasks.mnist1d import MNIST1D
    from metaprox.tasks.quadratic import Quadratic
    from metaprox.tasks.sinusoid import Sinusoid

__all__ = [
    "BANKING77",
    "MNIST1D",
    "Family",
    "Picture",
    "Quadratic",
    "Sinusoid",
    "Split",
    "TaskSource",
    "families",
]
