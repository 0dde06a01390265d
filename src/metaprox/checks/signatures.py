"""Checks of the functions that users give: that they are functions, and take what they will be called with."""

import inspect
from typing import Any

from torch import nn

from metaprox.checks import shown
from metaprox.errors import InputError


def function(name: str, value: Any, arguments: str, remedy: str = "", *, classes: bool = False) -> None:
    """``value`` can be called with ``arguments``, such as "model, batch", and is no function or module of torch.nn.

    Raises:
        InputError: it is something else. ``remedy`` ends the message.
    """
    count = len(arguments.split(",")) if arguments else 0
    known = callable(value) and (classes or not isinstance(value, type)) and not _of_torch(value)
    if not known or not _binds(value, count):
        raise InputError(f"{name} must be a function of ({arguments}), got {shown(value)}{remedy and ': '}{remedy}")


def getter(name: str, value: Any) -> Any:
    """Returns ``value``, which can be called without arguments."""
    function(name, value, "", f"such as lambda: {name}, called whenever it is needed")
    return value


def loss_of_parameters(name: str, value: Any) -> None:
    """``value`` can be a loss (params, data) -> scalar, and is not a model or a loss of torch."""
    remedy = "of a model, make a problem with mp.ProximalProblem.from_module(model, loss, lam)"
    function(name, value, "params, data", remedy)


def loss_of_model(name: str, value: Any) -> None:
    """``value`` can be a loss (model, batch) -> scalar, and is not a loss of (outputs, targets)."""
    remedy = "it calls the model, as lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])"
    function(name, value, "model, batch", remedy)


def module(name: str, value: Any, remedy: str = "") -> None:
    """``value`` is a module."""
    if not isinstance(value, nn.Module):
        raise InputError(f"{name} must be a torch.nn.Module, got {shown(value)}{remedy and ': '}{remedy}")


def _of_torch(value: Any) -> bool:
    """A loss, layer or function of torch.nn, which takes tensors."""
    place = type(value).__module__ if isinstance(value, nn.Module) else getattr(value, "__module__", None)
    return str(place).startswith("torch.nn.")


def _binds(value: Any, count: int) -> bool:
    """Whether ``value`` takes ``count`` arguments; what has no signature may."""
    try:
        signature = inspect.signature(value.forward if isinstance(value, nn.Module) else value)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
