"""``estimate_truncation=True``: what the difference leaves out, by one further gradient, on cubics and by its cost."""

import pytest
import torch

import metaprox as mp
from metaprox.losses import compiled
from metaprox.models import mean_squared_error
from metaprox.tasks import Sinusoid

LAM, A, B, Q = 0.5, 1.5, 0.8, 2.0  # fhat = A (y - s)^2 / 2 + B (y - s)^3 / 6, f = Q (y - q)^2 / 2


def cubic(query_curvature=Q, tasks=3, x=0.0):
    """In one dimension, where each task's g, d and third derivative can be read off."""
    inner = lambda p, s: (0.5 * A * (p["y"] - s) ** 2 + B * (p["y"] - s) ** 3 / 6).sum()  # noqa: E731
    slope = lambda p, q: (q * p["y"] + 0.5 * query_curvature * p["y"] ** 2).sum()  # noqa: E731
    spread = torch.linspace(0.3, 0.9, tasks, dtype=torch.float64)[:, None]
    params = {"y": torch.full((1,), x, dtype=torch.float64)}
    return mp.ProximalProblem(inner, slope, LAM), params, mp.Task(spread, spread + 1)


def solution(s, slope=0.0, curvature=0.0):
    """argmin of fhat + slope y + curvature y^2 / 2 + LAM y^2 / 2, by Newton's method."""
    y = torch.zeros_like(s)
    for _ in range(60):
        grad = A * (y - s) + B * (y - s) ** 2 / 2 + slope + (curvature + LAM) * y
        y = y - grad / (A + B * (y - s) + curvature + LAM)
    return y


DIFFERENCES = [
    ("forward", "center", False),
    ("forward", "center", True),
    ("forward", "loss", False),
    ("forward", "loss", True),
    ("symmetric", "center", False),
    ("symmetric", "center", True),
    ("symmetric", "loss", False),
]


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize(("scheme", "perturb", "corrected"), DIFFERENCES)
def test_it_is_the_second_derivative_of_solved_branches(scheme, perturb, corrected, backend):
    """theta = |B d^2 + 2 nu Q d| / (2 kappa |d|), without Q for "center", with d the branches' displacement."""
    problem, params, tasks = cubic()
    s, q = (leaf.flatten() for leaf in tasks)
    y0 = solution(s)
    v = q + Q * y0
    nu = torch.full_like(v, 0.2) if perturb == "loss" else LAM * 0.2 / v.abs()
    step = {"nu": 0.2} if perturb == "loss" else {"eps": 0.2}
    tilts = (lambda n: (n * q, n * Q)) if perturb == "loss" else (lambda n: (n * v, 0.0))
    plus, minus = solution(s, *tilts(nu)), solution(s, *tilts(-nu))
    d = plus - y0 if scheme == "forward" else (plus - minus) / 2
    meta = mp.FOBMAML(
        mp.GradientDescent(0.3),
        50,
        scheme=scheme,
        perturb=perturb,
        residual_correction=corrected,
        estimate_truncation=True,
        backend=backend,
        **step,
    )
    info = meta(problem, params, tasks).info
    bend = B * d**2 + (2 * nu * Q * d if perturb == "loss" else 0.0)
    middle = (plus + y0) / 2 if scheme == "forward" else (plus + minus) / 2
    kappa = A + B * (middle - s) + LAM  # the mean curvature between the points
    if perturb == "loss":  # and of nu f between them, less nu v, by d
        average = plus - y0 if scheme == "forward" else (plus + minus) / 2 - y0
        kappa = kappa + nu * Q * average / d
    theta = (bend / (2 * kappa * d)).abs()
    relative = theta if scheme == "forward" else (1 if perturb == "loss" else 3) * theta**2
    rest = info.branch_error + info.base_error + info.rounding_error
    assert rest.max() < 1e-10
    torch.testing.assert_close(info.truncation_error, relative / (1 + relative), rtol=1e-6, atol=0)
    torch.testing.assert_close(info.relative_error, info.truncation_error + rest)


@pytest.mark.parametrize(("scheme", "perturb", "corrected"), DIFFERENCES)
def test_it_is_the_error_that_the_step_makes(scheme, perturb, corrected):
    """Within a factor of three, over decades of the step, where the branches are solved."""
    problem, params, tasks = cubic(tasks=1)
    truth = mp.exact_meta_gradient(problem, params, tasks).per_task[0]
    for size in (0.02, 0.1, 0.3):
        step = {"nu": size} if perturb == "loss" else {"eps": size}
        settings = {"scheme": scheme, "perturb": perturb, "residual_correction": corrected}
        meta = mp.FOBMAML(mp.GradientDescent(0.3), 50, estimate_truncation=True, **settings, **step)
        out = meta(problem, params, tasks)
        error = float((out.grad["y"] - truth).abs() / out.grad["y"].abs())
        assert 0.3 < error / (1 + error) / float(out.info.truncation_error) < 3


