"""The command line: metaprox train, resume, check, evaluate, compare, recount, reproduce."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metaprox.errors import InputError, MetaproxError, needs_extra

with needs_extra("the command line"):
    import tyro
    from rich import box
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
class Check:
    """Look for what is wrong with a configuration, on a few training tasks: losses, steps, solves, meta-gradient."""

    run_folder: tyro.conf.Positional[Path | None] = None
    """Run folder, whose settings and latest weights are looked at. Without one: the settings given here, untrained."""
    ids: tuple[int, ...] = (0, 1, 2)
    """Training tasks that are looked at, by number."""
    config: tyro.conf.OmitArgPrefixes[training.TrainConfig] = field(default_factory=training.TrainConfig)

    def run(self, console: Console) -> None:
        """Print the verdict; status 1 where something is wrong."""
        verdict = training.check_run(self.config, self.run_folder, self.ids)
        print(verdict)
        training.refuse_wrong(verdict)


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
        for column in ("quantity", "mean and 95 % interval over tasks", "std between tasks"):
            table.add_column(column)
        for name, value in statistics.items():
            table.add_row(f"query {name}", show(name, value), f"{value['std']:.3f}")
        console.print(table)


@dataclass(frozen=True)
class Compare:
    """Meta-train several methods on the same tasks from the same initial points: table, paired differences, figure.

    Settings are shared by all methods. A comparison that was stopped goes on where it was when given again.
    """

    out: Path
    """Folder of the comparison. Runs with the same settings that it holds already are kept or continued."""
    config: tyro.conf.OmitArgPrefixes[training.TrainConfig] = field(
        default_factory=lambda: training.TrainConfig(eval_split="test")
    )
    methods: tuple[str, ...] = ("fobmaml", "maml", "imaml", "fomaml", "reptile")
    """Methods by name; differences are to the first. Also: fobmaml-center, fobmaml-forward, fobmaml-forward-center,
    tangent, and the names in --variants."""
    variants: Path | None = None
    """JSON file with settings of single methods: {"name": {"method": "maml", "lam": 0.1}, ...}. A name that --methods
    knows takes its settings from here; each is merged into the shared settings."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights and tasks. Every method runs with each; fewer than five are no ground for preferring one."""
    budget: training.Budget = "steps"
    """What is equal for all. steps: inner and outer steps; gradients: gradient evaluations (those of the first method),
    a Hessian-vector product counted as two."""
    jobs: int = 1
    """Runs at once, each in a process of its own."""

    def run(self, console: Console) -> None:
        """Run what is missing, and write the report."""
        plan = training.Plan.of(self.config, self._variants(), self.seeds, self.budget)
        results = training.compare(plan, self.out, self.jobs, lambda line: print(line, flush=True))
        _show_comparison(results, self.out, console)

    def _variants(self) -> dict[str, dict[str, Any]]:
        own = training.read_variants(self.variants) if self.variants else {}
        return {label: own[label] if label in own else training.preset(label) for label in self.methods}


@dataclass(frozen=True)
class Recount:
    """Take the table, the figure and the page of a finished comparison anew from what its runs left; nothing runs."""

    out: tyro.conf.Positional[Path]
    """Folder of the comparison: comparison.json, and test_tasks.json of every run that finished."""

    def run(self, console: Console) -> None:
        """Read the runs, and write the report."""
        results = training.recount(training.read_comparison(self.out), self.out)
        training.RunFolder(self.out).write_text("comparison.json", json.dumps(results, indent=2) + "\n")
        _show_comparison(results, self.out, console)


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of the documentation again: raw numbers, a figure, and checks against what is expected."""

    name: tyro.conf.Positional[str] = "all"
    """Experiment, or all. --list shows them."""
    list: bool = False
    """List the experiments and what they show."""
    quick: bool = False
    """Small sizes: all in about ten minutes on two cores."""
    out: Path = Path("reproduced")
    """Folder for the results; each experiment has one of its own in it."""
    seed: int = 0
    """Seed of whatever is random."""

    def run(self, console: Console) -> None:
        """Print pass or fail for each check; status 1 if one failed."""
        from metaprox.experiments import EXPERIMENTS, has_results, judge, reproduce, write_summary

        if self.list:
            for name, experiment in EXPERIMENTS.items():
                console.print(f"{name:22} {experiment.claim}", highlight=False, soft_wrap=True)
            return
        if self.name not in {"all", *EXPERIMENTS}:
            raise InputError(f"unknown experiment {self.name!r}; known: all, {', '.join(EXPERIMENTS)}")
        outcomes = []
        for name in EXPERIMENTS if self.name == "all" else (self.name,):
            outcome = reproduce(EXPERIMENTS[name], self.out, "quick" if self.quick else "full", self.seed)
            outcomes.append(outcome)
            for check in outcome.checks:
                print(f"{name}: {check}", flush=True)
        there = [judge(other, self.out) for other in EXPERIMENTS.values() if has_results(other, self.out)]
        print(f"report of all results in {self.out}: {write_summary(there, self.out)}")
        failed = [outcome.experiment.name for outcome in outcomes if not outcome.passed]
        if failed:
            raise MetaproxError(f"checks failed in: {', '.join(failed)}")


Command = Train | Resume | Check | Evaluate | Compare | Recount | Reproduce
COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train,
    "resume": Resume,
    "check": Check,
    "evaluate": Evaluate,
    "compare": Compare,
    "recount": Recount,
    "reproduce": Reproduce,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. An error of metaprox ends it with one message and status 1, or 2 for bad input."""
    try:
        parse(arguments).run(Console())
    except MetaproxError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"metaprox: error: {error}{notes}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def parse(arguments: Sequence[str] | None) -> Command:
    """The command that the arguments (of this process, if None) ask for."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="metaprox",
        description="Meta-learn the parameters of PyTorch models with first derivatives only (FO-B-MAML).",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _show_comparison(results: dict[str, Any], out: Path, console: Console) -> None:
    """Write table, figure and page, and print the columns that fit a terminal."""
    report = training.write_comparison(results, out)
    tasks = next(iter(results["methods"].values()))["settings"]["tasks"]
    title = f"{tasks}, seeds {', '.join(map(str, results['seeds']))}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for key in training.IN_A_TERMINAL:
        table.add_column(training.COLUMNS[key], justify="left" if key == "method" else "right")
    for row in training.comparison_table(results):
        cells = (row[key] for key in training.IN_A_TERMINAL)
        table.add_row(
            *(re.sub(" (?=[±%]|[0-9n])", "\N{NO-BREAK SPACE}", cell) if "±" in cell else cell for cell in cells)
        )
    console.print(table)
    console.print(training.legend(results), highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


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
