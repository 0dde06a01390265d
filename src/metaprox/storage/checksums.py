"""SHA-256 of the files of a folder in one small JSON file, as ``sha256sum`` gives them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.storage.files import json_of, read_bytes, text_of, write_text

NAME = "checksums.json"


def of_bytes(content: bytes) -> str:
    """The SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


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
    if not isinstance(known, dict) or "config.json" not in known.keys() <= FILES:
        raise RunFolderError(f"{place} is damaged: it is not a list of checksums: {remedy}")
    return known


FILES = {"config.json", "data.json", "metrics.jsonl", "test_tasks.json", "starts.jsonl"}
