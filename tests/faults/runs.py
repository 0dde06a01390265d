"""Small fast runs, each in a process that is forked from one which has imported everything and computed nothing."""

import contextlib
import csv
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import metaprox as mp
from metaprox import comparison, training
from metaprox.cli import main
from metaprox.cli.ending import ending_in_one_line
from metaprox.comparison import cost
from metaprox.comparison import runs as comparison_runs
from metaprox.storage.lock import holder
from metaprox.training import Pace, Trainer, starts

PACE = Pace(meta_steps=20, meta_batch=2, eval_every=6, eval_tasks=3, test_tasks=4, checkpoint_every=4)
SETTINGS = training.Settings(
    "sinusoid", hidden=(6,), steps=2, compile="off", **{k: v for k, v in vars(PACE).items() if k != "seed"}
)
OURS = {"config.json", "checksums.json", "starts.jsonl", "metrics.jsonl", "test_tasks.json", "weights.safetensors"}
OURS |= {"data.json", "figures"}


class Noisy(torch.nn.Module):
    """Draws from the generators of torch, numpy and Python."""

    def __init__(self):
        super().__init__()
        self.inner, self.drop, self.head = torch.nn.Linear(1, 6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.inner(x))))


def _loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def _tasks(ids):
    """A slope each; the numbers at which it is seen are noise of the run."""
    found = []
    for i in ids:
        slope = torch.randn((), generator=torch.Generator().manual_seed(i))
        x = torch.tensor(np.random.standard_normal((6, 1)) + random.random(), dtype=torch.float32)
        found.append(mp.Task((x[:3], slope * x[:3]), (x[3:], slope * x[3:])))
    return found


def scripted(seed=0):
    """A trainer of a script, of which everything is its own."""
    torch.manual_seed(seed)
    model = Noisy()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(
        mp.ProximalProblem.from_module(model, _loss, lam=0.5),
        mp.FOBMAML(mp.GradientDescent(0.05), 2),
        optimizer,
        dict.fromkeys(("train", "validation", "test"), _tasks),
        replace(PACE, seed=seed, keep_weights="best"),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20),
    )


def _plan():
    shared = SETTINGS.but(meta_steps=8, checkpoint_every=2, eval_every=4)
    return comparison.Plan.of(shared, {"fomaml": {"method": "fomaml"}, "maml": {"method": "maml"}}, (0, 1))


def _train_settings(folder):
    training.resume(folder) if (folder / "config.json").exists() else training.train(SETTINGS, folder)


def settings_of_data(place):
    """Of a run on data of one's own, which lie in ``place``: lines of 16 slopes, 8 points of each."""
    if not (data := place / "lines.csv").exists():
        source = random.Random(0)
        with data.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["line", "a", "b", "y"])
            for line in range(16):
                slope = source.gauss(0, 1)
                for a, b in ((source.gauss(0, 1), source.gauss(0, 1)) for _ in range(8)):
                    out.writerow([f"line {line}", a, b, slope * a - b])
    own = {"data": data, "target": "y", "by": "line", "queries": 3}
    return training.Settings("tables", **own, **{k: v for k, v in SETTINGS.given.items() if k != "tasks"})


def _train_data(folder):
    going = (folder / "config.json").exists()
    training.resume(folder) if going else training.train(settings_of_data(folder.parent), folder)


def _train_script(folder):
    comparison.train_or_resume(scripted(), folder)


def _compare(folder):
    comparison_runs.measure = partial(
        cost._measure_here, rounds=1
    )  # in place of a process of its own, which takes seconds
    comparison.compare(_plan(), folder)


@dataclass(frozen=True)
class Kind:
    """A kind of run: ``work(folder)`` begins it or goes on with it."""

    name: str
    work: object


KINDS = {
    kind.name: kind
    for kind in (
        Kind("settings", _train_settings),
        Kind("data", _train_data),
        Kind("script", _train_script),
        Kind("comparison", _compare),
    )
}


ASKS = {signal.SIGINT, signal.SIGTERM}


def in_fork(work, log):
    """Returns the process that does ``work()``; what it prints goes into ``log``. Status 70: an exception came out."""
    sys.stdout.flush()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)  # but while there is something to run
    pid = os.fork()
    if pid:
        os.close(out)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)
        return pid
    status = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        warnings.simplefilter("always")
        with ending_in_one_line():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKS)
            work()
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKS)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(pid, seconds=None):
    """The status of a process, -N where signal N ended it; None where it has not after so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.0005)


def done(work, log):
    """The status of ``work()`` in a process of its own, and what it printed."""
    status = ended(in_fork(work, log))
    return status, log.read_text(errors="replace")


def command(*words):
    """The command line with these arguments."""
    return lambda: main([str(word) for word in words])


def contents(folder):
    """What a run or a comparison ended with, without seconds, bit for bit."""
    if (folder / "comparison.json").exists():
        results = comparison.read(folder)
        for method in results["methods"].values():
            del method["cost"]
        return results, [contents(path.parent) for path in sorted(folder.glob("*/*/config.json"))]
    found = training.RunFolder.open(folder)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found.read_metrics()]
    checkpoints = {path.name for path in found.checkpoints()}
    strange = {path.name for path in folder.iterdir()} - OURS - checkpoints
    strange = {name for name in strange if not name.endswith((".damaged", ".html"))}
    if holder(folder) is None:
        strange.discard(".lock")  # of a process that was killed as it gave it back: it keeps nobody out
    assert starts.read(found.starts)
    return found.weights.read_bytes(), repr(rows), found.read_test_values(), strange


def copied(folder, place):
    """A copy of a folder at ``place``."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place))
