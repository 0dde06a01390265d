"""What ``info`` says is what happened."""

import pytest
import torch

import metaprox as mp
from conftest import LAM, SCHEMES
from metaprox.estimators.stencil import STENCILS


def parts(params, tasks, out):
    """H, v and y_0 of every task, from the closed form."""
    curvature, center = tasks.query
    v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)
    return tasks.support[0] + LAM * torch.eye(8, dtype=torch.float64), v, out.adapted["y"]


def test_base_residual_is_the_gradient_left_at_the_adapted_parameters(quadratic):
    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.GradientDescent(0.5), steps=3)(problem, params, tasks)
    support, center = tasks.support
    y0 = out.adapted["y"]
    left = (support @ (y0 - center)[..., None]).squeeze(-1) + LAM * (y0 - params["y"])
    torch.testing.assert_close(out.info.base_residual, left.norm(dim=1))


def test_gradient_ratio_is_per_task_and_at_most_one_for_convex_losses(quadratic):
    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.Anderson(0.7), tol=1e-10, max_steps=100)(problem, params, tasks)
    shifted, v, _ = parts(params, tasks, out)
    exact = torch.linalg.solve(shifted, LAM * v).norm(dim=1) / v.norm(dim=1)
    torch.testing.assert_close(out.info.gradient_ratio, exact, rtol=1e-6, atol=0)
    assert (out.info.gradient_ratio <= 1).all()


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_error_estimate_is_the_linear_residual_one_step_before_the_end(quadratic, scheme, correction):
    problem, params, tasks = quadratic
    settings = {"scheme": scheme, "perturb": "center", "eps": 0.1, "residual_correction": correction}
    estimate = mp.FOBMAML(mp.GradientDescent(0.5), steps=6, branch_steps=4, **settings)(problem, params, tasks)
    for i in range(5):
        task = mp.Task(*(tuple(leaf[i : i + 1] for leaf in part) for part in tasks))
        earlier = mp.FOBMAML(mp.GradientDescent(0.5), steps=6, branch_steps=3, **settings)(problem, params, task)
        shifted, v, _ = parts(params, task, earlier)
        residual = LAM * v[0] - shifted[0] @ earlier.grad["y"]
        expected = residual.norm() / (LAM * v[0].norm())
        torch.testing.assert_close(estimate.info.linear_residual[i], expected, rtol=1e-8, atol=1e-12)


def test_error_estimate_bounds_the_error_of_convex_branches(quadratic):
    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.GradientDescent(1.0), steps=300, branch_steps=5, perturb="center")(problem, params, tasks)
    shifted, v, _ = parts(params, tasks, out)
    exact = torch.linalg.solve(shifted, LAM * v)
    error = (out.grad["y"] - exact.mean(0)).norm()
    assert error > 1e-4
    assert error <= (out.info.linear_residual * v.norm(dim=1)).mean()


def test_error_estimate_is_nan_where_nobody_asks_for_it(quadratic):
    for asked in (True, False):
        info = mp.FOBMAML(mp.GradientDescent(0.6), 4, estimate_error=asked)(*quadratic).info
        assert info.linear_residual.isnan().tolist() == [not asked] * 5


def test_error_estimate_is_nan_without_branch_steps(quadratic):
    out = mp.FOBMAML(mp.GradientDescent(0.5), steps=3, start="predictor", branch_steps=0)(*quadratic)
    assert out.info.linear_residual.isnan().all()


def test_steps_and_step_sizes_are_those_taken(quadratic):
    meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=3, branch_solver=mp.GradientDescent(0.25), branch_steps=4)
    info = meta(*quadratic).info
    assert info.base_steps.tolist() == [3] * 5
    assert info.branch_steps.tolist() == [4] * 5
    torch.testing.assert_close(info.base_step_sizes, torch.full((5, 3), 0.5, dtype=torch.float64))
    torch.testing.assert_close(info.branch_step_sizes, torch.full((5, 4), 0.25, dtype=torch.float64))


