"""Datasets of HuggingFace: by name on the hub, or in a folder as ``datasets`` leaves it. Their code is never run."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metaprox.data.examples import Examples, Problem
from metaprox.errors import InputError, needs_extra
from metaprox.readers.rows import Row, require

HUB = "hf:"
SAVED = ("dataset_dict.json", "state.json")  # what ``save_to_disk`` leaves, of several splits or of one


class Part(NamedTuple):
    """Which dataset: its name after ``hf:``; ``subset``, of those that it has; ``split``, one, or several with a +."""

    name: str
    subset: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, path: Any, subset: str | None = None, split: str | None = None) -> "Part | None":
        """The dataset that a path names; None where it is a path."""
        text = str(path)
        return cls(text.removeprefix(HUB), subset, split) if text.startswith(HUB) else None

    def __str__(self) -> str:
        return f"{HUB}{self.name}{f' {self.subset}' if self.subset else ''}"


def on_disk(path: Path) -> Path:
    """Where the files of a path are; of a name on the hub, what is no path."""
    return Path(str(path).removeprefix(HUB))


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture of a dataset, which is read when it is asked for."""

    table: Any
    row: int
    column: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}, row {self.row}"

    def read(self) -> bytes:
        """The bytes of its file. Raises ValueError where there are none."""
        found = self.table[self.row][self.column] or {}
        if found.get("bytes") is not None:
            return bytes(found["bytes"])
        try:
            return Path(found.get("path") or "").read_bytes()
        except OSError as error:
            raise ValueError(f"can't be read: {error.strerror}") from error


def rows_of_hub(part: Part, wanted: Sequence[str]) -> Iterator[Row]:
    """The columns that are ``wanted``, of every row of every split.

    Yields:
        A row; of classes their names, of none of them None.

    Raises:
        InputError: there is no such dataset, split or column.
    """
    for place, table in _tables(part):
        require(Path(place), wanted, table.column_names)
        names = {column: getattr(table.features[column], "names", None) for column in wanted}
        for number, values in enumerate(table.select_columns(list(wanted))):
            found = {column: _named(value, names[column]) for column, value in values.items()}
            yield Row(f"{place}, row {number}", found)


def pictures_of_hub(part: Part, image: str | None, label: str | None, *, labels: bool) -> Examples:
    """Every picture of a dataset, none of them read yet; its classes are those of a column.

    Args:
        part: which dataset.
        image: the column with the pictures. None: the only one that has some.
        label: the column with the classes. None: the only one of classes, or that of the name label.
        labels: whether classes are read.

    Returns:
        Examples whose items are cells of the dataset, in the order of its splits and rows.

    Raises:
        InputError: there is no such dataset, split or column.
    """
    with needs_extra("reading datasets of HuggingFace", "data"):
        import datasets
    items: list[Cell] = []
    found: list[str] = []
    problems: list[Problem] = []
    for place, table in _tables(part):
        pictured = _column(place, table, image, "image", datasets.Image)
        labelled = _column(place, table, label, "label", datasets.ClassLabel) if labels else None
        undecoded = table.select_columns([pictured]).cast_column(pictured, datasets.Image(decode=False))
        cells = [Cell(undecoded, row, pictured, place) for row in range(len(table))]
        if labelled is None:
            items += cells
            continue
        names = getattr(table.features[labelled], "names", None)
        for cell, value in zip(cells, table.with_format(None)[labelled][:], strict=True):
            if (name := _named(value, names)) is None or not str(name).strip():
                problems.append(Problem(str(cell), f"nothing in {labelled!r}"))
            else:
                items.append(cell)
                found.append(str(name).strip())
    if not items:
        raise InputError(Examples(str(part), [], problems=tuple(problems)).report() or f"{part} has no rows")
    if not labels:
        return Examples(str(part), items, problems=tuple(problems))
    classes = tuple(sorted(set(found)))
    index = {name: i for i, name in enumerate(classes)}
    indices = torch.tensor([index[name] for name in found], device="cpu")
    return Examples(str(part), items, indices, classes, problems=tuple(problems))


def _column(place: str, table: Any, given: str | None, usual: str, kind: type) -> str:
    """The column that was ``given``, or the only one of a ``kind``, or that of the usual name."""
    of_kind = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    found = given or (of_kind[0] if len(of_kind) == 1 else usual)
    if given is None and len(of_kind) > 1:
        raise InputError(f"{place} has several columns of {usual}s ({', '.join(of_kind)}): name one (--{usual}-column)")
    require(Path(place), [found], table.column_names)
    if usual == "image" and found not in of_kind:
        raise InputError(f"{place} has no pictures in {found!r}, but {table.features[found]}")
    return found


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a class, None of what is none; all else as it is."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _tables(part: Part) -> list[tuple[str, Any]]:
    """Each split with its place, for messages. Raises InputError, in a line, where they can't be had."""
    with needs_extra("reading datasets of HuggingFace", "data"):
        import datasets
    folder = Path(part.name).is_dir()
    try:
        with _quiet():
            if folder and any((Path(part.name) / one).is_file() for one in SAVED):
                found = _of_splits(datasets.load_from_disk(part.name), part)
            else:
                found = datasets.load_dataset(part.name, part.subset, split=part.split)
    except InputError:
        raise
    except Exception as error:  # of the network, the name, its files, or code that it would have run
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        remedy = (
            "" if folder else ". Without a network, or where that fails, give a folder that datasets saved: hf:FOLDER"
        )
        raise InputError(f"{part} can't be read: {first}{remedy}") from error
    if not hasattr(found, "items"):
        return [(f"{part} {part.split or getattr(found, 'split', None) or ''}".strip(), found)]
    return [(f"{part} {name}", table) for name, table in found.items()]


def _of_splits(found: Any, part: Part) -> Any:
    """Of a dataset that was saved the splits that are asked for."""
    if part.subset is not None:
        raise InputError(f"{part}: a dataset that was saved by save_to_disk has no subsets")
    if part.split is None:
        return found
    there = dict(found.items()) if hasattr(found, "items") else {str(found.split or "train"): found}
    wanted = part.split.split("+")
    if odd := [name for name in wanted if name not in there]:
        raise InputError(f"{part} has no split {odd[0]!r}; it has {', '.join(there)}")
    return {name: there[name] for name in wanted}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the client of the hub logs of each try to reach it: the error says so once."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
