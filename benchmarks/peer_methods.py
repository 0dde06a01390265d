"""Meta-gradients by higher, TorchOpt, learn2learn and Betty, written the way that their documentation does.

Each function adds the meta-gradient of the mean query loss to the ``.grad`` of the model's parameters, as
``loss.backward()`` would, one task after another, so that no graph outlives its task. Steps, differentiation and linear
solver are the peer's own; the proximal term is added to the inner loss by hand. A package is imported where it is used:

higher, TorchOpt  come with ``metaprox[peers]``, and so does parallel-metalearn.
learn2learn       0.2.0 ships C files that Python 3.11 can't compile, and needs torchvision: unpack its source archive,
                  remove learn2learn/data/*.c, and with Cython<3 run ``python setup.py build_ext bdist_wheel``.
Betty             ``pip install --no-deps betty-ml==0.1.1``, with pip older than 24.1: newer ones refuse its metadata.
"""

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import metaprox as mp

Batch = tuple[Tensor, Tensor]
Predictor = Callable[[Tensor], Tensor]
Loss = Callable[[Predictor, Batch], Tensor]
Module = nn.Module


@dataclass(frozen=True)
class Inner:
    """What ours and theirs do in every task: steps of a solver from x on fhat(y) + (lam/2) ||y - x||^2.

    cg_steps: of iMAML, 0 for differentiation through the steps.
    """

    solver: mp.GradientDescent | mp.Adam
    steps: int
    lam: float = 0.0
    cg_steps: int = 0

    @property
    def lr(self) -> float:
        """Of gradient descent."""
        assert isinstance(self.solver, mp.GradientDescent)
        return self.solver.lr


def cross_entropy(model: Predictor, batch: Batch) -> Tensor:
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


def count(tasks: mp.Task) -> int:
    return len(tasks.support[0])


def maml_by_higher(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """Frozen parameters and tied weights need nothing special: higher skips the former and knows the latter."""
    import higher

    # Its Adam is another method: eps is added to the root before bias correction; torch, TorchOpt and we add it after.
    sgd = torch.optim.SGD(model.parameters(), lr=inner.lr)
    for support, query in each(tasks):
        with higher.innerloop_ctx(model, sgd, copy_initial_weights=False, track_higher_grads=True) as (fast, optimizer):
            for _ in range(inner.steps):
                optimizer.step(loss(fast, support) + proximal_term(inner.lam, fast.parameters(), model.parameters()))
            (loss(fast, query) / count(tasks)).backward()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def on_the_same_parameters(model: Module) -> Module:
    """A copy of the module that holds the very same parameters, and can be given others."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def maml_by_torchopt(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    import torchopt

    x = tuple(model.parameters())
    net = on_the_same_parameters(model)  # every step replaces its parameters
    initial = torchopt.extract_state_dict(net, by="reference")
    with default_dtype(x[0].dtype):  # its Adam's bias correction is in the default dtype, whatever the parameters' is
        for support, query in each(tasks):
            if isinstance(inner.solver, mp.Adam):
                adam = inner.solver
                optimizer = torchopt.MetaAdam(net, lr=adam.lr, betas=adam.betas, eps=adam.eps)
            else:
                optimizer = torchopt.MetaSGD(net, lr=inner.lr)
            for _ in range(inner.steps):
                optimizer.step(loss(net, support) + proximal_term(inner.lam, net.parameters(), x))
            (loss(net, query) / count(tasks)).backward()
            torchopt.recover_state_dict(net, initial)


@contextmanager
def functorch_by_its_old_name() -> Iterator[None]:
    """TorchOpt and Betty call what moved to torch.func by its old name, which works and warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "We've integrated functorch", FutureWarning)
        yield


