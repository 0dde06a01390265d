"""What is seen of a run while it goes on."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metaprox import training


@contextmanager
def shown_progress(console: Console, *, quiet: bool = False) -> Iterator[Callable[[training.Progress], None]]:
    """A live bar with loss, health, warnings and time left; lines without a terminal; nothing where ``quiet``."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    live = console.is_terminal and not quiet
    with Progress(*columns, console=console, disable=not live) as bar:
        task = bar.add_task("preparing", total=None)

        def watch(now: training.Progress) -> None:
            values = {"loss": now.loss} | now.metrics | now.evaluated | now.health
            text = "  ".join([f"{name} {value:.3f}" for name, value in values.items()] + list(now.warnings))
            bar.update(task, total=now.total, completed=now.step, description=text)
            if not live and not quiet and now.step % math.ceil(now.total / 10) == 0:
                print(f"meta-step {now.step} of {now.total}  {text}", flush=True)

        yield watch
