"""FO-B-MAML against the closed form on quadratics, and against a dense solve on logistic regression."""

import math

import pytest
import torch

import metaprox as mp
from conftest import LAM, SCHEMES, relative_error
from metaprox.estimators.reference import finite_difference_by_hand
from metaprox.tasks import Quadratic
from metaprox.tasks import quadratic as closed_form

EXACT = {"tol": 1e-13, "max_steps": 400}  # of Anderson's steps: solves to rounding


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("correction", [False, True])
def test_every_scheme_meets_the_closed_form(quadratic, scheme, perturb, backend, correction):
    problem, params, tasks = quadratic
    meta = mp.FOBMAML(
        mp.GradientDescent(1.0),
        steps=200,
        scheme=scheme,
        perturb=perturb,
        backend=backend,
        residual_correction=correction,
    )
    out = meta(problem, params, tasks)
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    # Truncation nu^p or eps^p, plus rounding / nu, at the default step: 1e-8 ... 6e-3.
    assert (
        relative_error(out.grad["y"], truth)
        < {"forward": 3e-7, "symmetric": 1e-8, "central4": 1e-10, "central6": 1e-10}[scheme]
    )
    solutions = closed_form.solution(params["y"], tasks, LAM)
    assert torch.allclose(out.adapted["y"], solutions, atol=1e-10)
    offsets = closed_form.objective(params["y"], tasks, LAM)
    assert torch.allclose(out.query_loss, offsets, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_meets_the_closed_form(quadratic, scheme):
    problem, params, tasks = quadratic
    single = {"y": params["y"].float()}
    narrow = mp.Task(*(tuple(leaf.float() for leaf in part) for part in tasks))
    out = mp.FOBMAML(mp.GradientDescent(1.0), steps=100, scheme=scheme)(problem, single, narrow)
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    assert out.grad["y"].dtype == torch.float32
    assert (
        relative_error(out.grad["y"].double(), truth)
        < {"forward": 2e-3, "symmetric": 2e-4, "central4": 2e-5, "central6": 1e-4}[scheme]
    )


@pytest.mark.parametrize(("scheme", "order"), [("forward", 1), ("symmetric", 2), ("central4", 4), ("central6", 6)])
def test_measured_order_in_nu(quadratic, scheme, order):
    problem, params, tasks = quadratic
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    steps = (0.02, 0.04)
    errors = [
        relative_error(
            mp.FOBMAML(mp.Anderson(0.8), **EXACT, scheme=scheme, nu=nu)(problem, params, tasks).grad["y"], truth
        )
        for nu in steps
    ]
    slope = math.log(errors[1] / errors[0]) / math.log(steps[1] / steps[0])
    assert slope == pytest.approx(order, abs=0.3)


def test_center_perturbation_is_exact_for_quadratics_at_any_eps(quadratic):
    """The proximal map of a quadratic is affine, so that its difference has no truncation error."""
    problem, params, tasks = quadratic
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    meta = mp.FOBMAML(mp.GradientDescent(1.0), steps=200, perturb="center", scheme="forward", eps=10.0)
    assert relative_error(meta(problem, params, tasks).grad["y"], truth) < 1e-13


def test_predictor_with_no_branch_steps_is_first_order_maml(quadratic):
    problem, params, tasks = quadratic
    for scheme in SCHEMES:
        meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=4, scheme=scheme, start="predictor", branch_steps=0, nu=0.1)
        out = meta(problem, params, tasks)
        curvature, center = tasks.query
        v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1).mean(0)
        assert torch.allclose(out.grad["y"], v, rtol=1e-12)


def test_branch_steps_from_the_predictor_add_the_neumann_series(quadratic):
    """One gradient step of size s from FO-MAML's point gives v - s (H + lam I) v + s lam v = v - s H v."""
    problem, params, tasks = quadratic
    step = 0.3
    meta = mp.FOBMAML(
        mp.GradientDescent(1.0),
        steps=200,
        branch_solver=mp.GradientDescent(step),
        branch_steps=1,
        start="predictor",
        perturb="center",
        eps=1e-3,
    )
    out = meta(problem, params, tasks)
    curvature, center = tasks.query
    v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)
    expected = v - step * (tasks.support[0] @ v[..., None]).squeeze(-1)
    assert torch.allclose(out.grad["y"], expected.mean(0), atol=1e-9)


def test_gradient_is_zero_at_the_minimizer_and_points_downhill_elsewhere(quadratic):
    problem, params, tasks = quadratic
    best = closed_form.minimizer(tasks, LAM)
    meta = mp.FOBMAML(mp.GradientDescent(1.0), steps=200)
    assert meta(problem, {"y": best}, tasks).grad["y"].norm() < 1e-8
    x = params["y"]
    moved = x - 0.1 * meta(problem, params, tasks).grad["y"]
    value = lambda point: closed_form.objective(point, tasks, LAM).mean()  # noqa: E731
    assert value(best) < value(moved) < value(x)


