"""Families of tasks, a file each; tasks are pure functions of (seed, split, id). Needs numpy."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.tasks"):
    from metaprox.tasks.banking77 import BANKING77
    from metaprox.tasks.base import Family, Picture, Split, TaskSource
    from metaprox.tasks.images import Images
    from metaprox.tasks.known import families
    from metaprox.tasks.mnist1d import MNIST1D
    from metaprox.tasks.omniglot import Omniglot
    from metaprox.tasks.quadratic import Quadratic
    from metaprox.tasks.sinusoid import Sinusoid
    from metaprox.tasks.tables import Tables
    from metaprox.tasks.text import Text

__all__ = [
    "BANKING77",
    "MNIST1D",
    "Family",
    "Images",
    "Omniglot",
    "Picture",
    "Quadratic",
    "Sinusoid",
    "Split",
    "Tables",
    "TaskSource",
    "Text",
    "families",
]
