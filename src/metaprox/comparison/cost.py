"""What one meta-step costs: evaluations counted, memory from torch's allocator, time of several settings in turn."""

import gc
import itertools
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch.autograd.profiler import profile

from metaprox.errors import MetaproxError, NonFiniteError
from metaprox.losses.counts import Counts
from metaprox.training import Trainer

PRODUCT_COST = 2  # A Hessian-vector product is a gradient and a backward pass through it.


class Makes(Protocol):
    """What is measured."""

    def trainer(self, seed: int) -> Trainer:
        """The run of a seed."""


@dataclass(frozen=True)
class Cost:
    """Of one meta-step: evaluations per task, bytes allocated at the peak beyond what was there, median seconds."""

    counts: Counts
    peak_bytes: int
    seconds: float

    @property
    def gradients(self) -> int:
        """Gradient evaluations per task and meta-step, a Hessian-vector product counted as two."""
        return gradient_evaluations(self.counts)


def gradient_evaluations(counts: Counts) -> int:
    """Support and query gradients together, a Hessian-vector product counted as two."""
    return counts.support_gradients + counts.query_gradients + PRODUCT_COST * counts.hessian_vector_products


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Returns the bytes of tensor memory on ``device`` at the peak of ``work()``, beyond what was allocated before it.

    On the CPU from the allocations that torch's profiler records, so that it is exact and the same in every run.
    """
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.synchronize(device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        work()
        module.synchronize(device)
        return int(module.max_memory_allocated(device) - before)
    return max(itertools.accumulate(allocations(work)), default=0)


def allocations(work: Callable[[], object]) -> list[int]:
    """Returns the bytes of each allocation of tensor memory on the CPU, and less what is freed, one after another."""
    gc.collect()
    with profile(profile_memory=True) as record:  # not torch.profiler's, which makes much of each event before it ends
        work()
    assert record.kineto_results is not None
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def measure(contenders: Mapping[str, Makes], seed: int = 0, rounds: int = 7) -> dict[str, Cost]:
    """Returns the cost of a meta-step of each contender, on its first training tasks; none for one that diverges.

    In a fresh process, which is left alone with the machine only if the caller sees to that, or in this one where what
    a script made can't be sent to another. Times are medians over ``rounds``, in each of which every contender has its
    turn, so that their ratios hold while speed drifts.

    Raises:
        MetaproxError: the process failed; the message ends with what it said.
    """
    job = sent((dict(contenders), seed, rounds))
    if job is None:
        return _measure_here(contenders, seed, rounds)
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(path=sys.path)],
        input=job,
        env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # torch's profiler prints on its own
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise MetaproxError(f"measuring the cost of a meta-step failed:\n{done.stderr.decode().strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {label: Cost(Counts(**cost.pop("counts")), **cost) for label, cost in found.items()}


def sent(work: Any) -> bytes | None:
    """``work`` as another process gets it; None where it can't be sent, as lambdas and local functions can't."""
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


CODE = "import sys; sys.path[:] = {path!r}; from metaprox.comparison import cost; cost.main()"


def _measure_here(contenders: Mapping[str, Makes], seed: int, rounds: int) -> dict[str, Cost]:
    trainers = {label: one.trainer(seed) for label, one in contenders.items()}
    steps = {label: _meta_step(trainer) for label, trainer in trainers.items()}
    found: dict[str, tuple[Counts, int]] = {}
    for label, step in list(steps.items()):
        try:
            counts = step()
        except NonFiniteError:
            del steps[label]
            continue
        tasks = trainers[label].pace.meta_batch
        per_task = Counts(**{name: value // tasks for name, value in asdict(counts).items()})
        found[label] = per_task, peak_memory(step, trainers[label].device)
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    threads = torch.get_num_threads()
    for _ in range(rounds):
        for label, step in steps.items():
            torch.set_num_threads(trainers[label].pace.threads)
            began = time.perf_counter()
            step()
            seconds[label].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return {label: Cost(*found[label], statistics.median(seconds[label])) for label in steps}


def _meta_step(trainer: Trainer) -> Callable[[], Counts]:
    tasks = trainer.batch("train", range(trainer.pace.meta_batch))

    def step() -> Counts:
        trainer.model.zero_grad()
        counts = trainer.estimator.backward(trainer.problem, tasks).info.counts
        if trainer.device.type != "cpu":
            torch.get_device_module(trainer.device).synchronize(trainer.device)
        return counts

    return step


def main() -> None:
    """Read a job from standard input, and write the costs to standard output as JSON."""
    contenders, seed, rounds = pickle.load(sys.stdin.buffer)  # from the process that started this one
    costs = _measure_here(contenders, seed, rounds)
    print(json.dumps({label: asdict(cost) for label, cost in costs.items()}))
