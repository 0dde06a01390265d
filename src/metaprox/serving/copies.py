"""Copies of models: whole, with another head, in given modes."""

import copy
from collections.abc import Collection

import torch
from torch import nn

from metaprox.checks import shown
from metaprox.errors import InputError
from metaprox.modules.head import Head


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, without gradients. Raises InputError where the model can't be copied."""
    try:
        found = copy.deepcopy(model)
    except Exception as error:  # whatever its attributes raise
        raise InputError(f"the model can't be copied by copy.deepcopy, as adapting it does: {error}") from error
    for parameter in found.parameters():
        parameter.grad = None
    return found


def with_head(model: nn.Module, path: str, classes: int) -> nn.Module:
    """Returns ``model``, a copy of one, with a layer in place of that at ``path`` that has a row for each class, all 0.

    Raises:
        InputError: there is no linear layer.
    """
    layer = copied(Head(path).layer(model))
    assert isinstance(layer, nn.Linear)
    for name, parameter in list(layer.named_parameters()):
        size = (classes, layer.in_features) if name == "weight" else (classes,)
        setattr(layer, name, nn.Parameter(torch.zeros_like(parameter, requires_grad=False).new_zeros(size)))
    layer.out_features = classes
    if not path:
        return layer
    model.set_submodule(path, layer)
    return model


def modes_of(model: nn.Module) -> list[str]:
    """The names of the modules that are in train mode."""
    return [name for name, module in model.named_modules() if module.training]


def in_modes(model: nn.Module, training: Collection[str]) -> None:
    """Put these modules of ``model`` into train mode, the others into eval mode. Raises InputError unless names fit."""
    own = dict(model.named_modules())
    if odd := sorted(set(training) - own.keys()):
        raise InputError(f"the model has no module {shown(odd[0])}")
    for name, module in own.items():
        module.training = name in training
