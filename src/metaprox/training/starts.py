"""When, where and by which command a process began a run or went on with it."""

import json
import platform
import re
import shlex
import socket
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import metaprox
from metaprox.distributed.group import Group
from metaprox.errors import RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import damaged, json_of, naming, write_text

START = {"date": str, "step": int, "command": str, "host": str, "processes": int}
START |= dict.fromkeys(("metaprox", "torch", "python"), str)
REMEDY = "which says no more than where the run was: delete it"
SECRET = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")  # name and password in a URL


def append(place: Path, step: int = 0) -> None:
    """A line in starts.jsonl for this process, which begins a run or goes on with it after meta-step ``step``.

    Lines that are damaged are left out, with a warning that names them: nothing of the run depends on them.
    """
    with naming(place, "read"):
        before = place.read_bytes().decode("utf-8", "replace").splitlines() if place.exists() else []
    kept = []
    for number, line in enumerate(before, start=1):
        try:
            _start_of(place, line)
        except RunFolderError:
            warnings.warn(f"{place}, line {number}, was damaged, and is left out: the run goes on", stacklevel=3)
        else:
            kept.append(line)
    own = json.dumps(checksums.sealed(start(step)))
    write_text(place, "".join(f"{line}\n" for line in [*kept, own]))


def read(place: Path) -> list[dict[str, Any]]:
    """Every line; none of a run from before there were such. Raises RunFolderError where one is damaged."""
    checksums.refuse_lost(place)
    if not place.exists():
        return []
    if not (lines := checksums.checked(place).splitlines()):
        raise RunFolderError(f"{place} is empty, {REMEDY}")
    return [_start_of(place, line) for line in lines]


def _start_of(place: Path, line: str) -> dict[str, Any]:
    with damaged(place, f"a list of starts of a run, {REMEDY}"):
        one = checksums.unsealed(place, json_of(place, line))
        return {name: kind(one[name]) for name, kind in START.items()}


def start(step: int = 0) -> dict[str, Any]:
    """Of this process, which goes on after meta-step ``step``: a line of starts.jsonl."""
    return {"step": step, "processes": 1 if Group.of() is None else dist.get_world_size(), **origin()}


def origin() -> dict[str, Any]:
    """When, where, by which command and by which versions something is made now."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "command": command(), "host": socket.gethostname(), **versions()}


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"metaprox": metaprox.__version__, "torch": torch.__version__, "python": platform.python_version()}


def command() -> str:
    """How this process was started, as a shell takes it, with ``***`` for passwords in URLs."""
    first, *rest = sys.argv or [""]
    ours = Path(first).stem == "metaprox" or Path(first).is_relative_to(Path(metaprox.__file__).parent)
    words = ["metaprox", *rest] if ours else ["python", *([first] if first else []), *rest]
    return SECRET.sub("***", shlex.join(words))
