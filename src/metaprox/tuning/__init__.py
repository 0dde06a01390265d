"""A search for the settings of a run, on validation tasks. Needs what the command line does, and the extra ``tune``."""

from metaprox.tuning.candidate import COST, Judged, judged_after
from metaprox.tuning.kept import Found, Trial, with_best
from metaprox.tuning.search import OF_THE_RUNGS, Search
from metaprox.tuning.space import Axis, axes_of, shown
from metaprox.tuning.tune import tune

__all__ = [
    "COST",
    "OF_THE_RUNGS",
    "Axis",
    "Found",
    "Judged",
    "Search",
    "Trial",
    "axes_of",
    "judged_after",
    "shown",
    "tune",
    "with_best",
]
