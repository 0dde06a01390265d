"""What is seen of a run while it goes on."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metaprox import training


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[training.Progress], None]]:
    """A live bar with loss, accuracy and time left; where the output is no terminal, a line now and then."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeRemainingColumn())
    live = console.is_terminal
    with Progress(*columns, console=console, disable=not live) as bar:
        task = bar.add_task("preparing", total=None)

        def watch(now: training.Progress) -> None:
            values = {"loss": now.loss} | now.metrics | now.evaluated
            text = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            bar.update(task, total=now.total, completed=now.step, description=text)
            if not live and now.step % math.ceil(now.total / 10) == 0:
                print(f"meta-step {now.step} of {now.total}  {text}", flush=True)

        yield watch
