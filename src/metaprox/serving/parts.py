"""The parts of a learner as JSON, and back: solver, loss, preprocessing, model. Nothing of one's own is imported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metaprox import checks, solvers
from metaprox.checks import shown
from metaprox.data.preprocessing import Preprocessing, from_json, to_json
from metaprox.errors import InputError, MissingExtraError, RunFolderError
from metaprox.modules.loss import ModelLoss
from metaprox.serving.blueprint import Blueprint
from metaprox.serving.copies import copied
from metaprox.solvers import InnerSolver

# Functions, and one that is made with a scale.
LOSSES = {
    "cross_entropy": "metaprox.models:cross_entropy",
    "mean_squared_error": "metaprox.models:mean_squared_error",
    "scaled_error": "metaprox.models:ScaledError",
}
SOLVERS = ("Adam", "AdaptiveGradientDescent", "Anderson", "ConjugateGradient", "GradientDescent", "Nesterov")


@contextmanager
def read_as(place: Path) -> Iterator[None]:
    """Around what is made of a file's values: whatever they are not is an error of the file. Raises RunFolderError."""
    try:
        yield
    except (RunFolderError, MissingExtraError):
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise RunFolderError(f"{place} is not what was saved: {what}") from error


def names_of(name: str, value: Any) -> tuple[str, ...]:
    """The names of classes: strings, each another. Raises InputError for anything else."""
    found = checks.tuple_of(name, value, checks.text)
    if len(set(found)) < len(found):
        twice = next(one for i, one in enumerate(found) if one in found[:i])
        raise InputError(f"{name} has {twice!r} twice: each class needs a name of its own")
    return found


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Several strings. Raises InputError for anything else."""
    return checks.tuple_of(name, value, checks.text)


def preprocessing_json(preprocessing: Callable[[Sequence[Any]], Any] | None) -> dict[str, Any] | None:
    """Raises InputError where it is a function of one's own, and no ``Preprocessing``."""
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, Preprocessing):
        raise InputError(
            f"preprocessing {shown(preprocessing)} can't be kept: make it a metaprox.data.preprocessing.Preprocessing, "
            "a dataclass that is registered by a name"
        )
    return to_json(preprocessing)


def preprocessing_from(values: Any) -> Preprocessing | None:
    """What ``preprocessing_json`` described."""
    return None if values is None else from_json(values)


def solver_json(solver: InnerSolver) -> dict[str, Any]:
    """Raises InputError where it is none of the library's own, or made of functions."""
    name = type(solver).__name__
    if getattr(solvers, name, None) is not type(solver) or name not in SOLVERS:
        raise InputError(f"solver {shown(solver)} can't be kept: these can: {', '.join(SOLVERS)}")
    return {"class": name, **asdict(solver)}  # type: ignore[call-overload]


def solver_from(values: Mapping[str, Any]) -> Any:
    """What ``solver_json`` described. Raises InputError for anything else."""
    given = dict(values)
    kind = getattr(solvers, checks.choice("solver", given.pop("class"), SOLVERS))
    if odd := sorted(given.keys() - {field.name for field in fields(kind)}):
        raise InputError(f"{kind.__name__} has no setting {', '.join(odd)}")
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in given.items()})


def loss_json(loss: ModelLoss) -> dict[str, Any] | None:
    """{"name": name, field: value} of one of the library's own; None for another."""
    for name in LOSSES:
        found = _loss(name)
        if loss is found:
            return {"name": name}
        if isinstance(found, type) and type(loss) is found:
            return {"name": name, **asdict(loss)}  # type: ignore[call-overload]
    return None


def loss_of(values: Any, given: ModelLoss | None, place: Path) -> ModelLoss:
    """What ``loss_json`` described, or else the loss that is given. Raises InputError where there is none."""
    if given is not None:
        return given
    if values is None:
        raise InputError(f"{place} is of a learner with a loss of your own: give it, as Learner.load(folder, loss=...)")
    with read_as(place):
        settings = dict(values)
        found = _loss(checks.choice("loss", settings.pop("name"), LOSSES))
        if not isinstance(found, type) and settings:
            raise InputError(f"a loss has no setting {', '.join(settings)}")
        return found(**settings) if isinstance(found, type) else found


def _loss(name: str) -> Any:
    module, _, attribute = LOSSES[name].partition(":")
    return getattr(import_module(module), attribute)


def model_of(
    values: dict[str, Any], given: nn.Module | None, place: Path, tensors: Mapping[str, Tensor]
) -> tuple[Blueprint | None, nn.Module]:
    """Returns how the model is made, and one, from values["model"], which is taken out; or a copy of the one ``given``.

    Raises:
        InputError: a model is needed and not given, or given and not needed.
        RunFolderError: the file says how to make something else.
    """
    described = values.pop("model", None)
    if described is None:
        if given is None:
            raise InputError(
                f"{place} holds weights of a model of your own: give one like it, as load(folder, model=...)"
            )
        return None, copied(checks.instance_of(nn.Module)("model", given))
    with read_as(place):
        blueprint = Blueprint(**described)
        if given is not None:
            raise InputError(f"its model is made by {blueprint.builder}, without what is frozen in it: leave model out")
        _check_size(blueprint, sum(value.numel() for value in tensors.values()))
        return blueprint, blueprint.build()


def _check_size(blueprint: Blueprint, total: int) -> None:
    """Raise InputError where the model is much larger than its weights: no small file is to fill the memory."""
    sizes = blueprint.arguments.get("sizes", ())
    if all(isinstance(one, int) for one in sizes):
        least = sum(a * b for a, b in pairwise(sizes[:-1]))  # the last layer may be made for a task
        if least > total or max(sizes, default=0) > max(total, 2**20):
            raise InputError(f"its model, of sizes {shown(sizes)}, is larger than the weights, of {total} numbers")
