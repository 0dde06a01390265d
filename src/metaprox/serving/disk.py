"""Learners and adapted models on disk: a folder with JSON and safetensors. Reading it runs no code of its."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.checks import shown
from metaprox.errors import RunFolderError, needs_extra

VERSION = 1
WEIGHTS = "weights.safetensors"
LARGEST_JSON = 2**24  # bytes; labels of a million classes


def write(folder: str | Path, name: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``name``.json and the tensors into a folder that is missing or empty: all of it, or nothing.

    Returns:
        The folder.

    Raises:
        RunFolderError: the folder is there and holds something, or can't be written.
    """
    with needs_extra("saving and loading"):
        from safetensors.torch import save

    place = checks.path("folder", folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunFolderError(f"{place} exists and is not an empty folder: choose another")
    held = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    text = json.dumps({"kind": name, "version": VERSION, **values}, indent=2, ensure_ascii=False, allow_nan=False)
    partial = place.absolute().with_name(f".{place.absolute().name}.{os.getpid()}.partial")
    try:
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            _write(partial / f"{name}.json", (text + "\n").encode("utf-8", "surrogatepass"))
            _write(partial / WEIGHTS, save(held))
            partial.replace(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunFolderError(f"{place} can't be written: {error.strerror or error}") from error
    return place


def _write(path: Path, content: bytes) -> None:
    """By plain open, so that the file has the modes that the user's umask says."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def holds(folder: Path, name: str) -> bool:
    """Whether the folder has a ``name``.json."""
    return (folder / f"{name}.json").is_file()


def read(folder: str | Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what ``write`` wrote.

    Raises:
        RunFolderError: a file is missing, damaged, too large, or another thing.
    """
    with needs_extra("saving and loading"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    place = checks.path("folder", folder)
    values = _json(place / f"{name}.json", name)
    weights = place / WEIGHTS
    if not weights.is_file():
        raise RunFolderError(f"{weights} is missing; weights in other forms, such as pickles, are not read")
    try:
        return values, load_file(weights)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{weights} is corrupt or not a safetensors file ({error}); nothing was loaded") from error


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise RunFolderError(f"{path} is larger than {LARGEST_JSON >> 20} MiB: it is none of metaprox's")
        values = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except RunFolderError:
        raise
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: {path.parent} is no saved {name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict) or values.pop("kind", None) != name:
        raise RunFolderError(f"{path} is not that of a saved {name} of metaprox")
    if (version := values.pop("version", None)) != VERSION:
        raise RunFolderError(f"{path} is of version {shown(version)}; this metaprox reads {VERSION}: install another")
    return values


def kept(model: nn.Module, fresh: nn.Module | None) -> dict[str, Tensor]:
    """The state that is saved of a model: all of it, but for frozen parameters that a ``fresh`` one has alike."""
    state = state_of(model)
    known = {} if fresh is None else state_of(fresh)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {
        name: value
        for name, value in state.items()
        if not (name in frozen and name in known and _same(value, known[name]))
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once; buffers that are not persistent too."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def device_of(model: nn.Module) -> torch.device:
    """Where the model is; the CPU where it has no tensors."""
    return next((value.device for value in state_of(model).values()), torch.device("cpu"))


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], place: Path, *, whole: bool) -> None:
    """Copy ``tensors`` into a model. ``whole``: whether frozen parameters must be among them.

    Raises:
        RunFolderError: names, shapes or dtypes are not the model's, or a parameter is not finite; nothing is changed.
    """
    state, parameters = state_of(model), dict(model.named_parameters())
    needed = {name for name in state if whole or name not in parameters or parameters[name].requires_grad}
    wanted = {name: (tuple(one.shape), one.dtype) for name, one in state.items() if name in needed or name in tensors}
    found = {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()}
    if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        details = ", ".join(f"{n}: model {_kind(wanted.get(n))}, file {_kind(found.get(n))}" for n in odd[:8])
        raise RunFolderError(f"{place / WEIGHTS} does not fit the model: {details}{', ...' * (len(odd) > 8)}")
    for name, value in tensors.items():
        if name in parameters and not bool(torch.isfinite(value).all()):
            raise RunFolderError(f"{place / WEIGHTS} has non-finite values in {name}")
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)


def number(value: float) -> float | None:
    """As JSON holds it."""
    return value if math.isfinite(value) else None


def _kind(found: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "none" if found is None else f"{found[0]} {str(found[1]).removeprefix('torch.')}"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one.cpu(), other.cpu()))
