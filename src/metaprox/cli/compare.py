"""metaprox compare, recount: several methods on the same tasks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from metaprox import comparison, reports, training
from metaprox.cli.options import WithSettings
from metaprox.comparison.results import write
from metaprox.storage.files import damaged


@dataclass(frozen=True, kw_only=True)
class Compare(WithSettings):
    """Meta-train several methods on the same tasks from the same initial points: table, paired differences, figure.

    Settings are shared by all methods. A comparison that was stopped goes on where it was when given again.

    Example: metaprox compare mnist1d --methods fobmaml maml --out runs/methods
    """

    out: Path
    """Folder of the comparison. Runs with the same settings that it holds already are kept or continued."""
    methods: tuple[str, ...] = ("fobmaml", "maml", "imaml", "fomaml", "reptile")
    """Methods by name; differences are to the first. Also: fobmaml-loss, fobmaml-forward, fobmaml-forward-loss,
    tangent, and the names in --variants."""
    variants: Path | None = None
    """JSON file with settings of single methods: {"name": {"method": "maml", "lam": 0.1}, ...}. A name that --methods
    knows takes its settings from here; each is merged into the shared settings."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of weights and tasks. Every method runs with each; fewer than five are no ground for preferring one."""
    budget: comparison.Budget = "steps"
    """What is equal for all. steps: inner and outer steps; gradients: gradient evaluations (those of the first method),
    a Hessian-vector product counted as two."""
    jobs: int = 1
    """Runs at once, each in a process of its own."""

    def run(self, console: Console) -> None:
        """Run what is missing, and write the report."""
        shared = self.settings()
        shared = shared if "eval_split" in shared.given else shared.but(eval_split="test")
        plan = comparison.Plan.of(shared, self._variants(), self.seeds, self.budget)
        results = comparison.compare(plan, self.out, self.jobs, lambda line: print(line, flush=True))
        _show_comparison(results, self.out, console)

    def _variants(self) -> dict[str, dict[str, Any]]:
        own = training.read_variants(self.variants) if self.variants else {}
        return {label: own[label] if label in own else training.preset(label) for label in self.methods}


@dataclass(frozen=True)
class Recount:
    """Take the table, the figure and the page of a finished comparison anew from what its runs left; nothing runs.

    Example: metaprox recount runs/methods
    """

    out: tyro.conf.Positional[Path]
    """Folder of the comparison: comparison.json, and test_tasks.json of every run that finished."""

    def run(self, console: Console) -> None:
        """Read the runs, and write the report."""
        results, place = comparison.read(self.out), self.out / "comparison.json"
        with training.RunFolder(self.out).locked(), damaged(place, "the comparison.json of a comparison"):
            results = comparison.recount(results, self.out)
            write(results, self.out)
            _show_comparison(results, self.out, console)


def _show_comparison(results: dict[str, Any], out: Path, console: Console) -> None:
    """Write table, figure and page, and print the columns that fit a terminal."""
    report = reports.write_comparison(results, out)
    tasks = next(iter(results["methods"].values()))["settings"]["tasks"]
    title = f"{tasks}, seeds {', '.join(map(str, results['seeds']))}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for key in reports.IN_A_TERMINAL:
        table.add_column(reports.COLUMNS[key], justify="left" if key == "method" else "right")
    for row in reports.comparison_table(results):
        cells = (row[key] for key in reports.IN_A_TERMINAL)
        table.add_row(
            *(re.sub(" (?=[±%]|[0-9n])", "\N{NO-BREAK SPACE}", cell) if "±" in cell else cell for cell in cells)
        )
    console.print(table)
    console.print(reports.legend(results), highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
