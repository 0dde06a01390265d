"""Whatever a folder holds: a run, a learner, an adapted model."""

from importlib import import_module
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import RunFolderError
from metaprox.serving import adapted, disk, learner
from metaprox.serving.adapted import Adapted
from metaprox.serving.learner import Learner

RUNS = "metaprox.training"  # above this room: imported where a run is loaded


def load(folder: str | Path) -> Learner | Adapted:
    """Returns the learner of a finished run, with its meta-learned weights; or what was saved in the folder.

    Reading a saved learner or adapted model runs no code of the folder's. A run of classes of your own imports their
    modules, as ``metaprox evaluate`` does.

    Raises:
        RunFolderError: the folder holds neither, or is damaged; or the run has not finished, or is that of a script.
        InputError: it needs a model or a loss of your own: ``Learner.load``, ``Adapted.load``.
    """
    place = checks.path("folder", folder)
    if disk.holds(place, learner.NAME):
        return Learner.load(place)
    if disk.holds(place, adapted.NAME):
        return Adapted.load(place)
    if not disk.holds(place, "config"):
        raise RunFolderError(f"{place} holds no run, no saved learner and no adapted model")
    found: Any = import_module(RUNS).learner_of(place)
    assert isinstance(found, Learner)
    return found
