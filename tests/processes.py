"""Ranks of gloo groups, forked from one fresh interpreter: ``python tests/processes.py SCENARIO:WORLD:ARGUMENT ...``.

Prints a line of JSON for each: what the ranks returned, or the errors that ended them, and when; null for a rank that
was killed. "halted": when one was.
"""

import errno
import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import metaprox as mp
import processes_sharded
from metaprox import training as runs
from metaprox.storage.lock import locked
from metaprox.training import weights

torch.set_num_threads(1)
SIZES = (7, 3, 1, 5)  # tasks of a meta-step: with four processes shards are uneven, or empty
PATIENCE = 3.0


def net(width=8, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double()


def loss(model, batch):
    error = model(batch[0]) - batch[1]
    return error.square().mean(), {"absolute": error.abs().mean()}


def tasks(ids):
    """Task i is a function of i."""
    made = [task(i) for i in ids]
    return mp.Task.stack(made) if made else []


def task(i):
    source = torch.Generator().manual_seed(i)
    x = torch.randn(12, 3, generator=source, dtype=torch.float64)
    y = x[:, :1].sin() * torch.randn(1, generator=source, dtype=torch.float64)
    return mp.Task((x[:6], y[:6]), (x[6:], y[6:]))


def flat(values):
    return torch.cat([value.detach().flatten() for value in values]).tolist()


def training(rank, argument):
    """Meta-steps of a net with dropout, then an evaluation. ``argument``: the backend, or compiled; how many steps."""
    how, steps = argument.split("-")
    backend, compiled = ("vmap", True) if how == "compiled" else (how, False)
    model = net()
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5)
    optimizer = mp.optim.NormalizedSGD(model.parameters(), lr=0.05, momentum=0.9)
    all_reduce = mp.distributed.AllReduce(patience=60.0)
    meta = mp.FOBMAML(mp.GradientDescent(0.1), 3, backend=backend, compile=compiled, reduce=all_reduce)
    first = 0
    for step in range(int(steps)):
        ids = range(first, first + SIZES[step % len(SIZES)])
        first = ids.stop
        weights = [1.0 + i % 3 for i in mp.distributed.shard(ids)]
        optimizer.zero_grad()
        out = meta.backward(problem, tasks(mp.distributed.shard(ids)), weights=weights)
        optimizer.step()
    judged = mp.distributed.evaluate(
        problem, tasks, range(9), mp.GradientDescent(0.1), 3, batch_size=4, more=lambda ids: {"id": torch.tensor(ids)}
    )
    return {
        "weights": flat(model.parameters()),
        "tasks": [out.query_loss.tolist(), out.metrics["absolute"].tolist()],
        "info": out.info.summary(),
        "counts": vars(out.info.counts),
        "evaluation": {name: values.tolist() for name, values in judged.values.items()},
        "draw": int(torch.randint(2**31, ())),
    }


def scale(model, data):
    """Diverges for a curvature of 1e3; raises for one below 0."""
    if float(data.sum()) < 0:
        raise ValueError("a curvature below 0")
    return 0.5 * data.sum() * model.weight.square().sum()


