"""Problems that several experiments share."""

import torch
from torch import Tensor

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
