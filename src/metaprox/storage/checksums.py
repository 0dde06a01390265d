"""SHA-256 of the files of a folder in one small JSON file, as ``sha256sum`` gives them; and of JSON within itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.storage.files import json_of, naming, read_bytes, text_of, write_text

NAME, SEAL = "checksums.json", "sha256"


def of_bytes(content: bytes) -> str:
    """The SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def of_file(place: Path) -> str:
    """That of what a file holds, which is read by parts."""
    with naming(place, "read"), place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, sums: Mapping[str, str]) -> None:
    """Keep the sums of files, by name."""
    write_text(folder / NAME, json.dumps(dict(sums), indent=1) + "\n")


def checked(place: Path) -> str:
    """The text of a file. Raises DamagedFileError where it is not as it was written, if there is a sum of it."""
    content = read_bytes(place)
    known = read(place.parent)
    if known.get(place.name, of_bytes(content)) != of_bytes(content):
        raise DamagedFileError(
            f"{place} is not as it was written: its SHA-256 is not that in {NAME}: put it back, or, if it is right as "
            f"it is, delete {NAME}"
        )
    return text_of(place, content)


def refuse_lost(place: Path) -> None:
    """Raise DamagedFileError where a file is not there, and there is a sum of it."""
    if not place.exists() and place.name in read(place.parent):
        raise DamagedFileError(
            f"{place} is missing, and was there when {NAME} was written: put it back, or, to go on without it, delete "
            f"{NAME}"
        )


def check_all(folder: Path) -> None:
    """Raise DamagedFileError, naming it, where a file of which there is a sum is missing, or not as it was written."""
    for name in read(folder):
        refuse_lost(folder / name)
        checked(folder / name)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the SHA-256 of their JSON as "sha256", for a file that is to know by itself if it was changed."""
    return {**values, SEAL: _seal_of(values)}


def unsealed(place: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was ``sealed``; what was not is taken as it is.

    Raises:
        DamagedFileError: ``values``, read from ``place``, are not as they were written.
    """
    found = dict(values)
    known = found.pop(SEAL, None)
    if known is not None and known != _seal_of(found):
        raise DamagedFileError(
            f"{place} is not as it was written: its SHA-256 is another: put it back, or, if it is right as it is, "
            f'delete "{SEAL}" from it'
        )
    return found


def _seal_of(values: Mapping[str, Any]) -> str:
    """Of ``values`` as JSON gives them back, whatever their order and the spaces between them."""
    plain = json.loads(json.dumps(dict(values)))
    return of_bytes(json.dumps(plain, sort_keys=True).encode())


def read(folder: Path) -> dict[str, str]:
    """The sums of a folder's files by name; none where none were kept. Raises RunFolderError where they are damaged."""
    place = folder / NAME
    if not place.exists():
        return {}
    remedy = f"delete it, and the files beside it are taken as they are ({place})"
    try:
        known = json_of(place, text_of(place, read_bytes(place)))
    except RunFolderError as error:
        raise RunFolderError(f"{error}: {remedy}") from error
    if not isinstance(known, dict) or not {"config.json"} <= known.keys() <= FILES:
        raise RunFolderError(f"{place} is damaged: it is not a list of checksums: {remedy}")
    return known


FILES = {"config.json", "data.json", "metrics.jsonl", "test_tasks.json", "starts.jsonl"}