def test_nu_of_the_center_perturbation_moves_the_center_by_eps(quadratic):
    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.GradientDescent(0.5), steps=3, perturb="center", eps=0.02)(problem, params, tasks)
    _, v, _ = parts(params, tasks, out)
    torch.testing.assert_close(out.info.nu / LAM * v.norm(dim=1), torch.full((5,), 0.02, dtype=torch.float64))


def lengths(params, tasks, out):
    """||y_0 - x||, ||y_0||, ||r||, ||grad fhat(y_0)||, ||v|| of every task."""
    _, v, y0 = parts(params, tasks, out)
    slope = (tasks.support[0] @ (y0 - tasks.support[1])[..., None]).squeeze(-1)
    vectors = (y0 - params["y"], y0, slope + LAM * (y0 - params["y"]), slope, v)
    return [vector.norm(dim=1) for vector in vectors]


@pytest.mark.parametrize("steps", [1, 3, 40])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_step_is_its_formula(quadratic, scheme, steps):
    """eps = D min(2, (||r|| / (lam D))^(1/p)), no less than the balance with rounding; "loss" has a bound more."""
    problem, params, tasks = quadratic
    order, precision = STENCILS[scheme].order, torch.finfo(torch.float64).eps
    for perturb in ("center", "loss"):
        out = mp.FOBMAML(mp.GradientDescent(0.5), steps=steps, scheme=scheme, perturb=perturb)(problem, params, tasks)
        moved, size, left, slope, v = lengths(params, tasks, out)
        eps = moved * ((left / (LAM * moved)) ** (1 / order)).clamp(max=2)
        if perturb == "loss":
            eps = torch.minimum(eps, 0.175 * slope / LAM)
        least = (precision * torch.maximum(size, moved)) ** (1 / (order + 1)) * moved ** (order / (order + 1))
        torch.testing.assert_close(out.info.nu, LAM * torch.maximum(eps, least) / v)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_step_does_not_fall_below_the_one_that_balances_rounding(quadratic, scheme):
    problem, params, tasks = quadratic
    order = STENCILS[scheme].order
    out = mp.FOBMAML(mp.Anderson(0.7), tol=1e-14, max_steps=100, scheme=scheme, perturb="center")(
        problem, params, tasks
    )
    moved, size, _, _, v = lengths(params, tasks, out)
    least = (torch.finfo(torch.float64).eps * torch.maximum(size, moved)) ** (1 / (order + 1))
    torch.testing.assert_close(out.info.nu / LAM * v, least * moved ** (order / (order + 1)))


def test_summary_has_the_median_and_the_worst(quadratic):
    info = mp.FOBMAML(mp.GradientDescent(0.5), steps=3)(*quadratic).info
    summary = info.summary()
    for name in ("base_residual", "gradient_ratio", "linear_residual"):
        values = sorted(getattr(info, name).tolist())
        assert summary[f"{name}_median"] == values[2]
        assert summary[f"{name}_worst"] == values[4]


def test_summary_counts_tasks_that_did_not_converge_where_a_tolerance_was_asked_for(quadratic):
    reached = mp.FOBMAML(mp.Anderson(0.7), tol=1e-9, max_steps=100)(*quadratic).info
    assert reached.converged.all()
    assert "tasks_not_converged" not in reached.summary()
    needed = mp.FOMAML(mp.GradientDescent(0.6), tol=1e-6, max_steps=200)(*quadratic).info.base_steps
    enough = int(needed.max())  # the last look is one step before the end
    some = mp.FOMAML(mp.GradientDescent(0.6), tol=1e-6, max_steps=enough)(*quadratic).info
    assert some.converged.tolist() == (needed < enough).tolist()
    assert 0 < some.converged.sum() < 5
    assert some.summary()["tasks_not_converged"] == (~some.converged).sum()
    for meta in (mp.FOBMAML(mp.GradientDescent(0.5), 3), mp.MAML(mp.GradientDescent(0.5), 3)):
        info = meta(*quadratic).info
        assert info.converged.tolist() == [True] * 5  # nothing was asked for
        assert info.skipped.tolist() == [False] * 5


