"""Small models for the command line and the experiments."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.checks import shown
from metaprox.errors import InputError


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them; float32 on the CPU, weights a function of ``seed`` alone."""
    counts = checks.tuple_of("sizes", sizes, checks.count)
    if len(counts) < 2:
        raise InputError(f"sizes must hold at least those of inputs and outputs, got {sizes!r}")
    seed = checks.seed("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(counts):
            layers += [nn.Linear(inputs, outputs, device="cpu", dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns classification loss in nats, and the accuracy, on (inputs, labels): logits [N, C], integer labels [N].

    Raises:
        InputError: other shapes, or labels that are no integers.
    """
    inputs, labels = _pair(batch)
    logits = model(inputs)
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        raise InputError(
            f"labels must be integers of shape {tuple(logits.shape[:-1])} for logits of shape {tuple(logits.shape)}, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    accuracy = (logits.argmax(-1) == labels).to(logits.dtype).mean()
    return nn.functional.cross_entropy(logits, labels), {"accuracy": accuracy}


def mean_squared_error(model: nn.Module, batch: Any) -> Tensor:
    """Regression loss on (inputs, targets). Raises InputError unless targets have the shape of the model's outputs."""
    inputs, targets = _pair(batch)
    outputs = model(inputs)
    if outputs.shape != targets.shape:
        raise InputError(f"targets have shape {tuple(targets.shape)}, but outputs have shape {tuple(outputs.shape)}")
    return nn.functional.mse_loss(outputs, targets)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise InputError(f"a batch must be a pair of inputs and a tensor of labels or targets, got {shown(batch)}")
    return batch[0], batch[1]
