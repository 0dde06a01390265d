"""Random few-shot classification tasks and small networks, in float64, as functions of a seed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import metaprox as mp

WAYS, SHOTS, QUERIES = 5, 3, 5
VECTOR, IMAGE = (40,), (1, 14, 14)


def tasks(seed: int, shape: tuple[int, ...], count: int = 3) -> mp.Task:
    """Gaussian classes of inputs of this shape: support [T, 15, *shape] and query [T, 25, *shape], with labels."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, WAYS, 1, *shape, dtype=torch.float64, generator=rng)

    def examples(per_class: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(count, WAYS, per_class, *shape, dtype=torch.float64, generator=rng)
        labels = torch.arange(WAYS).repeat_interleave(per_class).expand(count, -1)
        return (centers + noise).flatten(1, 2), labels

    return mp.Task(examples(SHOTS), examples(QUERIES))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, WAYS))


def frozen() -> nn.Sequential:
    """The perceptron, its first layer frozen."""
    model = perceptron()
    model[0].requires_grad_(False)
    return model


def tied() -> nn.Sequential:
    """The perceptron with a third hidden layer, whose weight is the second one's."""
    second, third = nn.Linear(64, 64), nn.Linear(64, 64)
    third.weight = second.weight
    return nn.Sequential(nn.Linear(40, 64), nn.Tanh(), second, nn.Tanh(), third, nn.Tanh(), nn.Linear(64, WAYS))


def convolutional(norm: Callable[[], nn.Module], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Three blocks of a strided convolution with 16 channels, and a linear layer."""
    layers: list[nn.Module] = []
    for channels in (1, 16, 16):
        layers += [nn.Conv2d(channels, 16, kernel_size=3, stride=2, padding=1), norm(), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, WAYS))


def batch_norm() -> nn.Module:
    return nn.BatchNorm2d(16, track_running_stats=False)


def group_norm() -> nn.Module:
    return nn.GroupNorm(4, 16)


@dataclass(frozen=True)
class Network:
    """A network by name, and the shape of its inputs."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


MLP = Network("MLP", perceptron, VECTOR)
FROZEN = Network("MLP, first layer frozen", frozen, VECTOR)
TIED = Network("MLP, tied weights", tied, VECTOR)
CONV_RELU = Network("conv, batch norm, ReLU", lambda: convolutional(batch_norm, nn.ReLU), IMAGE)
CONV_TANH = Network("conv, group norm, tanh", lambda: convolutional(group_norm, nn.Tanh), IMAGE)


def case(network: Network, seed: int) -> tuple[nn.Module, mp.Task]:
    """The network with random weights, and tasks for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network.build().double()
    return model, tasks(seed, network.shape)
