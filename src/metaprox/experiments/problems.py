"""Problems that several experiments share."""

from itertools import pairwise

import torch
from torch import Tensor, nn

import metaprox as mp
from metaprox.types import Params

LOGISTIC_LAM = 0.1


def logistic_loss(params: Params, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean logistic loss on (inputs, labels) of the linear model params["w"]."""
    inputs, labels = data
    return torch.nn.functional.binary_cross_entropy_with_logits(inputs @ params["w"], labels)


def logistic_tasks(seed: int, count: int = 8, examples: int = 40, dim: int = 20) -> mp.Task:
    """Inputs of decaying scale, labels from a random linear model with noise; float64."""
    rng = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, dim, dtype=torch.float64)
    truth = torch.randn(count, dim, 1, dtype=torch.float64, generator=rng)

    def data() -> tuple[Tensor, Tensor]:
        inputs = 2 * torch.randn(count, examples, dim, dtype=torch.float64, generator=rng) * scales
        chance = torch.sigmoid((inputs @ truth).squeeze(-1))
        return inputs, (torch.rand(chance.shape, dtype=torch.float64, generator=rng) < chance).double()

    return mp.Task(data(), data())


class OneChannel(nn.Module):
    """[N, 40] -> [N, 1, 40]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, None]


def convolutional(seed: int) -> nn.Module:
    """Three strided convolutions with statistics of the batch, and a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [OneChannel()]
        for inputs, outputs in pairwise((1, 16, 16, 16)):
            norm = nn.BatchNorm1d(outputs, track_running_stats=False)
            layers += [nn.Conv1d(inputs, outputs, 3, stride=2, padding=1), norm, nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 5))
