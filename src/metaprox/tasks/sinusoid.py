"""Sinusoid regression, the classic toy problem of meta-learning."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metaprox import checks
from metaprox.data.task import Task
from metaprox.tasks.base import SPLITS, Split, generator, stacked


@dataclass(frozen=True)
class Sinusoid:
    """Each task is one wave y = A sin(t - phi): A uniform in [0.1, 5], phi in [0, pi], inputs t in [-5, 5].

    Support is (inputs [T, shots, 1], targets [T, shots, 1]); the query has ``queries`` further points.

    Source: Finn, Abbeel & Levine, arXiv 1703.03400, section 5.1.
    """

    shots: int = 10
    queries: int = 10
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        checks.settle(self, shots=checks.count, queries=checks.count, seed=checks.seed, split=checks.one_of(*SPLITS))

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in float32."""
        return stacked(self._task, ids)

    def _task(self, task_id: int) -> Task:
        rng = generator(self.seed, self.split, task_id)
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, math.pi)
        inputs = rng.uniform(-5.0, 5.0, (self.shots + self.queries, 1))
        targets = amplitude * np.sin(inputs - phase)
        pair = (torch.from_numpy(inputs).float(), torch.from_numpy(targets).float())
        return Task(tuple(t[: self.shots] for t in pair), tuple(t[self.shots :] for t in pair))
