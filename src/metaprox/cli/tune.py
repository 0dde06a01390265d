"""metaprox tune: the settings of one or several methods, searched on validation tasks."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from metaprox import training, tuning
from metaprox.cli.options import WithSettings

SHOWN = 10  # trials of a method in the table


@dataclass(frozen=True, kw_only=True)
class Tune(WithSettings):
    """Search the settings of a method on validation tasks, with Optuna: inner step, lam, outer step, inner steps.

    Settings that are given are kept, and the others searched. Given again, a search that was stopped goes on; given
    several times at once, on several machines too, it is shared.

    Example: metaprox tune mnist1d --ways 3 --out runs/search
    """

    out: Path
    """Folder of the search, for train --tuned."""
    trials: int = 24
    """Candidates of each method, those that are there already among them."""
    methods: tuple[str, ...] = ()
    """Methods by name that each get the same search, as for compare, which takes what was found: --variants
    OUT/best.json. Default: that of --method alone."""
    space: tuple[str, ...] = ()
    """Settings to search, NAME=LOW:HIGH on a log scale or NAME=A,B,C by choice: inner_lr=0.01:1 steps=5,10 nu=0.02:0.5.
    They take the place of the usual ones of their name, or come to them."""
    rungs: int = 3
    """How often a candidate is judged: after each rung but the last, a whole run, only the best go on."""
    reduction: int = 3
    """By how much a rung is longer than the one before; one in so many candidates goes on."""
    storage: str | None = None
    """Optuna storage by its URL, such as postgresql://..., which several machines share, each with an --out of its own.
    Default: a journal in --out."""
    study: str | None = None
    """Name of the search in the storage, to which that of the method is added. Default: that of the tasks."""

    def run(self, console: Console) -> None:
        """Search, and show what was found."""
        settings = self.settings()
        variants = {label: training.preset(label) for label in self.methods}
        chosen = str(settings.given.get("method") or settings.defaults()["method"])
        each = {label: settings.variant(own) for label, own in variants.items()} or {chosen: settings}
        searches = [
            tuning.Search(label, one, tuning.axes_of(one, self.space), self.rungs, self.reduction)
            for label, one in each.items()
        ]
        say = lambda line: print(line, flush=True)  # noqa: E731
        found = tuning.tune(searches, self.out, self.trials, storage=self.storage, study=self.study, say=say)
        for one in found:
            console.print(_table(one))
        print(f"best settings: {self.out / 'best.json'}; all trials: {self.out / 'trials.csv'}")
        print(f"train with them: metaprox train {settings.given['tasks']} --tuned {self.out} --out FOLDER")


def _table(found: tuning.Found) -> Table:
    """The best trials, and how many there are of each kind."""
    states = [one.state for one in found.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    table = Table(title=f"{found.search.label}: {counts}", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("trial", "meta-steps", found.measure, *(axis.name for axis in found.search.axes)):
        table.add_column(column, justify="right")
    for one in found.ranked()[:SHOWN]:
        cells = (tuning.shown({"": value}).strip() for value in (one.value, *one.found.values()))
        table.add_row(str(one.number), str(one.meta_steps), *cells)
    return table
