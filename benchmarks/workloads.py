"""The models, losses and tasks whose meta-gradients are timed.

sinusoid     MLP 1-40-40-1, 25 tasks of 10 + 10 points.
conv         4 blocks of a 3x3 convolution with 64 filters and stride 2, batch norm and ReLU, on 28x28, and the mean
             over places, the network of Finn et al. (arXiv 1703.03400) for Omniglot; 4 tasks, 5-way 1-shot, 15 queries
             per class.
transformer  4 encoder layers, d = 128, 64 positions, without dropout; data as conv. Its attention has no second
             derivatives.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid
from metaprox.tasks.base import in_float64
from peer_methods import Loss, cross_entropy

LAM, WAYS, QUERIES = 0.5, 5, 15


@dataclass(frozen=True)
class Workload:
    """A model, its loss, the tasks, and the inner step."""

    model: nn.Module
    loss: Loss
    tasks: mp.Task
    lr: float
    second_order: bool = True

    def double(self) -> "Workload":
        """The same in float64."""
        return replace(self, model=copy.deepcopy(self.model).double(), tasks=in_float64(self.tasks))


def sinusoid(seed: int) -> Workload:
    tasks = Sinusoid().batch(range(25 * seed, 25 * (seed + 1)))
    return Workload(mlp([1, 40, 40, 1], seed), mean_squared_error, tasks, 0.01)


def conv(seed: int) -> Workload:
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [
            nn.Conv2d(inputs, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64, track_running_stats=False),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, WAYS))
    return Workload(model, cross_entropy, classes(1, 28, 28), 0.05)


def transformer(seed: int) -> Workload:
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(128, WAYS))
    return Workload(model, cross_entropy, classes(64, 128), 0.01, second_order=False)


MAKERS: dict[str, Callable[[int], Workload]] = {"sinusoid": sinusoid, "conv": conv, "transformer": transformer}
STEPS = {"sinusoid": (1, 5, 10, 50), "conv": (5, 20), "transformer": (5, 20)}


def workload(name: str, seed: int) -> Workload:
    """A function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAKERS[name](seed)


def classes(*shape: int, tasks: int = 4) -> mp.Task:
    """Random inputs of each class, in as many tasks."""

    def data(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(tasks, count, *shape), (torch.arange(count) % WAYS).expand(tasks, count)

    return mp.Task(data(WAYS), data(WAYS * QUERIES))


def compiled_call() -> Callable[[], None]:
    """A meta-gradient of 25 sinusoids, K = 10, into ``.grad`` anew, by the settings of the compiled row of speed.py."""
    load = workload("sinusoid", 0)
    problem = mp.ProximalProblem.from_module(load.model, load.loss, LAM)
    meta = mp.FOBMAML(
        mp.GradientDescent(load.lr),
        10,
        branch_steps=5,
        scheme="forward",
        residual_correction=True,
        perturb="center",
        eps=0.1,
        backend="vmap",
        compile=True,
    )

    def run() -> None:
        load.model.zero_grad()
        meta.backward(problem, load.tasks)

    return run
