"""What the memory experiment measures, one job after another in a process of its own.

Run as a module, it reads jobs from standard input and writes what was measured to standard output, a line of JSON each.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import metaprox as mp
from metaprox.comparison import peak_memory
from metaprox.errors import MetaproxError
from metaprox.models import cross_entropy
from metaprox.text import minilm_classifier
from metaprox.training.names import METHODS

WAYS, QUERIES, LR, LAM = 5, 15, 0.01, 0.5
IMAGE, BLOCKS = 28, 4
TOKENS, LAYERS, HEADS, TEXT = 64, 2, 4, 32
PLAIN = "plain"

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement. ``steps`` is 0 for the plain training step."""

    method: str
    model: str
    width: int
    steps: int
    seed: int

    @property
    def part(self) -> str:
        return f"{self.model}_{self.width}_{self.steps}_{self.method}"


@contextmanager
def fresh_process() -> Iterator[Callable[[Job], Row]]:
    """A new Python that measures one job after the other; raises MetaproxError, with what it said, if it dies."""
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [sys.executable, "-m", "metaprox.experiments.memory_jobs"],
            env=os.environ | {"KINETO_LOG_LEVEL": "99"},  # torch's profiler prints on its own
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin, process.stdout

        def measure_there(job: Job) -> Row:
            try:
                to.write(json.dumps(asdict(job)).encode() + b"\n")
                answer: Row = json.loads(answers.readline())
            except (BrokenPipeError, json.JSONDecodeError) as error:
                to.close()
                process.wait()
                complaints.seek(0)
                raise MetaproxError(f"measuring the memory of {job} failed:\n{complaints.read().strip()}") from error
            return answer

        yield measure_there


def _measure_here(job: Job) -> Row:
    """The peak in bytes; or none and the error, where the method needs a derivative that torch does not have."""
    model = model_of(job.model, job.width, job.seed)
    work = partial(_train_plainly if job.method == PLAIN else _meta_gradient, model, _task(job), job)
    try:
        return {"peak_bytes": peak_memory(work, torch.device("cpu")), "error": None}
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        return {"peak_bytes": None, "error": str(error)}


def _train_plainly(model: nn.Module, tasks: mp.Task, job: Job) -> None:
    """Forward, backward and an SGD step on the query, the larger batch."""
    optimizer = torch.optim.SGD(model.parameters(), LR)
    cross_entropy(model, pytree.tree_map(lambda leaf: leaf[0], tasks.query))[0].backward()
    optimizer.step()


def _meta_gradient(model: nn.Module, tasks: mp.Task, job: Job) -> None:
    problem = mp.ProximalProblem.from_module(model, cross_entropy, LAM)
    METHODS.of(job.method)(mp.GradientDescent(LR), job.steps, backend="loop").backward(problem, tasks)


def model_of(name: str, width: int, seed: int) -> nn.Module:
    if name == "lora":
        return minilm_classifier(WAYS, "lora", layers=width, seed=seed)
    if name == "full":
        return minilm_classifier(WAYS, "full", layers=width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _cnn(width) if name == "cnn" else _transformer(width)


def _cnn(channels: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (1, *[channels] * (BLOCKS - 1)):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels, track_running_stats=False)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, WAYS))


def _transformer(d: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(d, HEADS, 4 * d, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(d, WAYS))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _task(job: Job) -> mp.Task:
    """A batch of one task of random inputs."""
    rng = torch.Generator().manual_seed(job.seed)
    shape = (1, IMAGE, IMAGE) if job.model == "cnn" else (TOKENS, job.width)

    def data(count: int) -> tuple[Any, Tensor]:
        labels = torch.arange(count)[None] % WAYS
        if job.model in ("lora", "full"):
            words = torch.randint(1000, 30000, (1, count, TEXT), generator=rng)
            return {"input_ids": words, "attention_mask": torch.ones_like(words)}, labels
        return torch.randn(1, count, *shape, generator=rng), labels

    return mp.Task(data(WAYS), data(QUERIES))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_measure_here(Job(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