def test_zero_query_loss_gives_zero(quadratic):
    problem, params, tasks = quadratic
    silent = mp.ProximalProblem(problem.inner_loss, lambda p, data: 0.0 * p["y"].sum(), LAM)
    for perturb in ("loss", "center"):
        out = mp.FOBMAML(mp.GradientDescent(0.5), steps=5, perturb=perturb)(silent, params, tasks)
        assert out.grad["y"].abs().max() == 0
        assert out.info.gradient_ratio.abs().max() == 0


def test_one_task_equals_a_batch_of_one_and_batches_average(quadratic):
    problem, params, tasks = quadratic
    meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=7, nu=1e-3)
    whole = meta(problem, params, tasks).grad["y"]
    singles = [mp.Task(*(tuple(leaf[i] for leaf in part) for part in tasks)) for i in range(5)]
    parts = [meta(problem, params, [task]).grad["y"] for task in singles]
    assert torch.allclose(whole, torch.stack(parts).mean(0), atol=1e-13)
    assert torch.allclose(whole, meta(problem, params, singles).grad["y"], atol=1e-13)


class Logistic:
    """Regularized logistic regression, 20-d, condition number 7.5 or so: tasks, problem and exact meta-gradient."""

    lam = 0.1

    def __init__(self):
        rng = torch.Generator().manual_seed(1)
        scales = torch.logspace(0, -1, 20, dtype=torch.float64)
        self.params = {"w": 0.5 * torch.randn(20, dtype=torch.float64, generator=rng)}

        def data(count):
            inputs = 2 * torch.randn(6, count, 20, dtype=torch.float64, generator=rng) * scales
            truth = torch.randn(6, 20, 1, dtype=torch.float64, generator=rng)
            labels = torch.rand(6, count, dtype=torch.float64, generator=rng) < torch.sigmoid(
                (inputs @ truth).squeeze(-1)
            )
            return inputs, labels.double()

        self.tasks = mp.Task(data(40), data(40))

        def loss(params, batch):
            inputs, labels = batch
            return torch.nn.functional.binary_cross_entropy_with_logits(inputs @ params["w"], labels)

        self.problem = mp.ProximalProblem(loss, loss, self.lam)
        self.exact = mp.exact_meta_gradient(self.problem, self.params, self.tasks)

    def error(self, meta):
        """Relative error of the per-batch mean."""
        return relative_error(meta(self.problem, self.params, self.tasks).grad["w"], self.exact.grad["w"])


@pytest.fixture(scope="module")
def logistic():
    return Logistic()


def test_logistic_reference_agrees_with_a_difference_of_the_objective(logistic):
    """The dense solve is itself checked: against F evaluated at two nearby points."""
    direction = torch.ones(20, dtype=torch.float64) / 20**0.5
    values = [
        mp.exact_meta_gradient(logistic.problem, {"w": logistic.params["w"] + h * direction}, logistic.tasks).value
        for h in (1e-4, -1e-4)
    ]
    assert float(values[0] - values[1]) / 2e-4 == pytest.approx(float(logistic.exact.grad["w"] @ direction), rel=1e-6)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_the_difference_is_equation_2_as_it_is_written(logistic, backend):
    tasks = [mp.Task(*(tuple(leaf[i] for leaf in part) for part in logistic.tasks)) for i in range(6)]
    by_hand = finite_difference_by_hand(logistic.problem, logistic.params, tasks, lr=0.7, steps=4, nu=0.3)
    meta = mp.FOBMAML(mp.GradientDescent(0.7), 4, nu=0.3, backend=backend)
    assert relative_error(meta(logistic.problem, logistic.params, tasks).grad["w"], by_hand["w"]) < 1e-12
    assert relative_error(by_hand["w"], logistic.exact.grad["w"]) > 0.01  # of few steps and a large nu


def test_logistic_symmetric_after_ten_steps(logistic):
    meta = mp.FOBMAML(mp.Nesterov(1.2), steps=10, nu=0.05)
    assert logistic.error(meta) < 0.05


def test_logistic_forward_with_five_anderson_steps_from_a_converged_base(logistic):
    meta = mp.FOBMAML(
        mp.Anderson(1.0),
        tol=1e-10,
        max_steps=200,
        scheme="forward",
        nu=0.01,
        residual_correction=True,
        branch_steps=5,
    )
    assert logistic.error(meta) < 0.10


def test_quadratic_minimizer_is_where_the_closed_form_gradient_vanishes():
    tasks = Quadratic(dim=6, condition=50.0, seed=1).batch(range(30))
    best = closed_form.minimizer(tasks, LAM)
    assert closed_form.meta_gradient(best, tasks, LAM).mean(0).norm() < 1e-12