@functorch_by_its_old_name()
def imaml_by_torchopt(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    import torchopt
    from torchopt.diff.implicit.nn import ImplicitMetaGradientModule

    solver = torchopt.linear_solve.solve_cg(maxiter=inner.cg_steps, rtol=0.0, atol=0.0)

    class Adapted(ImplicitMetaGradientModule, linear_solve=solver):
        """A copy of ``center`` that is adapted near it."""

        def __init__(self, center: Module) -> None:
            super().__init__()
            self.center = center
            self.net = torchopt.module_clone(center, by="deepcopy")

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def objective(self, support: Batch) -> Tensor:
            return loss(self, support) + proximal_term(inner.lam, self.parameters(), self.meta_parameters())

        def solve(self, support: Batch) -> Module:
            parameters = tuple(self.parameters())
            optimizer = torch.optim.SGD(parameters, lr=inner.lr)
            with torch.enable_grad():
                for _ in range(inner.steps):
                    optimizer.zero_grad()
                    self.objective(support).backward(inputs=parameters)
                    optimizer.step()
            return self

    trained = [p for p in model.parameters() if p.requires_grad]
    for support, query in each(tasks):
        (loss(Adapted(model).solve(support), query) / count(tasks)).backward(inputs=trained)


def maml_by_learn2learn(model: Module, loss: Loss, tasks: mp.Task, inner: Inner, *, first_order: bool = False) -> None:
    import learn2learn

    maml = learn2learn.algorithms.MAML(model, lr=inner.lr, first_order=first_order)
    for support, query in each(tasks):
        learner = maml.clone()
        for _ in range(inner.steps):
            learner.adapt(loss(learner, support) + proximal_term(inner.lam, learner.parameters(), model.parameters()))
        (loss(learner, query) / count(tasks)).backward()


fomaml_by_learn2learn = functools.partial(maml_by_learn2learn, first_order=True)


def maml_by_parallel_metalearn(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """All tasks at once by vmap; its meta-step ends with one of the outer optimizer, which here is of length 0."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, inputs: Tensor, **_: Any) -> dict[str, Any]:
            return {"logits": self.net(inputs), "buffers": dict(self.named_buffers())}

        def get_fast_weights(self) -> dict[str, Tensor]:
            return dict(self.named_parameters())

    class Judged(nn.Module):
        def forward(self, out_dict: dict[str, Tensor], targets: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            value = loss(lambda inputs: inputs, (out_dict["logits"], targets))
            return value, value.detach()

    net = Wrapped()
    steps = InnerSGD(net.get_fast_weights(), inner_lr=inner.lr, learn_lr=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"inner_steps": inner.steps, "chunk_size": count(tasks), "device": torch.device("cpu")}
    maml = MAML(model=net, optimizer=optimizer, inner_optimizer=steps, support_loss_fn=Judged(), **settings)
    maml.step(iter([(*tasks.support, *tasks.query)]))


def darts_by_betty(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """Its "darts" takes the derivative with respect to x of the inner gradient at y_K, along the query gradient v, by a
    central difference. With a proximal term that derivative is -lam I, so that the meta-gradient is lam v: that of
    FO-MAML, times lam. The inverse of H + lam I is not in it.
    """
    from betty.problems import ImplicitProblem

    class Inside(ImplicitProblem):
        def training_step(self, batch: Batch) -> Tensor:
            return loss(self.module, batch) + proximal_term(inner.lam, self.parameters(), self.outer.parameters())

        def get_batch(self) -> Batch:
            return self.env.support

        def on_inner_loop_start(self) -> None:
            self.env.next_task()
            self.module.load_state_dict(self.outer.module.state_dict())

    _run_betty(model, loss, tasks, inner, Inside, first_order=True)


@functorch_by_its_old_name()
def maml_by_betty(model: Module, loss: Loss, tasks: mp.Task, inner: Inner) -> None:
    """Through its ``IterativeProblem``."""
    from betty.problems import IterativeProblem

    class Inside(IterativeProblem):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.fmodule(self.params, self.buffers, inputs)

        def training_step(self, batch: Batch) -> Tensor:
            return loss(self, batch) + proximal_term(inner.lam, self.parameters(), self.outer.parameters())

        def get_batch(self) -> Batch:
            return self.env.support

        def on_inner_loop_start(self) -> None:
            self.env.next_task()
            self.params = tuple(p.clone() for p in self.outer.parameters())

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        _run_betty(model, loss, tasks, inner, Inside, first_order=False)


def _run_betty(model: Module, loss: Loss, tasks: mp.Task, inner: Inner, inside: Any, *, first_order: bool) -> None:
    """One meta-step of Betty's engine, whose outer problem leaves its ``.grad`` as it is instead of a step."""
    logging.getLogger("betty").disabled = True
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.envs import Env
    from betty.problems import ImplicitProblem

    class Tasks(Env):
        def __init__(self) -> None:
            super().__init__()
            self.left = each(tasks)

        def next_task(self) -> None:
            self.support, self.query = next(self.left)

    class Outside(ImplicitProblem):
        def training_step(self, batch: Batch) -> Tensor:
            return loss(self.inner, batch)

        def get_batch(self) -> Batch:
            return self.env.query

        def optimizer_step(self, *_: Any) -> None:
            return None

        def zero_grad(self) -> None:
            return None

    net = copy.deepcopy(model)
    own = Config(type="darts", unroll_steps=inner.steps, retain_graph=not first_order)
    their = Config(first_order=first_order, retain_graph=True, gradient_accumulation=count(tasks))
    outer = Outside("outer", their, module=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    lower = inside("inner", own, module=net, optimizer=torch.optim.SGD(net.parameters(), lr=inner.lr))
    Engine(
        problems=[outer, lower],
        config=EngineConfig(train_iters=inner.steps * count(tasks)),
        dependencies={"u2l": {outer: [lower]}, "l2u": {lower: [outer]}},
        env=Tasks(),
    ).run()
