"""What a solver declares holds for the class that declares it, and for no step but the one it was written for."""

import functools
import types
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import metaprox as mp
from conftest import relative_error
from metaprox.inner.solve import solve
from metaprox.solvers.protocol import for_parameters, relative_step, separates_branches
from metaprox.tasks import Quadratic

LIMIT = 1e-3


def clip(self, grad, y, state):
    return y - self.lr * grad.clamp(-LIMIT, LIMIT), None


class Clipped(mp.GradientDescent):
    def step(self, grad, y, state):
        return clip(self, grad, y, state)


class Restarted(mp.GradientDescent):
    def init(self, y):
        return "a state"


class Helped(mp.GradientDescent):
    """Overrides neither ``init`` nor ``step``; its base could call what it does override."""

    def direction(self, grad):
        return grad.sign()


@dataclass(frozen=True)
class Decorated(mp.GradientDescent):
    more: float = 1.0

    @torch.no_grad()
    def step(self, grad, y, state):
        return clip(self, grad, y, state)


class Delegate:
    """Shows the attributes of another solver, but not its steps."""

    def __init__(self, solver):
        self.solver = solver

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def step(self, grad, y, state):
        return clip(self, grad, y, state)


def patched_object():
    solver = mp.GradientDescent(0.5)
    object.__setattr__(solver, "step", types.MethodType(clip, solver))
    return solver


def made_by_type():
    return type("Made", (mp.GradientDescent,), {"step": clip})(0.5)


UNTRUSTED = {
    "step": lambda: Clipped(0.5),
    "init": lambda: Restarted(0.5),
    "helper": lambda: Helped(0.5),
    "decorated dataclass": lambda: Decorated(0.5),
    "delegate": lambda: Delegate(mp.GradientDescent(0.5)),
    "patched object": patched_object,
    "made by type": made_by_type,
}


@pytest.mark.parametrize("make", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_promise_is_not_inherited(make):
    solver = make()
    assert solver.relative_step == 0.5
    assert relative_step(solver) is None
    assert not separates_branches(solver)


@pytest.mark.parametrize("wrap", [lambda step: clip, lambda step: functools.wraps(step)(clip)], ids=["bare", "wraps"])
def test_nor_kept_by_a_class_whose_step_was_replaced(monkeypatch, wrap):
    assert relative_step(mp.GradientDescent(0.5)) == 0.5
    monkeypatch.setattr(mp.GradientDescent, "step", wrap(mp.GradientDescent.step))
    assert relative_step(mp.GradientDescent(0.5)) is None
    assert not separates_branches(mp.GradientDescent(0.5))


@pytest.mark.parametrize(
    "solver",
    [
        mp.GradientDescent(0.5),
        mp.Nesterov(0.5),
        mp.Adam(0.5),
        mp.Anderson(0.5),
        mp.TorchOptimizer(lambda params: torch.optim.SGD(params, 0.5)),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_our_own_solvers_keep_their_promises(solver):
    assert separates_branches(solver)
    assert relative_step(solver) == (0.5 if isinstance(solver, mp.GradientDescent) else None)


def test_a_class_may_promise_for_itself_in_any_form():
    class Anew(Clipped):
        relative_step = 0.25
        separate_branches = True

    @dataclass
    class Field:
        relative_step: float
        separate_branches: ClassVar[bool] = True

        def init(self, y):
            return None

        def step(self, grad, y, state):
            return y - self.relative_step * grad, None

    for solver in (Anew(0.5), Field(0.25)):
        assert relative_step(solver) == 0.25
        assert separates_branches(solver)


def test_a_step_that_changes_is_the_one_of_the_moment():
    solver = mp.GradientDescent(0.5)
    object.__setattr__(solver, "lr", 0.125)
    assert relative_step(solver) == 0.125


def test_step_sizes_are_those_of_the_step_in_force():
    y = torch.full((2, 1, 4), 3.0, dtype=torch.float64)
    out = solve(lambda point, step: point, y, Clipped(0.5), 3)
    torch.testing.assert_close(out.step_sizes[:, 0], torch.full((2,), 0.5 * LIMIT / 3.0, dtype=torch.float64))


@pytest.mark.parametrize("scheme", ["forward", "symmetric"])
def test_a_subclass_that_looks_at_all_branches_sees_them_all(scheme):
    """The loop gives branches one at a time to solvers that promise not to look."""

    class Common(mp.GradientDescent):
        def step(self, grad, y, state):
            return y - self.lr * grad / (1 + grad.norm(dim=(1, 2), keepdim=True)), None

    family = Quadratic(dim=6, condition=5.0, seed=1)
    params = {"y": torch.linspace(-1, 1, 6, dtype=torch.float64)}
    loop, vmap = (
        mp.FOBMAML(Common(0.3), 4, scheme=scheme, nu=0.1, backend=backend)(
            family.problem(0.5), params, family.batch(range(3))
        )
        for backend in ("loop", "vmap")
    )
    assert relative_error(loop.grad["y"], vmap.grad["y"]) < 1e-9


class ClippedOptimizer(mp.TorchOptimizer):
    def step(self, grad, y, state):
        return super().step(grad.clamp(-LIMIT, LIMIT), y, state)


@pytest.mark.parametrize("optimizer", ["SGD", "Muon"])
def test_a_subclass_of_torch_optimizer_steps_as_it_says_on_the_parameters_shapes(optimizer):
    """Muon takes matrices alone, and SGD moves by the clipped gradient."""
    params = {"w": torch.ones(2, 3, dtype=torch.float64)}
    problem = mp.ProximalProblem(*[lambda p, data: 50 * ((p["w"] - data) ** 2).sum()] * 2, lam=1.0)
    solver = ClippedOptimizer(lambda tensors: getattr(torch.optim, optimizer)(tensors, lr=0.1, weight_decay=0.0))
    moved = params["w"] - mp.adapt(problem, torch.zeros(2, 3).double(), solver, 1, params=params)["w"]
    if optimizer == "SGD":
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * LIMIT))
    else:  # orthogonalized, so of rank 1 as the gradient is
        assert torch.linalg.matrix_rank(moved, rtol=1e-6) == 1


def test_an_inherited_for_parameters_that_forgets_the_step_is_refused():
    class Bound(Clipped):
        pass

    class Shaped(mp.GradientDescent):
        def for_parameters(self, views):
            return mp.GradientDescent(self.lr)

    class Overrides(Shaped):
        def step(self, grad, y, state):
            return clip(self, grad, y, state)

    class Says(Overrides):
        def for_parameters(self, views):
            return Bound(self.lr)

    assert for_parameters(Shaped(0.5), dict) == mp.GradientDescent(0.5)
    assert type(for_parameters(Says(0.5), dict)) is Bound
    with pytest.raises(mp.InputError, match=r"Overrides\(lr=0.5\) has an init or step of its own.*a GradientDescent"):
        for_parameters(Overrides(0.5), dict)


def test_what_is_inherited_and_forbids_is_believed_until_taken_back():
    class Free(mp.TorchOptimizer):
        differentiable = True

    def factory(params):
        return torch.optim.SGD(params, 0.1)

    with pytest.raises(mp.InputError, match=r"ClippedOptimizer.*differentiable = True"):
        mp.MAML(ClippedOptimizer(factory), 2)
    assert isinstance(mp.MAML(Free(factory), 2).solver, Free)
