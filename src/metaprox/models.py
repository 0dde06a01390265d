"""Small models for the command line and the experiments."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them; weights are a function of ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Classification loss in nats, and the accuracy, on (inputs, labels)."""
    inputs, labels = batch
    logits = model(inputs)
    accuracy = (logits.argmax(-1) == labels).to(logits.dtype).mean()
    return nn.functional.cross_entropy(logits, labels), {"accuracy": accuracy}


def mean_squared_error(model: nn.Module, batch: Any) -> Tensor:
    """Regression loss on (inputs, targets)."""
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)
