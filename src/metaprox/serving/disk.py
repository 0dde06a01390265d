"""Learners and adapted models on disk: a folder with JSON and safetensors. Reading it runs no code of its."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metaprox import checks
from metaprox.checks import shown
from metaprox.errors import DamagedFileError, InputError, RunFolderError, needs_extra
from metaprox.storage import checksums
from metaprox.storage.files import naming

VERSION = 1
WEIGHTS = "weights.safetensors"
SUM = "weights_sha256"
LARGEST_JSON = 2**24  # bytes; labels of a million classes


def free(folder: str | Path) -> Path:
    """The folder, which is missing or empty. Raises RunFolderError where it holds something, or is none."""
    place = checks.path("folder", folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunFolderError(f"{place} exists and is not an empty folder: choose another")
    return place


def write(folder: str | Path, name: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write ``name``.json and the tensors into a folder that is missing or empty: all of it, or nothing.

    Returns:
        The folder.

    Raises:
        InputError: tensors are of kinds that safetensors do not hold.
        RunFolderError: the folder is there and holds something, or can't be written.
    """
    with needs_extra("saving and loading"):
        from safetensors import SafetensorError
        from safetensors.torch import save

    place = free(folder)
    held = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    try:
        content = save(held)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"weights of these kinds can't be kept: {error}") from error
    about = checksums.sealed({"kind": name, "version": VERSION, **values, SUM: checksums.of_bytes(content)})
    text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False)
    partial = place.absolute().with_name(f".{place.absolute().name}.{os.getpid()}.partial")
    with naming(place):
        place.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            _write(partial / f"{name}.json", (text + "\n").encode("utf-8", "surrogatepass"))
            _write(partial / WEIGHTS, content)
            partial.replace(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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
        DamagedFileError: one is not as it was written; what was saved before there were checksums has none.
    """
    with needs_extra("saving and loading"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    place = checks.path("folder", folder)
    values = about(place, name)
    weights = place / WEIGHTS
    if not weights.is_file():
        raise RunFolderError(f"{weights} is missing; weights in other forms, such as pickles, are not read")
    known = values.pop(SUM, None)
    if known is not None and known != checksums.of_file(weights):
        raise DamagedFileError(
            f"{weights} is not as it was written: its SHA-256 is not that in {name}.json: put it back, or save anew; "
            "nothing was loaded"
        )
    try:
        return values, load_file(weights)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{weights} is corrupt or not a safetensors file ({error}); nothing was loaded") from error


def about(folder: Path, name: str) -> dict[str, Any]:
    """Returns what ``name``.json holds.

    Raises:
        RunFolderError: it is missing, damaged, too large, or another thing.
        DamagedFileError: it is not as it was written.
    """
    path = folder / f"{name}.json"
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
    if not isinstance(values, dict) or values.get("kind") != name:
        raise RunFolderError(f"{path} is not that of a saved {name} of metaprox")
    if (version := values.get("version")) != VERSION:
        raise RunFolderError(f"{path} is of version {shown(version)}; this metaprox reads {VERSION}: install another")
    found = checksums.unsealed(path, values)
    return {key: value for key, value in found.items() if key not in ("kind", "version")}
