"""Meta-training, top to bottom."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from metaprox import checks
from metaprox.errors import NonFiniteError
from metaprox.estimators import MetaGradient
from metaprox.evaluation import Evaluation
from metaprox.training import checkpoint, weights
from metaprox.training.config import TrainConfig
from metaprox.training.folder import RunFolder
from metaprox.training.setup import Setup, build, options_named

WEIGHTS = "weights"


@dataclass(frozen=True)
class Progress:
    """What a watcher sees after each meta-step: steps done, loss and metrics on the query sets of the batch.

    Both are means over the tasks that were not skipped.
    """

    step: int
    total: int
    loss: float
    metrics: dict[str, float]


@torch.inference_mode(False)
def train(config: TrainConfig, out: str | Path, watch: Callable[[Progress], None] = lambda progress: None) -> RunFolder:
    """Run ``config`` in the new folder ``out``.

    Writes config.json (every default resolved), metrics.jsonl (a line for each meta-step and each evaluation; seconds
    count the meta-steps alone; ``tasks_skipped`` where a step left out tasks), checkpoint.safetensors and, at the end,
    test_tasks.json (the result on each test task) and weights.safetensors. Torch's global generators and thread count
    are put back afterwards.

    Raises:
        InputError: a setting is wrong, before the folder is made. RunFolderError: the folder is not empty.
        NonFiniteError: a solve diverged, and is not skipped, or all of a meta-step did, or one of an evaluation; a
            note names the meta-step and the task, and the last checkpoint stays.
    """
    out = checks.path("out", out)
    setup = build(config)
    folder = RunFolder.create(out, setup.config)
    with _borrowed_torch(setup.config):
        torch.manual_seed(setup.config.seed)
        checkpoint.save(folder, setup, 0, 0.0)
        with options_named():
            _run(setup, folder, 0, 0.0, watch)
    return folder


@torch.inference_mode(False)
def resume(out: str | Path, watch: Callable[[Progress], None] = lambda progress: None) -> RunFolder:
    """Go on with the run in ``out`` from its last checkpoint: the result is that of a run that was never stopped.

    A finished run is left as it is. Raises what ``train`` does, and RunFolderError where there is no run or its
    checkpoint is missing or corrupt.
    """
    folder = RunFolder.open(checks.path("out", out))
    if folder.weights.exists():
        return folder
    setup = build(folder.config())
    with _borrowed_torch(setup.config):
        step, seconds = checkpoint.load(folder, setup)
        with options_named():
            _run(setup, folder, step, seconds, watch)
    return folder


def load_weights(folder: RunFolder, setup: Setup) -> None:
    """Put the meta-learned weights of a finished run into the model."""
    tensors, _ = weights.load(folder.weights, WEIGHTS)
    weights.load_into(setup.model, tensors, folder.weights)


def _run(setup: Setup, folder: RunFolder, start: int, seconds: float, watch: Callable[[Progress], None]) -> None:
    config = setup.config
    assert config.meta_steps is not None  # resolved
    if start == 0:
        folder.append_metrics(_evaluation_record(0, "test", setup.evaluate("test", config.test_tasks)))
    for step in range(start, config.meta_steps):
        began = time.perf_counter()
        out = _meta_step(setup, step)
        seconds += time.perf_counter() - began
        done = step + 1
        folder.append_metrics(_step_record(done, out, float(setup.scheduler.get_last_lr()[0]), seconds))
        if done % config.eval_every == 0 or done == config.meta_steps:
            result = setup.evaluate(config.eval_split, config.eval_tasks)
            folder.append_metrics(_evaluation_record(done, config.eval_split, result))
        if done % config.checkpoint_every == 0:
            checkpoint.save(folder, setup, done, seconds)
        means = _means(out)
        watch(Progress(done, config.meta_steps, means.pop("loss"), means))
    final = setup.evaluate("test", config.test_tasks)
    folder.append_metrics(_evaluation_record(config.meta_steps, "test", final))
    folder.write_test_values({name: values.tolist() for name, values in final.values.items()})
    weights.save(folder.weights, WEIGHTS, weights.learned(setup.model), {"config": asdict(config)})


def _meta_step(setup: Setup, step: int) -> MetaGradient:
    size = setup.config.meta_batch
    assert size is not None  # resolved
    ids = range(size * step, size * (step + 1))
    setup.model.zero_grad()
    try:
        out = setup.estimator.backward(setup.trained, setup.batch("train", ids))
        setup.optimizer.step()
    except NonFiniteError as error:
        task = "" if error.task is None else f", training task {ids[error.task]}"
        error.add_note(f"at meta-step {step + 1} of {setup.config.meta_steps}{task}")
        raise
    setup.scheduler.step()
    return out


def _means(out: MetaGradient) -> dict[str, float]:
    """Of the query loss, as "loss", and of each metric, over the tasks that were not skipped."""
    kept = ~out.info.skipped
    return {name: float(values[kept].mean()) for name, values in ({"loss": out.query_loss} | out.metrics).items()}


def _step_record(step: int, out: MetaGradient, lr: float, seconds: float) -> dict[str, Any]:
    norm = torch.stack([g.norm() for g in out.grad.values()]).norm()
    return {
        "kind": "step",
        "step": step,
        **_means(out),
        "gradient_norm": float(norm),
        "next_lr": lr,
        **out.info.summary(),
        **asdict(out.info.counts),
        "seconds": seconds,
    }


def _evaluation_record(step: int, split: str, result: Evaluation) -> dict[str, Any]:
    statistics = {"loss": result.loss} | result.metrics
    return {
        "kind": "evaluation",
        "step": step,
        "split": split,
        "transductive": result.transductive,
        **{name: asdict(statistic) for name, statistic in statistics.items()},
    }


@contextmanager
def _borrowed_torch(config: TrainConfig) -> Iterator[None]:
    """Set the threads of this run, and put back the caller's threads and generators at the end."""
    threads = torch.get_num_threads()
    device = torch.device(config.device)
    on_device = device.type != "cpu"
    with torch.random.fork_rng([device] if on_device else [], device_type=device.type if on_device else "cuda"):
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
