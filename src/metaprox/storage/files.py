"""Files that appear whole or not at all. What the disk refuses is one line: the file, the problem, the remedy."""

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metaprox.errors import MetaproxError, RunFolderError

PARTIAL = ".partial"
REMEDIES = {
    errno.ENOSPC: "make room on that disk, then go on",
    errno.EDQUOT: "make room in your quota of that disk, then go on",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another disk",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "get the right to do so, or choose another folder",
    errno.EPERM: "get the right to do so, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "the file or its folder is not there, or was removed meanwhile",
    errno.ENOTDIR: "a part of that path is a file: choose another",
    errno.EISDIR: "a folder is in its place: move it away",
    errno.ELOOP: "its symbolic links lead in a circle: choose another path",
    errno.EIO: "the disk fails: copy what is on it elsewhere",
    errno.EMFILE: "close files, or raise their limit (ulimit -n)",
}


def explained(error: OSError) -> str:
    """The problem and its remedy, where there is one: ``No space left on device: make room ...``."""
    problem = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{problem}: {remedy}" if remedy else problem


@contextmanager
def naming(place: Path, done: str = "written") -> Iterator[None]:
    """Raise an OSError within as a RunFolderError that says: ``place`` can't be ``done``, why, and what to do."""
    try:
        yield
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{place} can't be {done}: {explained(error)}") from error


def write_whole(place: Path, write: Callable[[Path], object]) -> None:
    """What ``write(path)`` writes becomes ``place``, on the disk itself, or nothing is changed.

    Raises:
        RunFolderError: the disk refuses; names the file, the problem and the remedy.
    """
    partial = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with naming(place):
        try:
            write(partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        _keep_names(place.parent)


def write_text(place: Path, text: str) -> None:
    """Write a file whole or not at all; what UTF-8 does not hold (of odd file names) is written as ``\\udcff``."""
    write_whole(place, lambda path: path.write_bytes(text.encode("utf-8", errors="backslashreplace")))


def read_bytes(place: Path) -> bytes:
    """Its content. Raises RunFolderError where it can't be read."""
    with naming(place, "read"):
        return place.read_bytes()


def text_of(place: Path, content: bytes) -> str:
    """``content``, read from ``place``, as text. Raises RunFolderError where it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{place} is damaged: not UTF-8 at byte {error.start}") from error


def json_of(place: Path | str, text: str) -> Any:
    """``text``, read from ``place``, as JSON. Raises RunFolderError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{place} is damaged: not JSON: {error}") from error
    except (RecursionError, ValueError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise RunFolderError(f"{place} is damaged: not JSON as it is written here: {why}") from error


def is_leftover(path: Path) -> bool:
    """Whether it is a file that a process was writing, or its lock."""
    return path.name == ".lock" or path.name.endswith(PARTIAL)


def clear_leftovers(folder: Path) -> None:
    """Delete what processes that are gone were writing; for whoever has the lock of the folder."""
    for path in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def damaged(place: Path, what: str) -> Iterator[None]:
    """Around use of what was read: where it is not as it must be, raises RunFolderError: ``place`` is not ``what``."""
    try:
        yield
    except RunFolderError:
        raise
    except MetaproxError as error:
        raise RunFolderError(f"{place} is not {what}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, StopIteration) as error:
        raise RunFolderError(f"{place} is not {what}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _keep_names(folder: Path) -> None:
    """The names in a folder, on the disk itself, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
