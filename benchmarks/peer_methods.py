"""Meta-gradients by higher and by TorchOpt, written the way that their documentation does.

Each function returns the mean over tasks as one vector of the parameters that require gradients, in the model's order.
Steps, differentiation and linear solver are the peer's own; the proximal term is added to the inner loss by hand.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import higher
import torch
import torchopt
from torch import Tensor, nn
from torchopt.diff.implicit.nn import ImplicitMetaGradientModule

import metaprox as mp

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Inner:
    """What ours and theirs do in every task: steps of a solver from x on fhat(y) + (lam/2) ||y - x||^2.

    cg_steps: of iMAML, 0 for differentiation through the steps.
    """

    solver: mp.GradientDescent | mp.Adam
    steps: int
    lam: float = 0.0
    cg_steps: int = 0


def loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def proximal_term(lam: float, y: Iterable[Tensor], x: Iterable[Tensor]) -> Tensor | float:
    """(lam/2) ||y - x||^2, attached to both; 0 where lam is 0."""
    if not lam:
        return 0.0
    return lam / 2 * torch.stack([(a - b).square().sum() for a, b in zip(y, x, strict=True)]).sum()


def each(tasks: mp.Task) -> Iterator[tuple[Batch, Batch]]:
    """(support, query) of one task after another."""
    (inputs, labels), (query_inputs, query_labels) = tasks
    for one in zip(inputs, labels, query_inputs, query_labels, strict=True):
        yield one[:2], one[2:]


def gradient_of_mean(query_losses: list[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    trained = [p for p in parameters if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(torch.stack(query_losses).mean(), trained)])


def maml_by_higher(model: nn.Module, tasks: mp.Task, inner: Inner) -> Tensor:
    """Frozen parameters and tied weights need nothing special: higher skips the former and knows the latter."""
    # Its Adam is another method: eps is added to the root before bias correction; torch, TorchOpt and we add it after.
    assert isinstance(inner.solver, mp.GradientDescent)
    sgd = torch.optim.SGD(model.parameters(), lr=inner.solver.lr)
    losses = []
    for support, query in each(tasks):
        with higher.innerloop_ctx(model, sgd, copy_initial_weights=False, track_higher_grads=True) as (fast, optimizer):
            for _ in range(inner.steps):
                optimizer.step(loss(fast, support) + proximal_term(inner.lam, fast.parameters(), model.parameters()))
            losses.append(loss(fast, query))
    return gradient_of_mean(losses, model.parameters())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def functorch_by_its_old_name() -> Iterator[None]:
    """TorchOpt calls functorch.grad and functorch.vjp, which work and warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "We've integrated functorch", FutureWarning)
        yield


def meta_optimizer(net: nn.Module, solver: mp.GradientDescent | mp.Adam) -> torchopt.MetaOptimizer:
    if isinstance(solver, mp.Adam):
        return torchopt.MetaAdam(net, lr=solver.lr, betas=solver.betas, eps=solver.eps)
    return torchopt.MetaSGD(net, lr=solver.lr)


@default_dtype(torch.float64)  # its Adam's bias correction is in the default dtype, whatever the parameters' is
def maml_by_torchopt(model: nn.Module, tasks: mp.Task, inner: Inner) -> Tensor:
    net = copy.deepcopy(model)  # its parameters are replaced by every step
    x = tuple(net.parameters())
    initial = torchopt.extract_state_dict(net, by="reference")
    losses = []
    for support, query in each(tasks):
        optimizer = meta_optimizer(net, inner.solver)
        for _ in range(inner.steps):
            optimizer.step(loss(net, support) + proximal_term(inner.lam, net.parameters(), x))
        losses.append(loss(net, query))
        torchopt.recover_state_dict(net, initial)
    return gradient_of_mean(losses, x)


@functorch_by_its_old_name()
def imaml_by_torchopt(model: nn.Module, tasks: mp.Task, inner: Inner) -> Tensor:
    assert isinstance(inner.solver, mp.GradientDescent)
    lr = inner.solver.lr
    solver = torchopt.linear_solve.solve_cg(maxiter=inner.cg_steps, rtol=0.0, atol=0.0)

    class Adapted(ImplicitMetaGradientModule, linear_solve=solver):
        """A copy of ``center`` that is adapted near it."""

        def __init__(self, center: nn.Module) -> None:
            super().__init__()
            self.center = center
            self.net = torchopt.module_clone(center, by="deepcopy")

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def objective(self, support: Batch) -> Tensor:
            return loss(self, support) + proximal_term(inner.lam, self.parameters(), self.meta_parameters())

        def solve(self, support: Batch) -> nn.Module:
            parameters = tuple(self.parameters())
            optimizer = torch.optim.SGD(parameters, lr=lr)
            with torch.enable_grad():
                for _ in range(inner.steps):
                    optimizer.zero_grad()
                    self.objective(support).backward(inputs=parameters)
                    optimizer.step()
            return self

    losses = [loss(Adapted(model).solve(support), query) for support, query in each(tasks)]
    return gradient_of_mean(losses, model.parameters())
