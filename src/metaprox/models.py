"""Small models for the command line and the experiments."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.checks import shown
from metaprox.data.draws import seeded
from metaprox.errors import InputError

NORMS = ("instance", "group", "batch")


def mlp(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them; float32 on the CPU, weights a function of ``seed`` alone."""
    counts = checks.tuple_of("sizes", sizes, checks.count)
    if len(counts) < 2:
        raise InputError(f"sizes must hold at least those of inputs and outputs, got {sizes!r}")
    seed = checks.seed("seed", seed)
    with seeded(seed):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(counts):
            layers += [nn.Linear(inputs, outputs, device="cpu", dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_net(
    size: int,
    channels: int,
    outputs: int,
    width: int = 64,
    norm: Literal["instance", "group", "batch"] = "instance",
    seed: int = 0,
) -> nn.Sequential:
    """Returns the conv net of few-shot learning: ``body`` of four blocks, and a linear ``head``; float32 on the CPU.

    A block is a convolution of 3 x 3 to ``width`` channels, a norm, ReLU, and the maximum of each 2 x 2. ``norm``:
    "instance" has the statistics of each channel of each picture (where a picture has become one pixel, of all),
    "group" those of 8 channels, so that a picture stands by itself; "batch" those of the batch, in evaluation too, so
    that what one picture gives depends on the others. Weights are a function of ``seed`` alone.

    Raises:
        InputError: a number is out of range, or the norm is unknown.

    Source: Vinyals et al., Matching networks, arXiv 1606.04080; Finn et al., MAML, arXiv 1703.03400.
    """
    size, outputs = checks.count("size", size), checks.count("outputs", outputs)
    channels, width = checks.count("channels", channels), checks.count("width", width)
    checks.choice("norm", norm, NORMS)
    with seeded(checks.seed("seed", seed)), torch.device("cpu"):
        layers: list[nn.Module] = []
        for inputs in (channels, width, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, dtype=torch.float32)]
            layers += [_norm(norm, width, size), nn.ReLU()]
            if size > 1:
                layers += [nn.MaxPool2d(2)]
                size //= 2
        head = nn.Linear(width * size * size, outputs, dtype=torch.float32)
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers, nn.Flatten()), head=head))


def _norm(norm: str, width: int, size: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width, track_running_stats=False, dtype=torch.float32)
    if norm == "instance":
        return nn.GroupNorm(width if size > 1 else 1, width, dtype=torch.float32)
    return nn.GroupNorm(max(width // 8, 1) if width % 8 == 0 else 1, width, dtype=torch.float32)


class Rescaled(nn.Module):
    """mean + std * model(inputs): a model of standardized targets gives them in their own units."""

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model = model
        for name, value in (("mean", checks.number("mean", mean)), ("std", checks.positive("std", std))):
            self.register_buffer(name, torch.tensor(value, device="cpu"))

    def forward(self, inputs: Any) -> Tensor:
        return self.mean + self.std * self.model(inputs)


def rescaled_mlp(sizes: Sequence[int], mean: float, std: float, seed: int = 0) -> Rescaled:
    """``mlp`` of standardized targets, whose outputs are in units of ``std`` around ``mean``."""
    return Rescaled(mlp(sizes, seed), mean, std)


@dataclass(frozen=True)
class ScaledError:
    """The mean squared error of (inputs, targets) in units of ``scale``, and its root in the targets' own.

    Args:
        scale: of the targets, > 0.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        checks.settle(self, scale=checks.positive)

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        error = mean_squared_error(model, batch)
        return error / self.scale**2, {"root-mean-square error": error.sqrt()}


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
