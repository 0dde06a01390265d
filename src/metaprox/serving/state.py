"""The tensors of a model: which are kept, and how they come back."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metaprox.errors import InputError, RunFolderError
from metaprox.serving.blueprint import Blueprint
from metaprox.serving.disk import WEIGHTS


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once; buffers that are not persistent too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def device_of(model: nn.Module) -> torch.device:
    """Where the model is; the CPU where it has no tensors."""
    return next((value.device for value in state_of(model).values()), torch.device("cpu"))


def frozen_in(model: nn.Module) -> list[str]:
    """The names of the parameters that require no gradient."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Let parameters of these names require no gradient, all others one. Raises InputError unless they are there."""
    own = dict(model.named_parameters())
    if odd := sorted(set(names) - own.keys()):
        raise InputError(f"the model has no parameter {odd[0]!r}")
    for name, parameter in own.items():
        parameter.requires_grad_(name not in names)


def kept(
    model: nn.Module, blueprint: Blueprint | None, made: Collection[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors that are to be saved, and the names of those that the blueprint sets, frozen, to the same.

    ``made``: names of a layer that has other sizes than the blueprint's.

    Raises:
        InputError: the blueprint makes another model, or a module has state that is no tensor.
    """
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise InputError(f"the module {name!r} has state of its own beside tensors, which is not kept")
    state = state_of(model)
    if blueprint is None:
        return state, []
    fresh = blueprint.build()
    known = state_of(fresh)
    shapes, others = ({n: tuple(one.shape) for n, one in found.items() if n not in made} for found in (state, known))
    if odd := sorted(n for n in shapes.keys() | others.keys() if shapes.get(n) != others.get(n)):
        what = f"{odd[0]} is {others.get(odd[0])} there, {shapes.get(odd[0])} here"
        raise InputError(f"the blueprint, of {blueprint.builder}, makes another model: {what}")
    frozen = set(frozen_in(model)) & set(frozen_in(fresh))
    built = sorted(name for name in frozen if _same(state[name], known[name]))
    return {name: value for name, value in state.items() if name not in built}, built


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], built: Collection[str], place: Path) -> None:
    """Copy ``tensors`` into a model, of which those that are ``built``, and frozen, stay as they are.

    Raises:
        InputError: one of ``built`` is not frozen in the model.
        RunFolderError: names, shapes or dtypes are not the model's, or a parameter is not finite; nothing is changed.
    """
    state, parameters = state_of(model), dict(model.named_parameters())
    if odd := sorted(set(built) - set(frozen_in(model))):
        raise InputError(f"{odd[0]!r} is no frozen parameter of the model, and is not in the weights")
    wanted = {name: _kind(value) for name, value in state.items() if name not in built}
    found = {name: _kind(value) for name, value in tensors.items()}
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        details = ", ".join(f"{n}: model {wanted.get(n, 'none')}, file {found.get(n, 'none')}" for n in odd[:8])
        raise RunFolderError(f"{place / WEIGHTS} does not fit the model: {details}{', ...' * (len(odd) > 8)}")
    for name, value in tensors.items():
        if name in parameters and not bool(torch.isfinite(value).all()):
            raise RunFolderError(f"{place / WEIGHTS} has non-finite values in {name}")
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)


def _kind(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool(torch.equal(one.cpu(), other.cpu()))
