"""Files in folders and zip archives, by name. Archives are read in place: nothing of one is ever written to disk."""

import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from metaprox.data.examples import Problem
from metaprox.errors import InputError

LARGEST_FILE = 64 * 2**20  # bytes of one file in an archive, unpacked
SYMLINK = 0o120000


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a zip archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read(self) -> bytes:
        """What it holds. Raises ValueError where it is damaged, locked or unpacks to more than 64 MiB."""
        try:
            with _opened(self.archive, os.getpid()).open(self.name) as file:
                found = file.read(LARGEST_FILE + 1)
        except (OSError, KeyError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"can't be unpacked: {error}") from error
        except Exception as error:  # zlib.error and its like, of the compression that is used
            raise ValueError(f"can't be unpacked: {type(error).__name__}: {error}") from error
        if len(found) > LARGEST_FILE:
            raise ValueError(f"unpacks to more than {LARGEST_FILE // 2**20} MiB")
        return found


def content_of(item: Any) -> bytes:
    """The bytes of a file by its path, or of what reads itself. Raises ValueError, saying why, where there are none."""
    if isinstance(item, bytes):
        return item
    if callable(getattr(item, "read", None)):
        found: bytes = item.read()
        return found
    if not isinstance(item, (str, Path)):
        raise ValueError("neither a path nor a picture of Pillow")
    try:
        about = Path(item).stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("not a file")
        if about.st_size > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE // 2**20} MiB")
        return Path(item).read_bytes()
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error


def files(path: Path) -> Iterator[tuple[PurePosixPath, Path | Member] | Problem]:
    """Every file below a folder or in a zip archive.

    Hidden files and what operating systems put beside files are passed over. Links to folders are not followed.

    Yields:
        The name in there and the file, sorted by names; or why one is not taken.

    Raises:
        InputError: there is neither.
    """
    if path.is_dir():
        yield from _of_folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        yield from _of_archive(path)
    elif path.is_file():
        raise InputError(f"{path} is neither a folder nor a zip archive")
    else:
        raise InputError(f"{path} is missing: give a folder, or a zip archive of one")


def _of_folder(path: Path) -> Iterator[tuple[PurePosixPath, Path | Member] | Problem]:
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not _hidden(name)]
        place = Path(folder)
        for name in folders:
            if (place / name).is_symlink():
                yield Problem(str(place / name), "a link to a folder, which is not followed")
        found += [place / name for name in names if not _hidden(name)]
    for file in sorted(found):
        yield PurePosixPath(*file.relative_to(path).parts), file


def _of_archive(path: Path) -> Iterator[tuple[PurePosixPath, Path | Member] | Problem]:
    try:
        members = _opened(path, os.getpid()).infolist()
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path} can't be read as a zip archive: {error}") from error
    seen: set[str] = set()
    for member in sorted(members, key=lambda one: one.filename):
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if member.is_dir() or any(_hidden(part) for part in name.parts if part != ".."):
            continue
        place = f"{path}/{member.filename}"
        if name.is_absolute() or ".." in name.parts or (name.parts and name.parts[0].endswith(":")):
            yield Problem(place, "its name leads out of the archive")
        elif (member.external_attr >> 16) & 0o170000 == SYMLINK:
            yield Problem(place, "a link, which is not followed")
        elif member.filename in seen:
            yield Problem(place, "comes twice in the archive; the last one is taken")
        else:
            seen.add(member.filename)
            yield name, Member(path, member.filename)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """An archive, open for reading; each process has its own place in the file."""
    return zipfile.ZipFile(path)
