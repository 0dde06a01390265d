"""What one meta-step costs: evaluations counted, memory from torch's allocator, time of several settings in turn."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from metaprox.errors import MetaproxError, NonFiniteError
from metaprox.losses.gradients import Counts
from metaprox.training.config import TrainConfig
from metaprox.training.setup import Setup, build

PRODUCT_COST = 2  # A Hessian-vector product is a gradient and a backward pass through it.


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
    """Bytes of tensor memory on ``device`` at the peak of ``work()``, beyond what was allocated before it.

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
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def measure(configs: Mapping[str, TrainConfig], rounds: int = 7) -> dict[str, Cost]:
    """The cost of one meta-step of each configuration, on the first training tasks of each; none for one that diverges.

    Runs in a fresh process, which is left alone with the machine only if the caller sees to that. Times are medians
    over ``rounds``, in each of which every configuration has its turn, so that their ratios hold while speed drifts.

    Raises:
        MetaproxError: the process failed; the message ends with what it said.
    """
    job = {"rounds": rounds, "configs": {label: asdict(config) for label, config in configs.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "metaprox.training.cost"],
        input=json.dumps(job),
        env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # torch's profiler prints on its own
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MetaproxError(f"measuring the cost of a meta-step failed:\n{done.stderr.strip()}")
    return {label: Cost(Counts(**cost.pop("counts")), **cost) for label, cost in json.loads(done.stdout).items()}


def _measure_here(configs: dict[str, TrainConfig], rounds: int) -> dict[str, dict[str, Any]]:
    setups = {label: build(config) for label, config in configs.items()}
    steps = {label: _meta_step(setup) for label, setup in setups.items()}
    results: dict[str, dict[str, Any]] = {}
    for label, step in list(steps.items()):
        try:
            counts = step()
        except NonFiniteError:
            del steps[label]
            continue
        tasks = setups[label].config.meta_batch or 1
        per_task = {name: value // tasks for name, value in asdict(counts).items()}
        results[label] = {"counts": per_task, "peak_bytes": peak_memory(step, torch.device(configs[label].device))}
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            torch.set_num_threads(configs[label].threads)
            began = time.perf_counter()
            step()
            seconds[label].append(time.perf_counter() - began)
    return {label: result | {"seconds": statistics.median(seconds[label])} for label, result in results.items()}


def _meta_step(setup: Setup) -> Callable[[], Counts]:
    tasks = setup.batch("train", range(setup.config.meta_batch or 1))

    def step() -> Counts:
        setup.model.zero_grad()
        counts = setup.estimator.backward(setup.trained, tasks).info.counts
        if setup.config.device != "cpu":
            torch.get_device_module(setup.config.device).synchronize(setup.config.device)
        return counts

    return step


def main() -> None:
    """Read a job from standard input, write the costs to standard output, both as JSON."""
    job = json.load(sys.stdin)
    configs = {label: TrainConfig.from_json(json.dumps(config)) for label, config in job["configs"].items()}
    json.dump(_measure_here(configs, job["rounds"]), sys.stdout)


if __name__ == "__main__":
    main()
