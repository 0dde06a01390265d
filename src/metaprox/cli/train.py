"""metaprox train, resume: a run from its start, or from its last checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from metaprox import reports, training, tuning
from metaprox.cli.options import WithSettings
from metaprox.cli.progress import shown_progress


@dataclass(frozen=True, kw_only=True)
class Train(WithSettings):
    """Meta-train on a family of tasks, evaluate on unseen ones, write figures and a report."""

    out: Path
    """Run folder; must be missing or empty."""
    tuned: Path | None = None
    """Folder of a search, metaprox tune --out: with the settings that it found best, but for those given."""

    def run(self, console: Console) -> None:
        """Train from the start."""
        settings = self.settings() if self.tuned is None else tuning.with_best(self.settings(), self.tuned)
        with shown_progress(console) as watch:
            folder = training.train(settings, self.out, watch)
        _finish(folder, console)


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from its last checkpoint, as if it had never stopped."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""

    def run(self, console: Console) -> None:
        """Train from the last checkpoint."""
        with shown_progress(console) as watch:
            folder = training.resume(self.run_folder, watch)
        _finish(folder, console)


def _finish(folder: training.RunFolder, console: Console) -> None:
    report = reports.write_report(folder)
    table = Table(title="Unseen test tasks", title_justify="left")
    for column in ("quantity", "before meta-training", "after meta-training", "tasks"):
        table.add_column(column)
    for row in reports.final_table(folder.read_metrics()):
        table.add_row(row["quantity"], row["before"], row["after"], row["n"])
    console.print(table)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
