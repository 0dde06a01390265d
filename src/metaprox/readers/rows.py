"""Rows of CSV, JSON lines and Parquet, each with its place in the file."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metaprox.data.examples import Problem
from metaprox.errors import InputError, needs_extra

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
SEPARATORS = (",", ";", "\t", "|")


class Row(NamedTuple):
    """A row of a table, column -> value, and where it is."""

    place: str
    values: dict[str, Any]


def tables_in(path: Path) -> list[Path]:
    """The file, or those of a folder that are tables by their names, sorted. Raises InputError where there are none."""
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is no table by its name, which ends in {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{path} is missing: give a file that ends in {', '.join(SUFFIXES)}, or a folder of such files"
        )
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
    found = [one for one in found if one.suffix.lower() != ".json"] or found  # beside tables, often about them
    if not found:
        raise InputError(f"{path} has no tables in it: their names end in {', '.join(SUFFIXES)}")
    return found


def rows_of(path: Path, wanted: Sequence[str] = (), *, alone: bool = False) -> Iterator[Row | Problem]:
    """The rows of a file. Columns that are ``wanted`` must be there; ``alone``: no others need be read.

    Yields:
        Every row, or what is wrong with it.

    Raises:
        InputError: the file can't be read from some place on, or has no such columns; names the place.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _of_parquet(path, wanted, alone)
        elif suffix in (".csv", ".tsv"):
            yield from _of_csv(path, wanted)
        else:
            yield from _of_json(path, wanted)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error


def columns_in(path: Path) -> tuple[str, ...]:
    """The columns of a file, or of the first of a folder; () where it has no rows. Raises InputError as ``rows_of``."""
    return next((tuple(row.values) for row in rows_of(tables_in(path)[0]) if isinstance(row, Row)), ())


def require(path: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise InputError, listing the columns that there are, unless all that are ``wanted`` are among them."""
    if lacking := [name for name in wanted if name not in there]:
        raise InputError(
            f"{path} has no column {', '.join(map(repr, lacking))}; its columns: {', '.join(map(repr, there))}"
        )


def _of_csv(path: Path, wanted: Sequence[str]) -> Iterator[Row | Problem]:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path} is in UTF-16: save it in UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        separator = _separator(file.readline(), wanted, path)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        header: list[str] | None = None
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise InputError(_broken(path, start, reader.line_num, error)) from error
            if fields is None:
                break
            if header is None:
                header = _header(path, fields, wanted)
            elif fields:
                place = f"{path}, line {start}"
                wrong = _wrong(fields, len(header))
                yield Problem(place, wrong) if wrong else Row(place, dict(zip(header, fields, strict=True)))
    if header is None:
        raise InputError(f"{path} is empty: its first line must name its columns")


def _broken(path: Path, start: int, end: int, error: csv.Error) -> str:
    what = str(error)
    if "unexpected end" in what:
        what = "a quote that is opened here is not closed before the end of the file"
    elif "expected after" in what:
        what = "a quote within the field that is quoted from here; quotes in quotes are written twice"
    elif "field limit" in what:
        what = f"a field of more than {csv.field_size_limit()} characters, or a quote that is not closed"
    lines = f"line {start}" if end <= start else f"lines {start} to {end}"
    return f"{path}, {lines}: {what}. No row of the file is used: mend it there"


def _header(path: Path, fields: list[str], wanted: Sequence[str]) -> list[str]:
    if wrong := _wrong(fields, len(fields)):
        raise InputError(f"{path}, line 1: {wrong}")
    if twice := sorted({name for name in fields if fields.count(name) > 1}):
        raise InputError(f"{path} has several columns of the name {twice[0]!r}: give each its own")
    require(path, wanted, fields)
    return fields


def _wrong(fields: list[str], count: int) -> str:
    """What is wrong with the fields of a line, or ""."""
    if len(fields) != count:
        return f"{len(fields)} fields, where the header has {count}"
    if any("\0" in one for one in fields):
        return "a NUL byte"
    try:
        "".join(fields).encode("utf-8")
    except UnicodeEncodeError:
        return "not in UTF-8"
    return ""


def _separator(line: str, wanted: Sequence[str], path: Path) -> str:
    """A tab for .tsv; else that by which the first line has the columns that are wanted, or the most columns."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    found = {}
    for one in SEPARATORS:
        names = next(csv.reader([line], delimiter=one), [])
        found[one] = (len(set(wanted) & set(names)), len(names))
    return max(SEPARATORS, key=lambda one: found[one])


def _of_json(path: Path, wanted: Sequence[str]) -> Iterator[Row | Problem]:
    """JSON lines, or one list of objects."""
    with path.open("rb") as file:
        first = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if first.startswith(b"["):
            yield from _of_list(path, file.read(), wanted)
            return
        seen = False
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                yield Problem(place, f"not JSON in UTF-8: {error}")
                continue
            if isinstance(values, dict) and not seen:
                require(path, wanted, list(values))
                seen = True
            yield _object(place, values, wanted)
        if not seen:
            raise InputError(f"{path} has no line that is an object of JSON")


def _of_list(path: Path, data: bytes, wanted: Sequence[str]) -> Iterator[Row | Problem]:
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON in UTF-8: {error}. No row of the file is used") from error
    if found and isinstance(found[0], dict):
        require(path, wanted, list(found[0]))
    for number, values in enumerate(found, 1):
        yield _object(f"{path}, object {number}", values, wanted)


def _object(place: str, values: Any, wanted: Sequence[str]) -> Row | Problem:
    if not isinstance(values, dict):
        return Problem(place, "not an object")
    if lacking := [name for name in wanted if name not in values]:
        return Problem(place, f"no {', '.join(map(repr, lacking))}")
    try:
        "".join(one for pair in values.items() for one in pair if isinstance(one, str)).encode("utf-8")
    except UnicodeEncodeError:
        return Problem(place, "half of a surrogate pair, which is no character")
    return Row(place, values)


def _of_parquet(path: Path, wanted: Sequence[str], alone: bool) -> Iterator[Row | Problem]:
    with needs_extra("reading Parquet", "data"):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require(path, wanted, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(columns=list(wanted) if alone else None):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} can't be read as Parquet: {' '.join(str(error).split())}") from error
