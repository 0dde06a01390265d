"""How tasks are drawn in reports, on axes of matplotlib; the loss of a task says little of what was learned."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaprox.data.task import Task
from metaprox.tasks.base import Picture

GIVEN, BEFORE, AFTER = "#9aa5b1", "#c2571a", "#0b6e99"
Predict = Callable[[Any], Tensor]


def curve(title: str, low: float, high: float) -> Picture:
    """Of a regression from one number in [low, high] to another: support, query, and the model before and after."""

    def draw(axes: Any, task: Task, before: Predict, after: Predict) -> None:
        (inputs, targets), query = task.support, task.query
        grid = torch.linspace(low, high, 200, device=inputs.device, dtype=inputs.dtype)[:, None]
        order = query[0].flatten().argsort()
        axes.plot(grid.cpu(), before(grid).cpu(), color=BEFORE, linestyle="--", label="before adaptation")
        axes.plot(grid.cpu(), after(grid).cpu(), color=AFTER, label="after adaptation")
        axes.plot(query[0][order].cpu(), query[1][order].cpu(), "o", color=GIVEN, markersize=4, label="query")
        axes.plot(inputs.cpu(), targets.cpu(), "x", color="black", label="support")
        axes.set(xlabel="input", ylabel="output")

    return Picture(title, draw)


def probabilities(title: str) -> Picture:
    """Of a classification: what the adapted model says of each query example, in rows that are ordered by class."""

    def draw(axes: Any, task: Task, before: Predict, after: Predict) -> None:
        inputs, labels = task.query
        order = labels.argsort(stable=True)
        found = after(inputs).softmax(-1)[order].cpu().numpy()
        axes.imshow(found, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
        ends = labels.bincount().cumsum(0).cpu()
        for end in ends[:-1].tolist():
            axes.axhline(end - 0.5, color="black", linewidth=0.6)
        axes.set(xlabel="probability of class", ylabel="query examples, by class")
        axes.set_xticks(range(found.shape[1]))
        axes.set_yticks([])

    return Picture(title, draw)
