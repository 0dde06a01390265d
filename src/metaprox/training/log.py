"""metrics.jsonl: its records; and as a checkpoint knows it, how far it had come, and back to there."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import json_of, naming


def read(log: Path) -> list[dict[str, Any]]:
    """Every whole line, up to now; none where there is no log. Raises RunFolderError where one is damaged; names it."""
    checksums.refuse_lost(log)
    if not log.exists():
        return []
    *lines, _ = checksums.checked(log).split("\n")
    return [_record(log, number, line) for number, line in enumerate(lines, start=1)]


def _record(log: Path, number: int, line: str) -> dict[str, Any]:
    record = json_of(f"{log}, line {number},", line)
    kinds = {"kind": str, "step": int}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise RunFolderError(f"{log}, line {number}, is damaged: it is no record of a meta-step")
    return record


def state_of(log: Path) -> dict[str, Any]:
    """Size and SHA-256 of the log, which is on the disk itself then."""
    if not log.exists():
        return {"size": 0, "sha256": checksums.of_bytes(b"")}
    with naming(log), log.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def check(log: Path, state: Mapping[str, Any]) -> None:
    """Raise DamagedFileError where the log is there, and does not begin as it was when a checkpoint was written."""
    if not log.exists():
        return
    size, remedy = state["size"], "put it back, or delete it to go on without what it says"
    with naming(log, "read"), log.open("rb") as file:
        there = file.read(size)
    if len(there) < size:
        raise DamagedFileError(f"{log} is shorter than when the checkpoint was written: it was changed since: {remedy}")
    if state["sha256"] not in (None, checksums.of_bytes(there)):
        raise DamagedFileError(f"{log} was changed since the checkpoint was written: {remedy}")


def truncate(log: Path, state: Mapping[str, Any]) -> None:
    """Forget what was logged after a checkpoint, which is logged again. Raises DamagedFileError as ``check``."""
    check(log, state)
    if log.exists():
        with naming(log), log.open("rb+") as file:
            file.truncate(state["size"])
