"""From a configuration to the objects of a run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.optim.optimizer import Optimizer
from torch.utils import _pytree as pytree

from metaprox import checks
from metaprox.data.task import Task
from metaprox.errors import InputError, NonFiniteError, UnstableError
from metaprox.estimators import Estimator
from metaprox.evaluation import Evaluation, evaluate
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.optim import ClippedSGD, NormalizedSGD
from metaprox.problem import ProximalProblem
from metaprox.solvers import Adam, AdaptiveGradientDescent, Anderson, GradientDescent, InnerSolver, Nesterov
from metaprox.tasks import BANKING77, MNIST1D, Sinusoid, Split, TaskFamily
from metaprox.tasks.base import SPLITS
from metaprox.text import EncoderClassifier, head_classifier, minilm_classifier, nearest_mean_accuracy
from metaprox.training.config import TrainConfig
from metaprox.training.methods import method

SOLVERS: dict[str, Callable[[float], InnerSolver]] = {
    "gd": GradientDescent,
    "nesterov": Nesterov,
    "adam": Adam,
    "adam0": partial(Adam, betas=(0.0, 0.999)),
    "anderson": Anderson,
    "adaptive": AdaptiveGradientDescent,
}

OPTIONS = (
    "on the command line: lr is --inner-lr, or --branch-lr of a branch_solver; lam is --lam, nu --nu, and "
    "mp.AdaptiveGradientDescent --solver adaptive"
)


@dataclass(frozen=True)
class DrawnExamples:
    """``loss`` on ``count`` examples of the batch, drawn without repetition, or on all where there are no more."""

    loss: Callable[[nn.Module, Any], Any]
    count: int

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Any:
        chosen = torch.randperm(len(batch[0]), device=batch[0].device)[: self.count]
        return self.loss(model, tuple(leaf[chosen] for leaf in batch))


@dataclass(frozen=True)
class Setup:
    """The objects of one run; ``config`` is resolved.

    ``problem`` is what is evaluated; ``trained`` is the same but for the support examples that an inner step sees.
    """

    config: TrainConfig
    model: nn.Module
    problem: ProximalProblem
    trained: ProximalProblem
    solver: InnerSolver
    estimator: Estimator
    optimizer: Optimizer
    scheduler: LinearLR

    def batch(self, split: Split, ids: Sequence[int]) -> Task:
        """Tasks ``ids`` of a split, on the run's device."""
        tasks = family(self.config, split).batch(ids)
        return pytree.tree_map(lambda leaf: leaf.to(self.config.device), tasks)

    def evaluate(self, split: Split, count: int) -> Evaluation:
        """Adapt to tasks 0 to ``count`` - 1 of a split, as in training.

        For texts also the accuracy of the nearest mean of the encoder's features as they are, without adaptation.
        """
        config = self.config
        checks.choice("split", split, SPLITS)
        count = checks.count("count", count)
        result = evaluate(
            self.problem,
            lambda ids: self.batch(split, ids),
            range(count),
            self.solver,
            config.steps,
            batch_size=config.chunk_size or 100,
            backend=config.backend,
        )
        if not isinstance(self.model, EncoderClassifier):
            return result
        tasks = self.batch(split, range(count))
        return result.with_metric("nearest-mean accuracy", nearest_mean_accuracy(self.model.encoder, tasks))


def build(config: TrainConfig) -> Setup:
    """Everything that ``config`` describes. Raises InputError for whatever can't be, before any work is done."""
    if not isinstance(config, TrainConfig):
        raise InputError(f"config must be a training.TrainConfig, got {checks.shown(config)}")
    config = config.resolved()
    for split in ("train", "validation", "test"):
        family(config, split)
    model = _model(config).to(_device(config.device))
    solver, branch_solver = _solvers(config)
    optimizer = _optimizer(config, model)
    loss = mean_squared_error if config.tasks == "sinusoid" else cross_entropy
    assert config.lam is not None  # resolved
    adapt = "head.*" if config.adapt == "head" and config.encoder != "frozen" else None  # frozen: there is only a head
    problem = trained = ProximalProblem.from_module(model, loss, config.lam, adapt=adapt)
    if config.inner_batch:
        drawn = DrawnExamples(loss, config.inner_batch)
        trained = ProximalProblem.from_module(model, drawn, config.lam, outer_loss=loss, adapt=adapt)
    estimator = method(config, solver, branch_solver)
    with options_named():
        estimator.check(trained)
    assert config.meta_steps is not None  # resolved
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=config.meta_steps)
    return Setup(config, model, problem, trained, solver, estimator, optimizer, schedule)


@contextmanager
def options_named() -> Iterator[None]:
    """Around inner solves: where one diverges, or would, the error says what its advice is called among the options."""
    try:
        yield
    except NonFiniteError as error:
        if error.task is not None or isinstance(error, UnstableError):
            error.add_note(OPTIONS)
        raise


def family(config: TrainConfig, split: Split) -> TaskFamily:
    """The tasks of a split."""
    shots = config.train_shots if split == "train" and config.train_shots else config.shots
    assert shots is not None  # resolved
    assert config.queries is not None
    if config.tasks == "sinusoid":
        return Sinusoid(shots, config.queries, config.seed, split)
    if config.tasks == "banking77":
        frozen = config.encoder == "frozen"
        return BANKING77(config.data, config.ways, shots, config.queries, config.seed, split, embedded=frozen)
    return MNIST1D(config.ways, shots, config.queries, config.seed, split)


def _model(config: TrainConfig) -> nn.Module:
    if config.tasks == "banking77":
        assert config.encoder is not None  # resolved
        if config.encoder == "frozen":
            return head_classifier(config.ways)
        return minilm_classifier(config.ways, config.encoder, seed=config.seed)
    inputs, outputs = (1, 1) if config.tasks == "sinusoid" else (40, config.ways)
    return mlp([inputs, *(config.hidden or ()), outputs], config.seed)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} can't be used here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise InputError("device 'meta' can't be used here: its tensors have no values")
    return device


def _solvers(config: TrainConfig) -> tuple[InnerSolver, InnerSolver]:
    assert config.inner_lr is not None  # resolved
    solver: InnerSolver = SOLVERS[config.solver](config.inner_lr)
    branch_lr = config.inner_lr if config.branch_lr is None else config.branch_lr
    return solver, SOLVERS[config.branch_solver or config.solver](branch_lr)


def _optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    assert config.lr is not None  # resolved
    learned = [p for p in _learned(config, model).parameters() if p.requires_grad]
    if config.optimizer == "normalized":
        return NormalizedSGD(learned, config.lr, config.momentum)
    if config.optimizer == "clipped":
        return ClippedSGD(learned, config.lr, config.gamma)
    if config.optimizer == "sgd":
        return torch.optim.SGD(learned, config.lr)
    return torch.optim.Adam(learned, config.lr)


def _learned(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The part of the model that meta-learning moves.

    The head of a text classifier starts every task at 0: labels are permuted from task to task, so that by symmetry its
    expected meta-gradient prefers no class, and what a batch of tasks says of it is noise that outweighs the rest.
    """
    if isinstance(model, EncoderClassifier) and config.encoder != "frozen":
        return model.encoder
    return model
