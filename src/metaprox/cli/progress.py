"""What is seen of a run while it goes on: a line that says what is trained and what is tested, how fast, how long."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from metaprox import training

WHEN = {"before": "test before training", "during": "evaluation", "after": "final test"}
RECENT = 200  # meta-steps that the rate is taken over
SILENT = 60.0  # seconds after which a line is due where there is no terminal


class Pace:
    """Meta-steps a second over the last ones, evaluations between them included; the first, which compiles, is not."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def see(self, step: int, now: float) -> None:
        """A meta-step is done."""
        self._seen.append((step, now))

    def shown(self, total: int) -> str:
        """``12.3 steps/s, 0:01:02 left``, or ``4.1 s/step``; nothing before there are two."""
        if len(self._seen) < 2 or self._seen[-1][1] <= self._seen[0][1]:
            return ""
        (first, began), (last, now) = self._seen[0], self._seen[-1]
        rate = (last - first) / (now - began)
        fast = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"
        return f"{fast}, {timedelta(seconds=round((total - last) / rate))} left"


class Watcher(training.Callback):
    """Shows a run on a live bar or, without one, in lines; nothing where ``quiet``."""

    def __init__(self, bar: Progress, *, live: bool, quiet: bool) -> None:
        self._bar, self._live, self._lines = bar, live, not live and not quiet
        self._task = bar.add_task("", total=None, pace="", doing="starting: data, model, a look at both")
        self._pace, self._said = Pace(), time.monotonic()
        self._say("starting: data, model, a look at both")

    def watch(self, now: training.Progress) -> None:
        """A meta-step is done."""
        self._pace.see(now.step, time.monotonic())
        text = described(now)
        pace = self._pace.shown(now.total)
        self._bar.update(self._task, total=now.total, completed=now.step, doing="training", pace=pace, description=text)
        due = now.step % math.ceil(now.total / 10) == 0 or time.monotonic() - self._said > SILENT
        if due:
            self._say("  ".join(part for part in (f"meta-step {now.step} of {now.total}", text, pace) if part))

    def on_evaluating(self, trainer: training.Trainer, when: str, split: str, done: int, count: int) -> None:
        what = f"{WHEN[when]} on {split} tasks" if when == "during" else WHEN[when]
        self._bar.update(self._task, doing=f"{what}, {done} of {count} tasks")
        late = time.monotonic() - self._said > SILENT
        if late or (done == 0 and when != "during"):
            self._say(f"{what}: {count} tasks" if done == 0 else f"{what}: {done} of {count} tasks")

    def on_evaluation(self, trainer: training.Trainer, record: Mapping[str, Any]) -> None:
        self._bar.update(self._task, doing="training")

    def on_end(self, trainer: training.Trainer, folder: training.RunFolder) -> None:
        self._bar.update(self._task, doing="done")

    def _say(self, line: str) -> None:
        if self._lines:
            print(line, flush=True)
            self._said = time.monotonic()


def described(now: training.Progress) -> str:
    """``training loss 0.512 accuracy 0.801  validation loss 0.604 ...``, health, and what the run was warned of."""
    trained = " ".join(f"{name} {value:.3f}" for name, value in ({"loss": now.loss} | now.metrics).items())
    evaluated = [f"{name} {value:.3f}" for name, value in now.evaluated.items()]
    health = [f"{name} {value:.3f}" for name, value in now.health.items()]
    return "  ".join([f"training {trained}", *evaluated, *health, *now.warnings])


class Bar(Progress):
    """What is done, how far and how fast in a line, and the numbers below it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description) for task in self.tasks if task.description)


@contextmanager
def shown_progress(console: Console, *, quiet: bool = False) -> Iterator[Watcher]:
    """A live bar with training, validation, health, warnings, rate and time left; lines without a terminal.

    Yields:
        What watches the run, of which it is also a callback.
    """
    columns = (
        TextColumn("{task.fields[doing]}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    live = console.is_terminal and not quiet
    with Bar(*columns, console=console, disable=not live) as bar:
        yield Watcher(bar, live=live, quiet=quiet)
