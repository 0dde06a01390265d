"""Sinusoid regression, the classic toy problem of meta-learning."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from metaprox import checks
from metaprox.data.task import Task
from metaprox.models import mean_squared_error
from metaprox.serving import Blueprint
from metaprox.tasks.base import Family, Picture, shots_of, stacked
from metaprox.tasks.draws import generator
from metaprox.tasks.pictures import curve


@dataclass(frozen=True)
class Sinusoid(Family):
    """Few-shot regression. Each task is one wave y = A sin(t - phi): A uniform in [0.1, 5], phi in [0, pi].

    Inputs t are uniform in [-5, 5]. Support is (inputs [T, shots, 1], targets [T, shots, 1]); the query has ``queries``
    further points. The model is an MLP, the loss the mean squared error.

    Args:
        shots: support points of a task.
        queries: query points of a task.
        train_shots: support points of a training task, where they are not as many.
        hidden: widths of the hidden layers of the MLP.
        seed: of the waves and of the weights.
        split: which waves.

    Source: Finn, Abbeel & Levine, arXiv 1703.03400, section 5.1.
    """

    shots: int = 10
    queries: int = 10
    train_shots: int | None = None
    hidden: tuple[int, ...] = (40, 40)

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 25,
        "meta_steps": 4000,
        "inner_lr": 0.01,
        "lam": 0.5,
        "lr": 0.1,
    }
    compiles: ClassVar[bool] = True
    loss = staticmethod(mean_squared_error)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, shots=checks.count, queries=checks.count, train_shots=checks.optional(checks.count))
        checks.settle(self, hidden=checks.counts)

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in float32."""
        return stacked(self._task, ids)

    def model(self) -> nn.Module:
        return self.blueprint().build()

    def blueprint(self) -> Blueprint:
        return Blueprint("mlp", {"sizes": [1, *self.hidden, 1], "seed": self.seed})

    def picture(self) -> Picture:
        return curve("Adaptation to an unseen wave", -5.0, 5.0)

    def _task(self, task_id: int) -> Task:
        shots = shots_of(self)
        rng = generator(self.seed, self.split, task_id)
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, math.pi)
        inputs = rng.uniform(-5.0, 5.0, (shots + self.queries, 1))
        targets = amplitude * np.sin(inputs - phase)
        pair = (torch.from_numpy(inputs).float(), torch.from_numpy(targets).float())
        return Task(tuple(t[:shots] for t in pair), tuple(t[shots:] for t in pair))
