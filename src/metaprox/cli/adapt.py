"""metaprox adapt, predict: from a run and a few examples of new classes to answers."""

import csv
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from metaprox import training
from metaprox.cli.reads import Reads
from metaprox.data.examples import Examples
from metaprox.errors import RunFolderError
from metaprox.serving import Adapted, Prediction, disk
from metaprox.storage.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Adapt(Reads):
    """Adapt what a finished run has learned to a few examples of new classes, or of a new group.

    Example: metaprox adapt runs/topics --support new_topics.csv --out topics
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""
    support: Path
    """Labelled examples, in files as the run's."""
    out: Path
    """Folder of the adapted model; must be missing or empty."""

    def run(self, console: Console) -> None:
        """Adapt, and say what came of it."""
        disk.free(self.out)
        adapted, examples = training.adapt_run(self.run_folder, self.support, **self.columns())
        adapted.save(self.out)
        kinds = f" of {len(adapted.names)} classes" if adapted.names else ""
        ended = "" if adapted.converged else ", which did not reach the tolerance"
        print(
            f"adapted to {len(examples)} examples{kinds} in {adapted.steps} steps{ended}; the gradient left is "
            f"{adapted.residual:.3g}\nmetaprox predict {shlex.quote(str(self.out))} PATH"
        )


@dataclass(frozen=True, kw_only=True)
class Predict(Reads):
    """Predict by an adapted model: for each item its label, and the probability of each class.

    Example: metaprox predict topics questions.csv
    """

    folder: tyro.conf.Positional[Path]
    """Folder, as given to metaprox adapt --out."""
    path: tyro.conf.Positional[Path]
    """Items, in files as the support's; labels are not looked at."""
    out: Path | None = None
    """File to write; must be missing. Default: standard output."""
    as_json: bool = False
    """Write a line of JSON for each item instead of CSV."""

    def run(self, console: Console) -> None:
        """Write a header, and a line for each item."""
        if self.out is not None and self.out.exists():
            raise RunFolderError(f"{self.out} exists: choose another --out")
        adapted = Adapted.load(self.folder)
        examples = training.items_of(adapted, self.path, **self.columns())
        lines = _json_lines if self.as_json else _csv_lines
        text = lines(adapted, examples)
        if self.out is None:
            _print(text)
            return
        write_whole(self.out, lambda path: _write(path, text))


def _write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _print(lines: Iterator[str]) -> None:
    """To standard output, for as long as somebody reads it."""
    try:
        for line in lines:
            sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _rows(adapted: Adapted, examples: Examples) -> Iterator[tuple[dict[str, Any], str | list[float], list[float]]]:
    """Of each item what it is, its label or the numbers that are predicted, and the probabilities of the classes."""
    for items, found in training.predictions(adapted, examples):
        shares = found.probabilities.tolist() if adapted.names else [[]] * len(items)
        answers: Any = found.labels if adapted.names else _numbers(found)
        for item, answer, share in zip(items, answers, shares, strict=True):
            about = dict(zip(examples.columns, item.tolist(), strict=True)) if examples.columns else {"item": str(item)}
            yield about, answer, share


def _numbers(found: Prediction) -> list[list[float]]:
    return found.outputs.flatten(1).tolist() if found.outputs.dim() > 1 else found.outputs[:, None].tolist()


def _csv_lines(adapted: Adapted, examples: Examples) -> Iterator[str]:
    header: list[str] = []
    for about, answer, share in _rows(adapted, examples):
        values = [answer] if adapted.names else answer
        if not header:
            numbers = ["prediction", *(f"prediction {i}" for i in range(2, len(values) + 1))]
            answers = ["label", *(f"probability of {name}" for name in adapted.names)] if adapted.names else numbers
            header = [*about, *answers]
            yield _csv(header)
        yield _csv([*about.values(), *values, *(f"{one:.6g}" for one in share)])


def _csv(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return _printable(line.getvalue())


def _json_lines(adapted: Adapted, examples: Examples) -> Iterator[str]:
    for about, answer, share in _rows(adapted, examples):
        found = {"label": answer, "probabilities": dict(zip(adapted.names, share, strict=True))}
        values = {**about, **(found if adapted.names else {"prediction": answer})}
        yield _printable(json.dumps(values, ensure_ascii=False)) + "\n"


def _printable(text: str) -> str:
    """With what UTF-8 does not hold, such as odd bytes of names of files, written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
