"""N-way K-shot classification on MNIST-1D, with classes of its own making to meta-train on."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from metaprox import checks
from metaprox.data import FewShot
from metaprox.data.task import Task
from metaprox.errors import InputError, needs_extra
from metaprox.models import cross_entropy
from metaprox.serving import Blueprint
from metaprox.tasks.base import Family, Picture, Split, shots_of, stacked
from metaprox.tasks.draws import draws_of, generator
from metaprox.tasks.pictures import probabilities

CLASSES: dict[Split, int] = {"train": 200, "validation": 20, "test": 10}
EXAMPLES = 100
LENGTH = 40


@dataclass(frozen=True)
class MNIST1D(Family):
    """Few-shot classification of signals of 40 numbers: ``ways`` classes with ``shots`` and ``queries`` examples each.

    The classes of the test split are the ten digits of MNIST-1D; those of the train and validation splits (200 and
    20) come from random templates put through the same generator, so that no digit is ever trained on. Every
    class has 100 examples of 40 numbers. Labels are 0..ways-1 in a random order in each task.

    Support is (inputs [T, ways * shots, 40], labels [T, ways * shots]), examples in random order; query likewise. The
    model is an MLP, the loss cross-entropy.

    Args:
        ways: classes of a task.
        shots: support examples of each class.
        queries: query examples of each class.
        train_shots: support examples of each class in training tasks, where they are not as many (for Reptile, whose
            authors train with more examples than they test with, because it learns from support examples only).
        hidden: widths of the hidden layers of the MLP.
        seed: of the classes, tasks and weights.
        split: which classes.

    Source: Greydanus & Kobak, Scaling down deep learning with MNIST-1D, arXiv 2011.14439.
    """

    ways: int = 5
    shots: int = 5
    queries: int = 15
    train_shots: int | None = None
    hidden: tuple[int, ...] = (128, 128)

    defaults: ClassVar[dict[str, Any]] = {
        "meta_batch": 16,
        "meta_steps": 1000,
        "inner_lr": 0.1,
        "lam": 0.1,
        "lr": 0.4,
    }
    compiles: ClassVar[bool] = True
    loss = staticmethod(cross_entropy)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.settle(self, **dict.fromkeys(("ways", "shots", "queries"), checks.count))
        checks.settle(self, train_shots=checks.optional(checks.count), hidden=checks.counts)
        if self.ways > CLASSES[self.split]:
            raise InputError(
                f"{self.ways}-way tasks need {self.ways} classes, but the {self.split} split has {CLASSES[self.split]}"
            )
        shots = shots_of(self)
        if shots + self.queries > EXAMPLES:
            raise InputError(
                f"{shots} shots and {self.queries} queries need {shots + self.queries} examples of a class, "
                f"but there are {EXAMPLES}"
            )

    def batch(self, ids: Sequence[int]) -> Task:
        """Tasks in float32, labels in int64."""
        return stacked(self._drawn.task, ids)

    def model(self) -> nn.Module:
        return self.blueprint().build()

    def blueprint(self) -> Blueprint:
        return Blueprint("mlp", {"sizes": [LENGTH, *self.hidden, self.ways], "seed": self.seed})

    def picture(self) -> Picture:
        return probabilities("Classes of an unseen task, after adaptation")

    @cached_property
    def _drawn(self) -> FewShot:
        pool = examples(self.split, self.seed)
        labels = torch.arange(len(pool), device="cpu").repeat_interleave(EXAMPLES)
        draws = partial(draws_of, self.seed, self.split)
        return FewShot((pool.flatten(0, 1), labels), self.ways, shots_of(self), self.queries, draws=draws)


@lru_cache(maxsize=8)
def examples(split: Split, seed: int) -> Tensor:
    """All examples of a split [classes, 100, 40], float32, standardized over the split."""
    with needs_extra("mnist1d"):
        from mnist1d.data import get_dataset_args, get_templates, make_dataset

    count = CLASSES[split]
    source = generator(seed, split, 0)
    template = get_templates()
    if split != "test":
        template = {"x": _random_templates(count, source), "t": template["t"], "y": np.arange(count)}
    with _numpy_generators_restored():
        settings = get_dataset_args(as_dict=True)
        settings |= {"num_samples": count * EXAMPLES, "seed": int(source.integers(2**31))}
        data = make_dataset(SimpleNamespace(**settings), template=template)
    labels = np.concatenate([data["y"], data["y_test"]])
    inputs = np.concatenate([data["x"], data["x_test"]])
    return torch.from_numpy(inputs[np.argsort(labels, kind="stable")]).float().view(count, EXAMPLES, -1)


def _random_templates(count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth curves of 12 points that start and end at 0, as the digits do, with unit norm."""
    curves = rng.standard_normal((count, 12))
    for _ in range(2):
        padded = np.pad(curves, ((0, 0), (1, 1)), mode="edge")
        curves = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    curves = curves - np.linspace(curves[:, 0], curves[:, -1], 12, axis=1)
    return np.asarray(curves / np.linalg.norm(curves, axis=1, keepdims=True))


@contextmanager
def _numpy_generators_restored() -> Iterator[None]:
    """``make_dataset`` reseeds the global generators; a library must not."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
