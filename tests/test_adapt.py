"""Which parameters adapt: the others are shared by all tasks, and get their meta-gradient all the same."""

import pytest
import torch
from torch import nn

import metaprox as mp
from conftest import relative_error
from metaprox.models import mlp
from metaprox.tasks import Sinusoid

HEAD = "2.*"
SOLVER = mp.GradientDescent(0.12)
TIGHT = 400
EXACT = {
    "fobmaml-loss": mp.FOBMAML(SOLVER, TIGHT),
    "fobmaml-center": mp.FOBMAML(SOLVER, TIGHT, scheme="central4", perturb="center"),
    "fobmaml-corrected": mp.FOBMAML(SOLVER, TIGHT, scheme="forward", residual_correction=True),
    "fobmaml-forward": mp.FOBMAML(SOLVER, TIGHT, scheme="forward", perturb="center"),
    "tangent": mp.Tangent(SOLVER, TIGHT),
    "tangent-corrected": mp.Tangent(SOLVER, TIGHT, perturb="center", residual_correction=True),
    "imaml": mp.IMAML(SOLVER, TIGHT, cg_steps=8),
    "maml": mp.MAML(SOLVER, TIGHT),
}


def loss(model, batch):
    """Mean squared error and a term in the body alone, so that the direct part of its gradient is not all there is."""
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets) + 0.1 * model[0].weight.square().sum()


@pytest.fixture(scope="module")
def problem():
    model = mlp([1, 6, 1], seed=1).double()
    model[1] = nn.Tanh()
    return mp.ProximalProblem.from_module(model, loss, lam=0.5, adapt=HEAD)


@pytest.fixture(scope="module")
def tasks():
    return mp.Task(*(tuple(leaf.double() for leaf in part) for part in Sinusoid(shots=5, queries=7).batch(range(3))))


@pytest.fixture(scope="module")
def exact(problem, tasks):
    return mp.exact_meta_gradient(problem, problem.live_parameters(), tasks)


def flat(grad):
    return torch.cat([g.flatten() for g in grad.values()])


def with_backend(meta, backend):
    return type(meta)(**{**vars(meta), "backend": backend})


def test_exact_gradient_is_the_slope_of_the_exact_objective(problem, tasks, exact):
    """Along a direction in all parameters, adapted and shared, by central differences of F."""
    params = {name: p.detach() for name, p in problem.live_parameters().items()}
    directions = {name: torch.linspace(-1, 2, p.numel(), dtype=p.dtype).view_as(p) for name, p in params.items()}

    def objective(h):
        moved = {name: p + h * directions[name] for name, p in params.items()}
        return float(mp.exact_meta_gradient(problem, moved, tasks).value)

    slope = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert slope == pytest.approx(sum(float((exact.grad[n] * d).sum()) for n, d in directions.items()), rel=1e-6)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("name", EXACT)
def test_every_exact_method_meets_it(problem, tasks, exact, name, backend):
    out = with_backend(EXACT[name], backend)(problem, problem.live_parameters(), tasks)
    tolerance = 1e-5 if "forward" in name or "fobmaml-corrected" in name else 1e-7
    for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert relative_error(out.grad[part], exact.grad[part]) < tolerance, part
    assert list(out.grad) == list(problem.live_parameters())
    assert list(out.adapted) == ["2.weight", "2.bias"]
    torch.testing.assert_close(flat({n: y[0] for n, y in out.adapted.items()}), exact.solutions[0])


def test_fomaml_takes_the_direct_part_alone(problem, tasks):
    out = mp.FOMAML(SOLVER, TIGHT)(problem, problem.live_parameters(), tasks)
    shared = problem.live_parameters()
    direct = torch.zeros(6, 1, dtype=torch.float64)
    for i in range(3):
        body = shared["0.weight"].detach().requires_grad_()
        params = {**shared, "0.weight": body} | {name: y[i] for name, y in out.adapted.items()}
        value = problem.outer_loss(params, tuple(leaf[i] for leaf in tasks.query))
        direct += torch.autograd.grad(value, body)[0] / 3
    torch.testing.assert_close(out.grad["0.weight"], direct)


