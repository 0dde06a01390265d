"""Optimizers of torch as inner solvers: what they do to a module they do to every task and branch."""

from functools import partial

import pytest
import torch

import metaprox as mp
from conftest import LAM, relative_error
from metaprox.inner.solve import solve
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid
from metaprox.tasks import quadratic as closed_form

CURVATURE = torch.tensor([0.2, 1.0, 1.9], dtype=torch.float64).view(3, 1, 1)


def gradient(y, step):
    return CURVATURE * y


def start():
    return torch.linspace(-1, 2, 24, dtype=torch.float64).view(3, 2, 4)


PAIRS = [
    (partial(torch.optim.SGD, lr=0.3), mp.GradientDescent(0.3)),
    (partial(torch.optim.Adam, lr=0.05, betas=(0.8, 0.99), eps=1e-6), mp.Adam(0.05, betas=(0.8, 0.99), eps=1e-6)),
]


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize(("factory", "ours"), PAIRS)
def test_equals_our_own_solver(factory, ours, elementwise):
    theirs = solve(gradient, start(), mp.TorchOptimizer(factory, elementwise), 9)
    expected = solve(gradient, start(), ours, 9)
    torch.testing.assert_close(theirs.y, expected.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(theirs.step_sizes, expected.step_sizes)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
        partial(torch.optim.Muon, lr=0.02),
    ],
    ids=lambda factory: factory.func.__name__,
)
def test_evaluation_adapts_as_a_plain_training_loop_does(factory, backend):
    """Muon needs the weights as matrices; momentum and weight decay need a state and a point of each task's own."""
    model = _weights_only().double()
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=LAM)
    tasks = [_double(Sinusoid().batch([i])) for i in range(2)]
    losses = mp.evaluate(
        problem, lambda ids: _double(Sinusoid().batch(ids)), range(2), mp.TorchOptimizer(factory), 6, backend=backend
    ).values["loss"]
    for task, loss in zip(tasks, losses, strict=True):
        torch.testing.assert_close(loss, _plain_loop(model, factory, task), rtol=1e-9, atol=0)


def _weights_only():
    """Two matrices and no vectors, which is what Muon takes."""
    return torch.nn.Sequential(torch.nn.Linear(1, 12, bias=False), torch.nn.Tanh(), torch.nn.Linear(12, 1, bias=False))


def _double(task):
    return mp.Task(*(tuple(leaf.double() for leaf in part) for part in task))


def _plain_loop(model, factory, task):
    support, query = (tuple(leaf[0] for leaf in part) for part in task)
    copy = _weights_only().double()
    copy.load_state_dict(model.state_dict())
    optimizer = factory(copy.parameters())
    for _ in range(6):
        optimizer.zero_grad()
        pull = sum(((p - x.detach()) ** 2).sum() for p, x in zip(copy.parameters(), model.parameters(), strict=True))
        (mean_squared_error(copy, support) + 0.5 * LAM * pull).backward()
        optimizer.step()
    return mean_squared_error(copy, query).detach()


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("elementwise", [False, True])
def test_meta_gradient_meets_the_closed_form(quadratic, backend, elementwise):
    problem, params, tasks = quadratic
    solver = mp.TorchOptimizer(partial(torch.optim.SGD, lr=0.6), elementwise)
    out = mp.FOBMAML(solver, 150, backend=backend)(problem, params, tasks)
    assert relative_error(out.grad["y"], closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)) < 1e-8


def test_base_by_adamw_and_branches_by_anderson(quadratic):
    """AdamW's lr must fall for it to converge; the branches differentiate the solution that it leaves."""
    problem, params, tasks = quadratic
    base = mp.TorchOptimizer(partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0), elementwise=True)
    meta = mp.FOBMAML(
        base, 2000, perturb="center", branch_solver=mp.Anderson(0.6), branch_steps=12, residual_correction=True
    )
    out = meta(problem, params, tasks)
    assert relative_error(out.grad["y"], closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)) < 1e-2


def test_start_and_gradients_stay_as_they_are():
    y = start()
    solve(gradient, y, mp.TorchOptimizer(partial(torch.optim.Adam, lr=0.1)), 5)
    assert torch.equal(y, start())


@pytest.mark.parametrize("method", [mp.MAML, mp.Tangent])
def test_methods_that_differentiate_the_solver_refuse_it(method):
    with pytest.raises(mp.InputError, match=r"differentiates the steps.*TorchOptimizer.*use FOBMAML"):
        method(mp.TorchOptimizer(partial(torch.optim.SGD, lr=0.1)), 5)


def test_what_is_not_a_first_order_optimizer_is_refused():
    problem = mp.ProximalProblem.from_module(mlp([1, 4, 1]), mean_squared_error, lam=LAM)
    support = Sinusoid().batch([0]).support
    one = tuple(leaf[0] for leaf in support)
    with pytest.raises(mp.InputError, match="LBFGS needs a closure"):
        mp.adapt(problem, one, mp.TorchOptimizer(torch.optim.LBFGS), 5)
    with pytest.raises(mp.InputError, match=r"must return a torch\.optim\.Optimizer, got list"):
        mp.adapt(problem, one, mp.TorchOptimizer(lambda params: params), 5)


def test_what_it_is_told_of_the_parameters_is_no_setting():
    factory = partial(torch.optim.SGD, lr=0.1)
    solver = mp.TorchOptimizer(factory)
    told = solver.for_parameters(lambda y: {"w": y})
    assert told == solver
    assert repr(told) == repr(solver) == f"TorchOptimizer(factory={factory!r}, elementwise=False)"
    with pytest.raises(TypeError):
        mp.TorchOptimizer(factory, _views=lambda y: {"w": y})


@pytest.mark.parametrize(("count", "shown"), [(1, "(1,): "), (4, "(1,), (2,), (3,), (4,): "), (5, "(3,), (4,), ...: ")])
def test_a_factory_that_fails_is_told_of_up_to_four_shapes(count, shown):
    def factory(params):
        raise ValueError("no")

    solver = mp.TorchOptimizer(factory).for_parameters(
        lambda y: {str(i): part for i, part in enumerate(y.split(list(range(1, count + 1))))}
    )
    with pytest.raises(mp.InputError) as caught:
        solver.init(torch.zeros(1, 1, sum(range(1, count + 1))))
    assert f"{shown}no" in str(caught.value)
    assert str(caught.value).count("(5,)") == 0
