"""The problems and the variants of training-budgets, and one training run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import metaprox as mp
from metaprox.comparison import gradient_evaluations
from metaprox.experiments.problems import convolutional
from metaprox.models import mlp
from metaprox.modules.loss import ModelLoss
from metaprox.tasks import MNIST1D, Family, Sinusoid, Split

TEST_TASKS, VALIDATION_TASKS = 400, 200


@dataclass(frozen=True)
class Training:
    """A family with a network, and what all variants share.

    metric: by which it is judged. outer_lr: the middle one of the outer steps that are tried first. useless: a run that
    ends on this side of it is lost. variants: those that are trained on it, where it is not all of them.
    tuning_seeds: how many runs an outer step is judged by.
    """

    family: Family
    model: Callable[[int], nn.Module]
    metric: str
    lam: float
    inner_lr: float
    meta_batch: int
    outer_lr: float
    useless: float
    variants: tuple[str, ...] = ()
    tuning_seeds: int = 1

    @property
    def loss(self) -> ModelLoss:
        return self.family.loss

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, else -1."""
        return 1 if self.metric == "accuracy" else -1

    def lost(self, result: float) -> bool:
        """Whether a run that ends with this has learned no more than to answer alike whatever it is given."""
        return self.sign * (result - self.useless) < 0


CHIEF = (
    "center, K = 10, J = 10",
    "loss, K = 10, J = 10",
    "center, K = 10, J = 5",
    "center, K = 5, J = 5",
    "FO-MAML, K = 10",
)
OTHER_BRANCHES = ("center, K = 10, J = 4, predictor", "center, K = 10, J = 3, conjugate")
TRAININGS = {
    "sinusoid": Training(Sinusoid(), lambda seed: mlp([1, 40, 40, 1], seed), "loss", 0.5, 0.01, 25, 0.1, 3.0),
    "MNIST-1D, MLP": Training(
        MNIST1D(),
        lambda seed: mlp([40, 24, 24, 5], seed),
        "accuracy",
        0.5,
        0.1,
        8,
        0.4,
        0.25,
        CHIEF + OTHER_BRANCHES,
        2,
    ),
    "MNIST-1D, conv": Training(MNIST1D(), convolutional, "accuracy", 0.5, 0.1, 8, 0.4, 0.25, CHIEF),
}


@dataclass(frozen=True)
class Variant:
    """An estimator but for its solver.

    steps: K. fixed: with the inner step of the problem, not one that is found. conjugate: branches by conjugate
    gradients, not by the base's solver.
    """

    method: Callable[..., mp.Estimator]
    steps: int
    settings: dict[str, Any]
    fixed: bool = False
    conjugate: bool = False

    @property
    def kind(self) -> str:
        """What runs of it are counted with."""
        if "branch_steps" not in self.settings:
            return "FO-MAML"
        few = 2 * self.settings["branch_steps"] < self.steps
        kind = "conjugate branches" if self.conjugate else "J < K / 2" if few else "J >= K / 2"
        kind += ", predictor" * (self.settings["start"] == "predictor")
        return kind + (", fixed step" if self.fixed else "")

    def estimator(self, training: Training) -> mp.Estimator:
        solver = mp.GradientDescent(training.inner_lr) if self.fixed else mp.AdaptiveGradientDescent()
        branches = {"branch_solver": mp.ConjugateGradient(training.inner_lr)} if self.conjugate else {}
        return self.method(solver, self.steps, compile=True, **self.settings, **branches)


def fobmaml(
    perturb: str, steps: int, branch_steps: int, *, fixed: bool = False, conjugate: bool = False, start: str = "base"
) -> Variant:
    settings = {"perturb": perturb, "branch_steps": branch_steps, "start": start}
    return Variant(mp.FOBMAML, steps, settings, fixed, conjugate)


VARIANTS = {
    "center, K = 10, J = 10": fobmaml("center", 10, 10),
    "loss, K = 10, J = 10": fobmaml("loss", 10, 10),
    "center, K = 10, J = 5": fobmaml("center", 10, 5),
    "center, K = 5, J = 5": fobmaml("center", 5, 5),
    "center, K = 10, J = 2": fobmaml("center", 10, 2),
    "loss, K = 10, J = 2": fobmaml("loss", 10, 2),
    "center, K = 5, J = 2": fobmaml("center", 5, 2),
    "center, K = 10, J = 4, predictor": fobmaml("center", 10, 4, start="predictor"),
    "center, K = 10, J = 3, conjugate": fobmaml("center", 10, 3, conjugate=True),
    "center, K = 10, J = 2, fixed step": fobmaml("center", 10, 2, fixed=True),
    "FO-MAML, K = 10": Variant(mp.FOMAML, 10, {}),
    "FO-MAML, K = 10, fixed step": Variant(mp.FOMAML, 10, {}, fixed=True),
    "FO-MAML, K = 50, fixed step": Variant(mp.FOMAML, 50, {}, fixed=True),
}


def variants_of(name: str) -> list[str]:
    """Those that are trained on a problem."""
    return list(TRAININGS[name].variants or VARIANTS)


def evaluations(name: str, variant: str) -> int:
    """Gradient evaluations per task and meta-step."""
    training, seen = TRAININGS[name], VARIANTS[variant]
    problem = mp.ProximalProblem.from_module(training.model(0), training.loss, training.lam)
    out = replace(seen.estimator(training), compile=False).backward(problem, training.family.batch(range(2)))
    return gradient_evaluations(out.info.counts) // 2


def train(name: str, variant: str, seed: int, meta_steps: int, lr: float, split: Split) -> dict[str, Any]:
    """``meta_train`` of a variant on a problem, judged on as many tasks as the split has."""
    training = TRAININGS[name]
    count = TEST_TASKS if split == "test" else VALIDATION_TASKS
    return meta_train(training, VARIANTS[variant].estimator(training), seed, meta_steps, lr, split, count)


def meta_train(
    training: Training, meta: mp.Estimator, seed: int, meta_steps: int, lr: float, split: Split, count: int
) -> dict[str, Any]:
    """Meta-train, and adapt to unseen tasks as in training. What diverges is left as it is at the initial weights."""
    family = replace(training.family, seed=seed)
    problem = mp.ProximalProblem.from_module(training.model(seed), training.loss, training.lam)
    parameters = list(problem.live_parameters().values())
    start = [p.detach().clone() for p in parameters]
    optimizer = mp.optim.NormalizedSGD(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, meta_steps)
    died = None
    for step in range(meta_steps):
        optimizer.zero_grad()
        try:
            meta.backward(problem, family.batch(range(training.meta_batch * step, training.meta_batch * (step + 1))))
        except mp.NonFiniteError as error:
            died = {"meta_step": step + 1, "message": str(error)}
            for p, first in zip(parameters, start, strict=True):
                p.data.copy_(first)
            break
        optimizer.step()
        schedule.step()
    return {"lr": lr, "died": died, "result": _judged(training, problem, meta, family.of_split(split), count)}


def _judged(
    training: Training, problem: mp.ProximalProblem, meta: mp.Estimator, family: Family, count: int
) -> dict[str, Any]:
    """Mean, standard deviation and number of the metric on the first tasks of a split; the worst where one diverges."""
    try:
        found = mp.evaluate(problem, family.batch, range(count), meta.solver, meta.steps)
    except mp.NonFiniteError:
        return {"mean": -training.sign * math.inf, "std": None, "n": 0}
    one = found.loss if training.metric == "loss" else found.metrics[training.metric]
    return {"mean": one.mean, "std": one.std, "n": one.n}
