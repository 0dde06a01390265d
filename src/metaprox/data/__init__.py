"""Tasks, batches of them, and tasks drawn from labelled examples."""

from metaprox.data.classes import split_classes
from metaprox.data.examples import Examples, Problem
from metaprox.data.few_shot import FewShot
from metaprox.data.grouped import Grouped
from metaprox.data.preprocessing import Preprocessing, from_json, register, to_json

__all__ = [
    "Examples",
    "FewShot",
    "Grouped",
    "Preprocessing",
    "Problem",
    "from_json",
    "register",
    "split_classes",
    "to_json",
]
