"""Tensors on disk as safetensors: written whole or not at all, read without running any code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaprox.errors import RunFolderError

HEADER = "metaprox"


def save(path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """``tensors`` and the JSON of ``meta``, marked as a file of metaprox of this ``kind``."""
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in random order, and equal runs are to give equal files.
    save_file(contiguous, partial, {HEADER: json.dumps({"kind": kind, "meta": meta})})
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save`` wrote. Raises RunFolderError where the file is missing, corrupt, or not one of this kind."""
    if not path.is_file():
        raise RunFolderError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("kind") != kind:
                raise RunFolderError(f"{path} is a safetensors file, but not {kind} written by metaprox")
            return {name: file.get_tensor(name) for name in file.keys()}, header["meta"]  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise RunFolderError(f"{path} is corrupt or not a safetensors file ({error}); nothing was loaded") from error


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model that training can change: without the parameters that require no gradient."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors that ``learned`` gave into ``model``.

    Raises:
        RunFolderError: not all names and shapes fit, or a value is not finite; nothing is changed then.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in learned(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        details = ", ".join(f"{name}: model {wanted.get(name)}, file {found.get(name)}" for name in odd)
        raise RunFolderError(f"{path} does not fit the model: {details}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RunFolderError(f"{path} has non-finite values in {name}")
    model.load_state_dict(dict(tensors), strict=False)
