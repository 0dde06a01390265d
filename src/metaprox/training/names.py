"""The parts that runs are made of, by name; those of one's own are named ``package.module:Class``."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from metaprox import checks, estimators
from metaprox.checks.places import imported
from metaprox.errors import InputError
from metaprox.estimators import Estimator
from metaprox.solvers import Adam, AdaptiveGradientDescent, Anderson, ConjugateGradient, GradientDescent, Nesterov
from metaprox.tasks import Family, families
from metaprox.training.outer import OUTER, Outer


class Parts:
    """Classes of one kind: those that have a name, and what an own one must be.

    ``presets``: names of a class with some of its settings.
    """

    def __init__(
        self,
        kind: str,
        known: Callable[[], Mapping[str, type]],
        fits: Callable[[type], bool],
        what: str,
        presets: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.kind = kind
        self.known = known
        self.presets = dict(presets or {})
        self._fits = fits
        self._what = what

    def names(self) -> tuple[str, ...]:
        return (*self.known(), *self.presets)

    def preset(self, name: str) -> Mapping[str, Any]:
        """The settings that come with a name."""
        return self.presets[name][1] if name in self.presets else {}

    def of(self, name: Any, option: str | None = None) -> type:
        """Return the class of a name; a module of one's own is imported. Raises InputError, listing what there is.

        ``option``: what names the part, where it is not as the kind is called.
        """
        if isinstance(name, str) and ":" in name:
            return self._own(name, option or self.kind)
        checks.choice(option or self.kind, name, self.names())
        return self.known()[self.presets[name][0] if name in self.presets else name]

    def name_of(self, part: type) -> str:
        """Which ``of`` takes. Raises InputError where a class of one's own can't be found by a name."""
        if known := next((name for name, kind in self.known().items() if kind is part), None):
            return known
        name = f"{'__main__' if part.__module__ == '__mp_main__' else part.__module__}:{part.__qualname__}"
        if "<locals>" in name:
            raise InputError(f"{self.kind} {name!r} is defined in a function, where no name leads to it: move it out")
        return name

    def _own(self, name: str, option: str) -> type:
        found = imported(name, option)
        if not isinstance(found, type) or not is_dataclass(found) or not self._fits(found):
            raise InputError(f"{option} {name!r} must be {self._what}, got {checks.shown(found)}")
        if lacking := sorted(getattr(found, "__abstractmethods__", ())):
            raise InputError(f"{option} {name!r} is abstract: it has no {', '.join(lacking)}")
        if "__dataclass_fields__" not in vars(found) and inspect.get_annotations(found):
            raise InputError(f"{option} {name!r} has fields that are no settings: put @dataclass(frozen=True) above it")
        self.name_of(found)
        return found


def _is_solver(kind: type) -> bool:
    return all(callable(getattr(kind, part, None)) for part in ("init", "step"))


def _estimators() -> dict[str, type]:
    found = (getattr(estimators, name) for name in estimators.__all__)
    kinds = [kind for kind in found if issubclass(kind, Estimator) and kind is not Estimator]
    return {kind.__name__.lower(): kind for kind in kinds}


FAMILIES = Parts(
    "tasks",
    families,
    lambda kind: issubclass(kind, Family),
    "a dataclass that is a metaprox.tasks.Family",
)
METHODS = Parts(
    "method",
    _estimators,
    lambda kind: issubclass(kind, Estimator),
    "a dataclass that is a metaprox.Estimator",
)
SOLVERS = Parts(
    "solver",
    lambda: {
        "gd": GradientDescent,
        "nesterov": Nesterov,
        "adam": Adam,
        "anderson": Anderson,
        "adaptive": AdaptiveGradientDescent,
        "conjugate": ConjugateGradient,
    },
    _is_solver,
    "a dataclass with init(y) and step(grad, y, state)",
    {"adam0": ("adam", {"betas": (0.0, 0.999)})},
)
OPTIMIZERS = Parts(
    "optimizer",
    lambda: OUTER,
    lambda kind: issubclass(kind, Outer),
    "a dataclass that is a metaprox.training.Outer",
)
