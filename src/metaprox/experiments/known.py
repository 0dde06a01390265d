"""The experiments that there are: whatever file of this folder ends in an ``EXPERIMENT``."""

import pkgutil
from functools import lru_cache
from importlib import import_module

import metaprox.experiments
from metaprox import checks
from metaprox.checks.places import imported
from metaprox.errors import InputError
from metaprox.experiments.base import Experiment


@lru_cache(maxsize=1)
def experiments() -> dict[str, Experiment]:
    """Name -> experiment, in alphabetical order but for those that come after others."""
    package = metaprox.experiments
    modules = (import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__))
    found = {one.name: one for module in modules if (one := getattr(module, "EXPERIMENT", None)) is not None}
    ordered: dict[str, Experiment] = {}
    for one in found.values():
        _add(one, found, ordered)
    return ordered


def experiment_of(name: str) -> Experiment:
    """By name, or one of one's own: ``package.module:EXPERIMENT``. Raises InputError, listing what there is."""
    if name in experiments():
        return experiments()[name]
    if ":" not in name:
        raise InputError(f"unknown experiment {name!r}; known: all, {', '.join(experiments())}")
    found = imported(name, "experiment")
    if not isinstance(found, Experiment):
        raise InputError(f"experiment {name!r} must be a metaprox.experiments.Experiment, got {checks.shown(found)}")
    return found


def _add(one: Experiment, known: dict[str, Experiment], ordered: dict[str, Experiment]) -> None:
    """Add an experiment after those that it comes after."""
    for before in one.after:
        _add(known[before], known, ordered)
    ordered[one.name] = one
