"""Texts with labels, in tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from metaprox import checks
from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError
from metaprox.readers.hub import Part, rows_of_hub
from metaprox.readers.rows import Row, rows_of, tables_in


def read_texts(
    path: str | Path | Sequence[str | Path],
    text: str = "text",
    label: str = "label",
    group: str | None = None,
    *,
    labels: bool = True,
    subset: str | None = None,
    split: str | None = None,
) -> Examples:
    """Texts and their labels, in CSV, JSON lines or Parquet; a folder gives all such files in it.

    Args:
        path: of the file or folder, or several. Without labels also of a .txt, with a text on each line. Or ``hf:`` and
            the name of a dataset on the HuggingFace hub, or of a folder as ``datasets`` leaves it.
        text: the column with the texts.
        label: that with the labels, whose names are its values, sorted. Space around a value is no part of it.
        group: that with the group that a label belongs to, such as a domain.
        labels: whether labels are read.
        subset: of a dataset, which of its configurations.
        split: of a dataset, its split, or several with a +. None: all.

    Returns:
        Examples whose items are strings, in the order of the rows. Rows without a text or a label are left out.

    Raises:
        InputError: a file or column is missing, or a file can't be read, or nothing is in it.
    """
    paths = [checks.path("path", one) for one in ([path] if isinstance(path, (str, Path)) else path)]
    source = ", ".join(map(str, paths))
    if not labels and len(paths) == 1 and paths[0].suffix.lower() == ".txt":
        return _lines(paths[0])
    wanted = list(dict.fromkeys([text, *([label] if labels else []), *([group] if labels and group else [])]))
    found: list[list[str]] = []
    problems: list[Problem] = []
    for row in (row for one in paths for row in _rows(one, wanted, subset, split)):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        values = [_text(row.values[name]) for name in wanted]
        values[1:] = map(str.strip, values[1:])
        lacking = [name for name, value in zip(wanted, values, strict=True) if not value.strip()]
        if lacking:
            problems.append(Problem(row.place, f"nothing in {', '.join(map(repr, lacking))}"))
        else:
            found.append(values)
    if not found:
        raise InputError(Examples(source, [], problems=tuple(problems)).report() or f"{source} has no rows")
    items = [values[0] for values in found]
    if not labels:
        return Examples(source, items, problems=tuple(problems))
    names = tuple(sorted({values[wanted.index(label)] for values in found}))
    place = {name: i for i, name in enumerate(names)}
    return Examples(
        source,
        items,
        torch.tensor([place[values[wanted.index(label)]] for values in found], device="cpu"),
        names,
        [values[wanted.index(group)] for values in found] if group else None,
        problems=tuple(problems),
    )


def _rows(path: Path, wanted: Sequence[str], subset: str | None, split: str | None) -> Iterator[Row | Problem]:
    if (part := Part.of(path, subset, split)) is not None:
        yield from rows_of_hub(part, wanted)
        return
    for file in tables_in(path):
        yield from rows_of(file, wanted, alone=True)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _lines(path: Path) -> Examples:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if not any(map(str.strip, lines)):
        raise InputError(f"{path} has no texts in it")
    return Examples(str(path), [line for line in lines if line.strip()])