def failing(rank, argument):
    """One call after another in which something is wrong in one rank: what each rank raises, or gets."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    problem = mp.ProximalProblem.from_module(model, scale, lam=1.0)
    meta = mp.FOBMAML(mp.GradientDescent(0.5), 30, backend="loop", reduce=mp.distributed.AllReduce(patience=20.0))
    skip, found = replace(meta, on_nonfinite="skip"), []

    def of(curvatures, estimator=meta, **settings):
        own = [mp.Task(torch.tensor([c]), torch.ones(1)) for c in curvatures]
        try:
            out = estimator(problem, dict(model.named_parameters()), own, **settings)
            found.append([out.grad["weight"].flatten().tolist(), out.info.skipped.tolist(), out.query_loss.tolist()])
        except mp.MetaproxError as error:
            found.append([type(error).__name__, str(error), getattr(error, "task", None)])
        except ValueError as error:
            found.append([type(error).__name__, str(error), None])

    own = {0: [1.0, 1.0], 1: [1.0], 2: [], 3: [0.5, 1.0]}[rank]
    of(own)
    of([1.0, 1e3] if rank == 3 else own)  # diverges
    of([1.0, 1e3] if rank == 3 else own, skip)
    of([1e3] if rank == 1 else own, skip)  # all of a rank's
    of([1e3] * len(own), skip)  # all there are
    of([1.0, -1.0] if rank == 0 else own)  # the loss raises
    of(own, weights=[-1.0] if rank == 1 else None)  # a bad argument
    of([])
    of(own, replace(meta, reduce=None))
    of(own, replace(meta, reduce=mp.Reduce()) if rank < 2 else replace(meta, reduce=None))
    if rank == 1:
        with torch.no_grad():
            model.weight.fill_(2.0)
    of(own)  # other values
    if rank == 1:
        problem = mp.ProximalProblem.from_module(net().float(), loss, lam=1.0)
        model = net().float()
    of(own)  # other parameters
    return found


def halting(rank, argument):
    """Meta-steps until a rank is killed, stopped, or fails outside of a call."""
    model = net()
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5)
    meta = mp.FOBMAML(mp.GradientDescent(0.1), 3, reduce=mp.distributed.AllReduce(patience=PATIENCE))
    for step in range(10**6):
        if step == 5 and rank == 2 and argument != "slow":
            if argument == "error":
                raise ZeroDivisionError("outside")
            Path(os.environ["HALTED"]).write_text(str(time.time()))
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[argument])
        if step == 5 and argument == "slow" and rank == 1:
            time.sleep(2 * PATIENCE)  # computes for long, and lives
        if step == 6 and argument == "slow":
            return step
        meta.backward(problem, tasks(mp.distributed.shard(range(8))))
    return None


class Told(runs.Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *given: self.events.append(name)
        return super().__getattribute__(name)


PACE = runs.Pace(
    meta_steps=30, meta_batch=5, eval_every=8, eval_tasks=5, test_tasks=3, checkpoint_every=10, keep_weights="best"
)


def trainer(source=tasks, callbacks=()):
    model = net(width=3)
    return runs.Trainer(
        mp.ProximalProblem.from_module(model, loss, lam=0.5),
        mp.FOBMAML(mp.GradientDescent(0.1), 2),
        mp.optim.NormalizedSGD(model.parameters(), lr=0.05, momentum=0.9),
        {"train": source, "validation": tasks, "test": tasks},
        PACE,
        callbacks=callbacks,
    )


def left(folder):
    """What a run has left, and its steps."""
    found = runs.RunFolder.open(folder)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found.read_metrics()]
    learned = weights.load(found.weights, weights.WEIGHTS)[0] if found.weights.exists() else {}
    return {"rows": rows, "weights": flat(learned.values()) if learned else [], "last": found.checkpoint.name}


def running(rank, argument):
    """A run in a folder that all ranks see: as it is, or with something in its way."""
    folder = Path(os.environ["HALTED"]).parent / "run"
    if argument == "callbacks":
        told = Told()
        trainer(callbacks=[told, runs.TensorBoard()]).train(folder)
        return {"events": sorted(set(told.events)), "tensorboard": len(list(folder.glob("tensorboard/*")))}
    if argument == "stream":
        try:
            trainer([task(i) for i in range(10)]).train(folder)
        except mp.InputError as error:
            return {"message": str(error), "made": folder.exists()}
    if argument == "full":
        if rank == 0:
            refuse_after(12)
        trainer().train(folder)
    if argument == "locked":
        trainer().train(folder)
        if rank == 0:
            hold(folder)
        trainer().resume(folder)
    if argument.startswith("stopped"):
        return stopped(rank, folder, [int(word) for word in argument.split("-")[1:]])
    trainer().train(folder)
    return left(folder)


def refuse_after(lines):
    """Of metrics.jsonl: the disk is full then."""
    opened, seen = Path.open, []

    def refused(path, mode="r", *given, **named):
        if mode == "a":
            seen.append(path)
            if len(seen) > lines:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *given, **named)

    Path.open = refused


def hold(folder):
    """Another process works in the folder."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        with locked(folder):
            os.write(writer, b"1")
            time.sleep(15)
        os._exit(0)
    os.read(reader, 1)


def stopped(rank, folder, calls):
    """Each rank gets SIGTERM at the call of its loss of that number; then all go on with the run."""
    seen, stops = [], []

    def asking(ids):
        seen.append(ids)
        if len(seen) == calls[rank]:
            os.kill(os.getpid(), signal.SIGTERM)
        return tasks(ids)

    while True:
        one = trainer(asking)
        try:
            one.resume(folder) if stops else one.train(folder)
            return {"stops": stops, **left(folder)}
        except runs.Stopped as error:
            stops.append([error.code, error.where.split(",")[0], left(folder)["last"] if rank == 0 else ""])


SCENARIOS = {
    "training": training,
    "failing": failing,
    "halting": halting,
    "running": running,
    "sharded": processes_sharded.sharded,
}


def run_rank(rank, world, name, argument, folder, port):
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"tcp://127.0.0.1:{port}")
    try:
        found = {"found": SCENARIOS[name](rank, argument)}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error), "at": time.time()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(name, world, argument, seconds=120.0):
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HALTED"] = f"{folder}/halted"
        port, running, stopped = free_port(), [], []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                run_rank(rank, world, name, argument, folder, port)
            running.append(child)
        began = time.time()
        while running and time.time() - began < seconds:
            done, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if done:
                running.remove(done)
                stopped += [done] if os.WIFSTOPPED(status) else []
            time.sleep(0.01)
        for child in (*running, *stopped):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        places = [Path(folder, f"{rank}.json") for rank in range(world)]
        found = [json.loads(place.read_text()) if place.exists() else None for place in places]
        halted = Path(os.environ["HALTED"])
        return {"ranks": found, "halted": float(halted.read_text()) if halted.exists() else None}


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        scenario, size, word = asked.split(":")
        print(json.dumps(run(scenario, int(size), word)), flush=True)