def test_branches_that_do_not_reach_their_tolerance_have_not_converged(quadratic):
    meta = mp.FOBMAML(mp.Anderson(0.7), tol=1e-9, max_steps=100, branch_steps=3)
    info = meta(*quadratic).info
    assert (info.base_steps < 100).all()
    assert info.converged.tolist() == [False] * 5
    whole = mp.FOBMAML(mp.Anderson(0.7), tol=1e-9, max_steps=100, start="predictor", branch_steps=0)(*quadratic).info
    assert whole.converged.all()  # there are no branches to converge


def test_what_first_order_methods_do_not_know_is_nan(quadratic):
    """The ratio of FO-MAML would be 1 by construction."""
    for meta in (mp.FOMAML(mp.GradientDescent(0.5), 3), mp.Reptile(mp.GradientDescent(0.5), 3)):
        info = meta(*quadratic).info
        assert info.gradient_ratio.isnan().all()
        assert "gradient_ratio_median" not in info.summary()


@pytest.mark.parametrize("rate", [0.4, 1.0])
@pytest.mark.parametrize("perturb", ["center", "loss"])
def test_the_estimate_bounds_each_task_where_it_falls_at_every_step(quadratic, perturb, rate):
    """Gradient descent at lr <= 2/L on a convex quadratic, relative to ||v||; and not the solvers without that."""
    problem, params, tasks = quadratic
    for task in range(5):
        one = mp.Task(*(tuple(leaf[task : task + 1] for leaf in part) for part in tasks))
        for steps in (2, 5, 9):
            branch = {"branch_solver": mp.GradientDescent(rate), "branch_steps": steps}
            out = mp.FOBMAML(mp.Anderson(0.7), tol=1e-12, max_steps=200, perturb=perturb, **branch)(
                problem, params, one
            )
            shifted, v, _ = parts(params, one, out)
            error = (out.grad["y"] - torch.linalg.solve(shifted[0], LAM * v[0])).norm() / v.norm()
            assert error <= out.info.linear_residual[0] * (1 + 1e-6)


@pytest.mark.parametrize("perturb", ["center", "loss"])
@pytest.mark.parametrize("correction", [False, True])
def test_what_tangent_says_of_its_solves(quadratic, perturb, correction):
    """nu is 0, its limit; what it found, and what was left of the base, by their formulas."""
    problem, params, tasks = quadratic
    meta = mp.Tangent(mp.GradientDescent(0.6), 4, perturb=perturb, residual_correction=correction, branch_steps=3)
    out = meta(problem, params, tasks)
    (a, s), (b, q) = tasks
    y = out.adapted["y"]
    times = lambda matrix, vector: (matrix @ vector[..., None]).squeeze(-1)  # noqa: E731
    residual, v = times(a, y - s) + problem.lam * (y - params["y"]), times(b, y - q)
    assert out.info.nu.tolist() == [0.0] * 5
    torch.testing.assert_close(out.info.base_residual, residual.norm(dim=1))
    apart = torch.stack(
        [
            meta(problem, params, mp.Task(*(tuple(x[i : i + 1] for x in part) for part in tasks))).grad["y"]
            for i in range(5)
        ]
    )
    torch.testing.assert_close(out.info.gradient_ratio, apart.norm(dim=1) / v.norm(dim=1))
    assert out.info.linear_residual.isnan().tolist() == [not correction] * 5  # of a differentiated solver, not known
    assert out.info.relative_error.isnan().tolist() == [not correction] * 5
    assert out.info.branch_steps.tolist() == [3] * 5
    torch.testing.assert_close(out.info.branch_step_sizes, torch.full((5, 3), 0.6, dtype=torch.float64))
