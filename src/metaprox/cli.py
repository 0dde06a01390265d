"""The command line: ``metaprox train``, ``metaprox resume``, ``metaprox evaluate``."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from metaprox.errors import InputError, MetaproxError, needs_extra

with needs_extra("the command line"):
    import tyro
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from metaprox import training
    from metaprox.tasks import Split
    from metaprox.training.report import final_table, show


@dataclass(frozen=True)
class Train:
    """Meta-train on a family of tasks, evaluate on unseen ones, write figures and a report."""

    out: Path
    """Run folder; must be missing or empty."""
    config: tyro.conf.OmitArgPrefixes[training.TrainConfig]

    def run(self, console: Console) -> None:
        """Train from the start."""
        with _progress(console) as watch:
            folder = training.train(self.config, self.out, watch)
        _finish(folder, console)


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from its last checkpoint, as if it had never stopped."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""

    def run(self, console: Console) -> None:
        """Train from the last checkpoint."""
        with _progress(console) as watch:
            folder = training.resume(self.run_folder, watch)
        _finish(folder, console)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the meta-learned weights of a finished run."""

    run_folder: tyro.conf.Positional[Path]
    """Run folder, as given to metaprox train --out."""
    split: Split = "test"
    """Which tasks."""
    count: int = 600
    """How many tasks: those with ids 0 to N - 1."""
    as_json: bool = False
    """Print JSON instead of a table."""

    def run(self, console: Console) -> None:
        """Print the statistics."""
        folder = training.RunFolder.open(self.run_folder)
        setup = training.build(folder.config())
        training.load_weights(folder, setup)
        result = setup.evaluate(self.split, self.count)
        statistics = {name: asdict(value) for name, value in ({"loss": result.loss} | result.metrics).items()}
        if self.as_json:
            print(json.dumps({"split": self.split, "transductive": result.transductive, **statistics}))
            return
        table = Table(
            title=f"{self.count} {self.split} tasks, after {setup.config.steps} inner steps", title_justify="left"
        )
        for column in ("quantity", "mean and 95 % interval", "std between tasks"):
            table.add_column(column)
        for name, value in statistics.items():
            table.add_row(f"query {name}", show(name, value), f"{value['std']:.3f}")
        console.print(table)


COMMANDS: dict[str, Callable[..., Train | Resume | Evaluate]] = {"train": Train, "resume": Resume, "evaluate": Evaluate}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. An error of metaprox ends it with one message and status 1, or 2 for bad input."""
    try:
        parse(arguments).run(Console())
    except MetaproxError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"metaprox: error: {error}{notes}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def parse(arguments: Sequence[str] | None) -> Train | Resume | Evaluate:
    """The command that the arguments (of this process, if None) ask for."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="metaprox",
        description="Meta-learn the parameters of PyTorch models with first derivatives only (FO-B-MAML).",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _finish(folder: training.RunFolder, console: Console) -> None:
    report = training.write_report(folder)
    table = Table(title="Unseen test tasks", title_justify="left")
    for column in ("quantity", "before meta-training", "after meta-training", "tasks"):
        table.add_column(column)
    for row in final_table(folder.read_metrics()):
        table.add_row(row["quantity"], row["before"], row["after"], row["n"])
    console.print(table)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[training.Progress], None]]:
    """A live bar with loss, accuracy and time left; where the output is no terminal, a line now and then."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live) as bar:
        task = bar.add_task("preparing", total=None)

        def watch(now: training.Progress) -> None:
            values = {"loss": now.loss} | now.metrics
            text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            bar.update(task, total=now.total, completed=now.step, description=text)
            if not live and now.step % math.ceil(now.total / 10) == 0:
                print(f"meta-step {now.step} of {now.total}  {text}", flush=True)

        yield watch


if __name__ == "__main__":
    main()
