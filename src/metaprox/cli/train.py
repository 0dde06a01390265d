"""metaprox train, resume: a run from its start, or from its last checkpoint."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from metaprox import distributed, reports, training, tuning
from metaprox.cli.evaluate import together
from metaprox.cli.options import WithSettings
from metaprox.cli.progress import Watcher, shown_progress
from metaprox.distributed.start import restarted
from metaprox.errors import HealthWarning


@dataclass(frozen=True, kw_only=True)
class Train(WithSettings):
    """Meta-train on a family of tasks, evaluate on unseen ones, write figures and a report.

    Example: metaprox train mnist1d --out runs/digits
    """

    in_processes: ClassVar[bool] = True

    out: Path
    """Run folder; must be missing or empty."""
    tensorboard: bool = False
    """Write the numbers of the log for TensorBoard too, into the folder tensorboard of the run."""
    tuned: Path | None = None
    """Folder of a search, metaprox tune --out: with the settings that it found best, but for those given."""

    def run(self, console: Console) -> None:
        """Train from the start; in processes that torchrun has started anew, from the last checkpoint."""
        callbacks = _callbacks(self.tensorboard)
        settings = self.settings() if self.tuned is None else tuning.with_best(self.settings(), self.tuned)
        parts = settings.composition()  # refuses what it does before anything is said
        with _processes(console) as (rank, seen):
            if restarted() and (self.out / "config.json").is_file():
                folder = training.resume(self.out, seen.watch, [seen, *callbacks])
            else:
                folder = training.train(parts, self.out, seen.watch, [seen, *callbacks])
        _finish(folder, console, rank)


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from its last checkpoint, as if it had never stopped.

    Example: metaprox resume runs/digits
    """

    in_processes: ClassVar[bool] = True

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""
    tensorboard: bool = False
    """Write the numbers of the log for TensorBoard too, into the folder tensorboard of the run."""

    def run(self, console: Console) -> None:
        """Train from the last checkpoint."""
        with _processes(console) as (rank, seen):
            folder = training.resume(self.run_folder, seen.watch, [seen, *_callbacks(self.tensorboard)])
        _finish(folder, console, rank)


@contextmanager
def _processes(console: Console) -> Iterator[tuple[int, Watcher]]:
    """Around a run, in which rank 0 shows and warns, and the others are silent.

    Yields:
        The rank of this process, and what watches the run.
    """
    with distributed.processes() as rank, shown_progress(console, quiet=rank > 0) as seen, warnings.catch_warnings():
        if rank > 0:
            warnings.simplefilter("ignore", HealthWarning)
        yield rank, seen


def _callbacks(tensorboard: bool) -> list[training.Callback]:
    return [training.TensorBoard()] if tensorboard else []


def _finish(folder: training.RunFolder, console: Console, rank: int) -> None:
    if rank > 0:
        return
    report = reports.write_report(folder)
    table = Table(title="Unseen test tasks", title_justify="left")
    for column in ("quantity", "before meta-training", "after meta-training", "tasks"):
        table.add_column(column)
    records = folder.read_metrics()
    for row in reports.final_table(records):
        table.add_row(row["quantity"], row["before"], row["after"], row["n"])
    console.print(table)
    if records[-1].get("transductive"):
        console.print(together(records[-1].get("transductive_by", "")))
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
