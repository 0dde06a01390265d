"""Tensors on disk as safetensors: written whole or not at all, checked and read without running any code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as in_bytes
from torch import Tensor, nn

from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.storage.files import explained, write_whole

HEADER = "metaprox"
WEIGHTS, CHECKPOINT = "weights", "a checkpoint"  # the kinds of files of a run


def save(path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """``tensors`` and the JSON of ``meta``, marked as a file of metaprox of this ``kind``, with their SHA-256.

    Raises:
        RunFolderError: the disk refuses; the file is as it was then.
    """
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in random order, and equal runs are to give equal files.
    header = json.dumps({"kind": kind, "meta": meta, "sha256": _sha256(contiguous, kind, meta)})
    # Not by safetensors' save_file, which writes into a file .tmpXXXXXX first, that a killed process would leave.
    write_whole(path, lambda partial: partial.write_bytes(in_bytes(contiguous, {HEADER: header})))


def load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save`` wrote.

    Returns:
        The tensors, and ``meta``.

    Raises:
        RunFolderError: the file is missing, or can't be read.
        DamagedFileError: it is corrupt, not as it was written, or not of this kind.
    """
    if not path.is_file():
        raise RunFolderError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("kind") != kind:
                raise DamagedFileError(f"{path} is a safetensors file, but not {kind} written by metaprox")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = dict(header["meta"])
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path} can't be read: {explained(error)}") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is corrupt or not a safetensors file ({error}); nothing was loaded") from error
    # Files from before there were checksums have none.
    if "sha256" in header and header["sha256"] != _sha256(tensors, kind, meta):
        raise DamagedFileError(f"{path} is not as it was written: its SHA-256 is another; nothing was loaded")
    return tensors, meta


def _sha256(tensors: Mapping[str, Tensor], kind: str, meta: Mapping[str, Any]) -> str:
    """Of the names, kinds, shapes and numbers of the tensors, and the JSON of ``meta``."""
    digest = hashlib.sha256(json.dumps([kind, meta]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model that training can change: without the parameters that require no gradient."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what ``learned`` gives."""
    return {name: tensor.detach().clone() for name, tensor in learned(model).items()}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors that ``learned`` gave into ``model``. Raises RunFolderError, and changes nothing, as ``fit``."""
    fit(model, tensors, path)
    model.load_state_dict(dict(tensors), strict=False)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise RunFolderError unless all names, shapes and kinds of numbers are the model's, and all values finite."""
    wanted = {name: tuple(tensor.shape) for name, tensor in learned(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        details = ", ".join(f"{name}: model {wanted.get(name)}, file {found.get(name)}" for name in odd)
        raise RunFolderError(f"{path} does not fit the model: {details}")
    own = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.dtype != own[name].dtype:
            raise RunFolderError(f"{path} does not fit the model: {name}: model {own[name].dtype}, file {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise RunFolderError(f"{path} has non-finite values in {name}")
