"""metrics.jsonl as a checkpoint knows it: how far it had come, and back to there."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaprox.errors import RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import naming


def state_of(log: Path) -> dict[str, Any]:
    """Size and SHA-256 of the log, which is on the disk itself then."""
    if not log.exists():
        return {"size": 0, "sha256": checksums.of_bytes(b"")}
    with naming(log), log.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def truncate(log: Path, state: Mapping[str, Any]) -> None:
    """Forget what was logged after a checkpoint: the resumed run logs it again.

    Raises:
        RunFolderError: the log is not what it was then.
    """
    size, remedy = state["size"], "put it back, or delete it to go on without what it says"
    if not log.exists():
        return
    with naming(log), log.open("rb+") as file:
        there = file.read(size)
        if len(there) < size:
            raise RunFolderError(
                f"{log} is shorter than when the checkpoint was written: it was changed since: {remedy}"
            )
        if state["sha256"] not in (None, checksums.of_bytes(there)):
            raise RunFolderError(f"{log} was changed since the checkpoint was written: {remedy}")
        file.truncate(size)
