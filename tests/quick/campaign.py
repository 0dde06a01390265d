"""Which runs there are, and running them, several at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quick.one import PRECISION

CHILD = Path(__file__).with_name("one.py")
OF_NETWORKS = ("accuracy", "inner-step", "mnist1d-tuning", "normalize", "smoothness", "training-budgets")
"""Experiments that train networks in float32, which float64 is another setting for."""
LAST_LINES = 12


@dataclass(frozen=True)
class Setting:
    """What must change nothing. precision: "as written", or "float64" for networks and their data."""

    experiment: str
    threads: int
    precision: str
    seed: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.experiment}: {threads}, {self.precision}, seed {self.seed}"


@dataclass
class Ran:
    """What came of one: its checks, or why there are none."""

    setting: Setting
    seconds: float = 0.0
    failure: str | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)


def settings(
    experiments: Iterable[str], threads: Iterable[int], seeds: Iterable[int], precisions: Iterable[str]
) -> list[Setting]:
    """All that are to run: those of the first seed before others, so that a campaign that is stopped has each."""
    return [
        Setting(name, count, precision, seed)
        for seed in seeds
        for name in experiments
        for precision in precisions
        for count in threads
        if precision != "float64" or name in OF_NETWORKS
    ]


@dataclass
class _Running:
    setting: Setting
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[bytes]
    began: float

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(todo: Iterable[Setting], jobs: int, limit: float, say: Callable[[Ran], None]) -> None:
    """Run each in a process of its own, with at most ``jobs`` threads of all at once and ``limit`` seconds for each."""
    waiting, running = list(todo), list[_Running]()
    try:
        while waiting or running:
            while (one := _next(waiting, jobs - sum(other.setting.threads for other in running))) is not None:
                waiting.remove(one)
                running.append(_started(one))
            for ran in _ended(running, limit):
                say(ran)
            time.sleep(0.2)
    finally:
        for one in running:
            one.end()
            one.folder.cleanup()


def _next(waiting: list[Setting], free: int) -> Setting | None:
    return next((one for one in waiting if one.threads <= free), None)


def _started(setting: Setting) -> _Running:
    folder = tempfile.TemporaryDirectory(prefix="quick-")
    threads = str(setting.threads)
    own = {
        PRECISION: setting.precision,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",  # or threads that wait for others take the cores from those they wait for
    }
    command = [sys.executable, str(CHILD), setting.experiment, threads, str(setting.seed), folder.name]
    with (Path(folder.name) / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            command,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group, so that what it has started ends with it
        )
    return _Running(setting, folder, process, time.monotonic())


def _ended(running: list[_Running], limit: float) -> Iterator[Ran]:
    """Those that are done or out of time; they are taken out of ``running``."""
    for one in list(running):
        took = time.monotonic() - one.began
        late = one.process.poll() is None and took > limit
        if one.process.poll() is None and not late:
            continue
        one.end()
        running.remove(one)
        yield _outcome(one, f"not done after {limit:g} s" if late else None, took)
        one.folder.cleanup()


def _outcome(one: _Running, failure: str | None, took: float) -> Ran:
    folder = Path(one.folder.name)
    if failure is None and (folder / "found.json").is_file():
        found = json.loads((folder / "found.json").read_text())
        return Ran(one.setting, found["seconds"], None, found["checks"])
    said = (folder / "said.txt").read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    return Ran(one.setting, round(took, 1), failure or "\n".join([f"ended with {one.process.returncode}", *said]))
