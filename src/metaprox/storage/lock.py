"""One process at a time works in a folder: a lock of the operating system, which ends with the process."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from metaprox.errors import InUseError, RunFolderError
from metaprox.storage.files import clear_leftovers, naming

LOCK = ".lock"
_held: dict[str, tuple[int, int, int]] = {}  # real path -> descriptor, thread, how often
_guard = threading.Lock()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process or thread has the folder; the same thread may enter again.

    Raises:
        InUseError: another works there; says who, where and since when.
        RunFolderError: the lock can't be written.
    """
    key = os.path.realpath(folder)
    thread = threading.get_ident()
    with _guard:
        descriptor, owner, count = _held.get(key, (-1, thread, 0))
        if owner != thread:
            raise InUseError(f"{folder} is in use by another thread of this process: let it end")
        if count == 0:
            descriptor = _taken(folder)
            clear_leftovers(folder)
        _held[key] = descriptor, thread, count + 1
    try:
        yield
    finally:
        with _guard:
            descriptor, _, count = _held[key]
            _held[key] = descriptor, thread, count - 1
            if count == 1:
                del _held[key]
                _give_back(folder / LOCK, descriptor)


def _taken(folder: Path) -> int:
    """The descriptor of the lock's file, which is this process's now."""
    place = folder / LOCK
    while True:
        with naming(place):
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            raise InUseError(f"{folder} is in use{_owner(place)}: wait until it ends, or stop it")
        try:
            same = os.fstat(descriptor).st_ino == place.stat().st_ino
        except FileNotFoundError:  # it was given back, and deleted, between opening and locking
            same = False
        if same:
            break
        os.close(descriptor)
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with suppress(OSError):  # on a full disk the lock holds without it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(who).encode())
    return descriptor


def holder(folder: Path) -> str | None:
    """Who works in a folder: `` by process 12 on ...``; None where nobody does. Nothing is written."""
    if os.path.realpath(folder) in _held:
        return " by this process"
    place = folder / LOCK
    try:
        descriptor = os.open(place, os.O_RDWR)
    except OSError:  # there is none, or it can't be tried
        return None
    try:
        return None if _lock(descriptor) else _owner(place)
    finally:
        os.close(descriptor)


def _owner(place: Path) -> str:
    try:
        who = json.loads(place.read_text(encoding="utf-8"))
        return f" by process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"


def _give_back(place: Path, descriptor: int) -> None:
    with suppress(OSError):  # where the folder was removed
        place.unlink()
    os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock is this descriptor's now."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        os.close(descriptor)
        raise RunFolderError(f"this file system has no locks ({error.strerror}): choose a folder on another") from error
    return True


def _forget() -> None:
    """In a process that was forked: the locks are its parent's, and end with that alone."""
    global _guard
    _guard = threading.Lock()
    for descriptor, _, _ in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
