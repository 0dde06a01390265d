"""metaprox evaluate: what a finished run has learned, on any of its splits."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from metaprox import training
from metaprox.cli.reads import Reads
from metaprox.errors import InputError
from metaprox.reports import show
from metaprox.tasks import Split


@dataclass(frozen=True, kw_only=True)
class Evaluate(Reads):
    """Evaluate the meta-learned weights of a finished run, on a split of its data or on other data.

    Example: metaprox evaluate runs/digits --split validation
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""
    split: Split = "test"
    """Which tasks."""
    count: int = 600
    """How many tasks: those with ids 0 to N - 1. Where a task is a group, each group once at most."""
    data: Path | None = None
    """Other data, read as the run read its own: test tasks are drawn from all of it."""
    as_json: bool = False
    """Print JSON instead of a table."""

    def run(self, console: Console) -> None:
        """Print the statistics."""
        folder = training.RunFolder.open(self.run_folder)
        if self.data is not None and self.split != "test":
            raise InputError(f"--data makes test tasks of all that it holds: leave out --split {self.split}")
        if self.data is None and self.columns():
            raise InputError(f"--{next(iter(self.columns())).replace('_', '-')} is of other data: give them (--data)")
        trainer = training.trainer_of(folder, self.data, **self.columns())
        trainer.load_weights(folder)
        result = trainer.evaluate(self.split, self.count)
        statistics = {name: asdict(value) for name, value in ({"loss": result.loss} | result.metrics).items()}
        if self.as_json:
            print(json.dumps({"split": self.split, "transductive": result.transductive, **statistics}))
            return
        steps = f" of {trainer.estimator.steps} inner steps" if trainer.estimator.steps else ""
        where = f" of {self.data}" if self.data else ""
        table = Table(title=f"{result.loss.n} {self.split} tasks{where}, after adaptation{steps}", title_justify="left")
        for column in ("quantity", "mean and 95 % interval over tasks", "std between tasks"):
            table.add_column(column)
        for name, value in statistics.items():
            table.add_row(f"query {name}", show(name, value), f"{value['std']:.3f}")
        console.print(table)
        if result.transductive:
            console.print(together(result.transductive_by))


def together(by: str) -> str:
    """What to know of an evaluation in which predictions depend on each other."""
    return (
        "Query examples were predicted together, and their predictions depend on each other"
        f"{f' (by {by})' if by else ''}: of single examples, or of one class, expect less."
    )