@pytest.mark.parametrize("tol", [False, True])
@pytest.mark.parametrize(("scheme", "perturb", "corrected"), DIFFERENCES)
def test_it_costs_a_support_gradient_and_changes_nothing_else(scheme, perturb, corrected, tol):
    problem, params, tasks = cubic()
    steps = {"tol": 1e-4, "max_steps": 90} if tol else {"steps": 6}
    settings = {"scheme": scheme, "perturb": perturb, "residual_correction": corrected, **steps}
    plain = mp.FOBMAML(mp.GradientDescent(0.3), **settings)(problem, params, tasks)
    found = mp.FOBMAML(mp.GradientDescent(0.3), **settings, estimate_truncation=True)(problem, params, tasks)
    assert torch.equal(plain.grad["y"], found.grad["y"])
    assert plain.info.truncation_error.isnan().all()
    assert (found.info.truncation_error > 0).all()
    counts, more = plain.info.counts, (scheme, perturb) == ("forward", "loss")
    assert found.info.counts.support_gradients == counts.support_gradients + 3
    assert found.info.counts.query_gradients == counts.query_gradients + 3 * more


def test_a_task_that_stops_early_is_judged_where_it_stopped():
    problem, params, tasks = cubic()
    meta = mp.FOBMAML(
        mp.GradientDescent(0.3), tol=1e-5, max_steps=200, estimate_truncation=True, eps=0.1, perturb="center"
    )
    together = meta(problem, params, tasks).info
    for task in range(3):
        alone = meta(problem, params, mp.Task(*(leaf[task : task + 1] for leaf in tasks))).info
        torch.testing.assert_close(together.truncation_error[task], alone.truncation_error[0])


def test_without_a_step_there_is_no_truncation():
    """The first step is linear in nu; where v is 0 the branches are alike; on quadratics they do not bend."""
    problem, params, tasks = cubic()
    once = mp.FOBMAML(mp.GradientDescent(0.3), 5, branch_steps=1, estimate_truncation=True)(problem, params, tasks)
    assert once.info.truncation_error.tolist() == [0.0] * 3
    flat = mp.ProximalProblem(problem.inner_loss, lambda p, q: 0.0 * p["y"].sum(), LAM)
    still = mp.FOBMAML(mp.GradientDescent(0.3), 5, estimate_truncation=True)(flat, params, tasks)
    assert still.info.truncation_error.tolist() == [0.0] * 3
    square = mp.ProximalProblem(lambda p, s: ((p["y"] - s) ** 2).sum(), problem.outer_loss, LAM)
    straight = mp.FOBMAML(mp.GradientDescent(0.1), 5, estimate_truncation=True, perturb="center")
    assert straight(square, params, tasks).info.truncation_error.max() < 1e-20


def network(count=4):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return mp.ProximalProblem.from_module(model, mean_squared_error, 0.5), Sinusoid().batch(range(count))


@pytest.mark.parametrize(("scheme", "perturb", "corrected"), DIFFERENCES)
def test_the_backends_agree(scheme, perturb, corrected):
    problem, tasks = network()
    settings = {"scheme": scheme, "perturb": perturb, "residual_correction": corrected, "estimate_truncation": True}
    step = {"nu": 0.1} if perturb == "loss" else {"eps": 0.5}
    found = [
        mp.FOBMAML(mp.GradientDescent(0.02), 5, backend=backend, chunk_size=size, **settings, **step)
        .backward(problem, tasks)
        .info.truncation_error
        for backend, size in (("loop", None), ("vmap", None), ("vmap", 3))
    ]
    assert found[0].min() > 1e-9
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=2e-2, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_are_watched_as_well(as_traced):
    compiled.forget()
    problem, tasks = network()
    settings = {"scheme": "forward", "perturb": "center", "residual_correction": True, "estimate_truncation": True}
    found = [
        mp.FOBMAML(mp.GradientDescent(0.02), 5, backend="vmap", chunk_size=None, compile=on, eps=0.5, **settings)
        .backward(problem, tasks)
        .info
        for on in (False, True)
    ]
    assert found[0].counts == found[1].counts
    torch.testing.assert_close(found[0].truncation_error, found[1].truncation_error, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"scheme": "central4"}, "scheme='central4'"), ({"estimate_error": False}, "estimate_error=False switches off")],
)
def test_what_is_not_known_is_refused(settings, words):
    with pytest.raises(mp.InputError, match=words):
        mp.FOBMAML(mp.GradientDescent(0.1), 3, estimate_truncation=True, **settings)
