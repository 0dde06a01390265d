"""The models, losses and tasks whose meta-gradients are timed, and what the timings are measured against.

sinusoid     MLP 1-40-40-1, 25 tasks of 10 + 10 points.
conv         4 blocks of a 3x3 convolution with 64 filters, batch norm, ReLU and pooling, on 28x28; 4 tasks, 5-way
             1-shot, 15 queries per class.
transformer  4 encoder layers, d = 128, 64 positions, without dropout; data as conv. Its attention has no second
             derivatives.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import metaprox as mp
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import Sinusoid

LAM, WAYS, QUERIES = 0.5, 5, 15
Loss = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Workload:
    """A model, its loss, the tasks, the inner step and the numbers of inner steps."""

    model: nn.Module
    loss: Loss
    tasks: mp.Task
    lr: float
    steps: tuple[int, ...]
    second_order: bool = True


def sinusoid() -> Workload:
    return Workload(mlp([1, 40, 40, 1]), mean_squared_error, Sinusoid().batch(range(25)), 0.01, (1, 5, 10, 50))


def conv() -> Workload:
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64, track_running_stats=False)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, WAYS))
    return Workload(model, cross_entropy, classes(1, 28, 28), 0.05, (5, 20))


def transformer() -> Workload:
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(128, WAYS))
    return Workload(model, cross_entropy, classes(64, 128), 0.01, (5, 20), second_order=False)


WORKLOADS = {"sinusoid": sinusoid, "conv": conv, "transformer": transformer}


def classes(*shape: int) -> mp.Task:
    """4 tasks of random inputs."""

    def data(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(4, count, *shape), (torch.arange(count) % WAYS).expand(4, count)

    return mp.Task(data(WAYS), data(WAYS * QUERIES))


def plain_gradients(load: Workload, data: Any, times: int) -> Callable[[], None]:
    """``times`` gradients on the data of each task, one by one."""
    tasks = [tuple(leaf[i] for leaf in data) for i in range(len(data[0]))]

    def work() -> None:
        for task in tasks:
            for _ in range(times):
                load.model.zero_grad()
                value = load.loss(load.model, task)
                (value[0] if isinstance(value, tuple) else value).backward()

    return work


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def relative_error(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5
    return difference / sum(float(value.square().sum()) for value in other.values()) ** 0.5