@pytest.mark.parametrize(
    ("meta", "counts"),
    [
        (mp.FOBMAML(SOLVER, 4), (4 + 1 + 2 * 3 + 2, 1, 0)),
        (mp.FOBMAML(SOLVER, 4, perturb="loss"), (4 + 1 + 2 * 3 + 2, 1 + 2 * 3, 0)),
        (mp.FOBMAML(SOLVER, 4, scheme="forward", perturb="center", residual_correction=True), (4 + 1 + 3 + 2, 1, 0)),
        (mp.Tangent(SOLVER, 4, perturb="center"), (4 + 1 + 4, 1, 4 + 1)),
        (mp.IMAML(SOLVER, 4, cg_steps=3), (4 + 1, 1, 3 + 1)),
        (mp.MAML(SOLVER, 4), (4, 1, 4)),
        (mp.FOMAML(SOLVER, 4), (4, 1, 0)),
    ],
)
def test_counts_include_the_shared_part(problem, tasks, meta, counts):
    assert meta(problem, problem.live_parameters(), tasks).info.counts == mp.Counts(*(3 * c for c in counts))


def test_backward_fills_all_gradients_and_adapt_returns_what_adapts():
    model = mlp([1, 6, 1]).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5, adapt=["2.weight", "2.bias"])
    data = mp.Task(*(tuple(leaf.double() for leaf in part) for part in Sinusoid().batch(range(2))))
    out = mp.FOBMAML(SOLVER, 5).backward(problem, data)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, out.grad[name])
        assert torch.equal(p, before[name])
    adapted = mp.adapt(problem, tuple(leaf[0] for leaf in data.support), SOLVER, 5)
    assert list(adapted) == ["2.weight", "2.bias"]
    assert (adapted["2.weight"] - before["2.weight"]).abs().max() > 0


def test_adapting_all_by_pattern_is_adapting_all(problem, tasks):
    params = problem.live_parameters()
    everything = mp.ProximalProblem(problem.inner_loss, problem.outer_loss, 0.5, adapt="*")
    default = mp.ProximalProblem(problem.inner_loss, problem.outer_loss, 0.5)
    a, b = (mp.FOBMAML(SOLVER, 5)(p, params, tasks) for p in (everything, default))
    assert torch.equal(flat(a.grad), flat(b.grad))
    assert a.info.counts == b.info.counts


def test_an_inner_loss_without_the_shared_parameters_leaves_the_direct_part(tasks):
    """w only in the outer loss, as the weight of a penalty would be."""
    inner = lambda p, d: (p["y"] - d[1].mean()).square().sum()  # noqa: E731
    outer = lambda p, d: inner(p, d) * p["w"].sum()  # noqa: E731
    problem = mp.ProximalProblem(inner, outer, 0.5, adapt="y")
    params = {"w": torch.ones(1, dtype=torch.float64), "y": torch.zeros(2, dtype=torch.float64)}
    for backend in ("vmap", "loop"):
        for meta in (mp.FOBMAML(SOLVER, 40), mp.IMAML(SOLVER, 40), mp.MAML(SOLVER, 40), mp.Tangent(SOLVER, 40)):
            out = with_backend(meta, backend)(problem, params, tasks)
            torch.testing.assert_close(out.grad["w"], out.query_loss.mean()[None])


@pytest.mark.parametrize("adapt", ["head.*", ["2.*", "3.*"], []])
def test_a_pattern_that_fits_nothing_lists_the_names(adapt):
    problem = mp.ProximalProblem.from_module(mlp([1, 6, 1]), loss, lam=0.5, adapt=adapt)
    with pytest.raises(mp.InputError, match=r"fits no parameter; there are: 0.weight, 0.bias, 2.weight, 2.bias"):
        mp.FOBMAML(SOLVER, 5).backward(problem, Sinusoid().batch([0]))


def test_reptile_refuses_parameters_that_do_not_adapt(problem, tasks):
    with pytest.raises(mp.InputError, match=r"Reptile moves only what adapts: adapt='2.\*' would leave"):
        mp.Reptile(SOLVER, 5)(problem, problem.live_parameters(), tasks)
