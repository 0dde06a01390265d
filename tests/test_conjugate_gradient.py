"""Conjugate gradients on differences of gradients, against the method on matrices and closed forms."""

import pytest
import torch

import metaprox as mp
from conftest import relative_error
from metaprox.inner.solve import solve
from metaprox.tasks import Quadratic
from metaprox.tasks import quadratic as closed_form

EIGENVALUES = [1.0, 0.5, 0.2, 0.08]  # each three times, so that four steps on four curvatures solve


def problem(dtype=torch.float64, eigenvalues=EIGENVALUES, tasks=3, branches=2):
    """Returns the gradient, curvatures [T, P, P], solutions and starts [T, B, P] of quadratics, each task its own."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(eigenvalues, dtype=torch.float64).repeat_interleave(3)
    size = len(values)
    turn, _ = torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64, generator=generator))
    curvature = ((turn * values) @ turn.mT).to(dtype)
    center, start = torch.randn(2, tasks, branches, size, dtype=torch.float64, generator=generator).to(dtype)
    return lambda y, step: (y - center) @ curvature, curvature, center, start


def on_matrices(curvature, center, y, steps, lr):
    """The textbook's method on a task's branches [B, P] as one vector: its iterates, a trial further each."""
    r = (y - center) @ curvature
    p, size, ends = -r, lr, []
    for _ in range(steps):
        ends.append(y + size * p)
        size = float((r * r).sum() / (p * (p @ curvature)).sum())
        y, after = y + size * p, r + size * (p @ curvature)
        p, r = -after + float((after * after).sum() / (r * r).sum()) * p, after
    return ends


@pytest.mark.parametrize("lr", [0.5, 1.0, 3.0])
def test_the_steps_are_those_of_the_method_on_matrices(lr):
    gradient, curvature, center, start = problem()
    expected = [on_matrices(curvature[t], center[t], start[t], 4, lr) for t in range(3)]
    for steps in range(1, 5):
        found = solve(gradient, start, mp.ConjugateGradient(lr), steps).y
        torch.testing.assert_close(found, torch.stack([ends[steps - 1] for ends in expected]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lr", [0.5, 1.0, 10.0])
def test_as_many_curvatures_take_as_many_steps_and_one_by_which_the_last_is_measured(lr):
    """Before the last is measured the error is far from rounding."""
    gradient, _, center, start = problem()
    errors = [relative_error(solve(gradient, start, mp.ConjugateGradient(lr), k).y, center) for k in (4, 5)]
    assert errors[0] > 1e-4
    assert errors[1] < 1e-9


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_it_stays_where_it_has_arrived(dtype, limit):
    """Differences are then of rounding, and no curvature."""
    gradient, _, center, start = problem(dtype, [1.0, 0.5, 0.2])
    for steps in range(20, 120, 7):
        assert relative_error(solve(gradient, start, mp.ConjugateGradient(1.0), steps).y, center) < limit


def test_at_a_solution_it_stands_still_and_it_goes_on_where_the_gradient_comes_late():
    gradient, _, center, _ = problem()
    assert torch.equal(solve(gradient, center.clone(), mp.ConjugateGradient(1.0), 6).y, center)
    late = lambda y, step: gradient(y, step) * (step > 2)  # noqa: E731
    assert relative_error(solve(late, center + 1, mp.ConjugateGradient(1.0), 9).y, center) < 1e-11


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_where_nothing_curves_up_each_step_is_one_of_gradient_descent(curvature):
    slope = lambda y, step: curvature * y + 1  # noqa: E731
    start = torch.linspace(0, 0.5, 24, dtype=torch.float64).view(3, 2, 4)
    found = solve(slope, start, mp.ConjugateGradient(0.1), 7)
    torch.testing.assert_close(found.y, solve(slope, start, mp.GradientDescent(0.1), 7).y, rtol=1e-12, atol=1e-14)


def test_from_a_concave_place_it_finds_the_minimum_beyond():
    """cos curves down at 0.2, and has its next minimum at pi."""
    start = torch.full((2, 1, 3), 0.2, dtype=torch.float64)
    found = solve(lambda y, step: -y.sin(), start, mp.ConjugateGradient(0.5), 40).y
    torch.testing.assert_close(found, torch.full_like(found, torch.pi), rtol=1e-9, atol=0)


def test_no_step_is_five_times_as_long_as_what_it_was_measured_by():
    """Of curvature 1e-6 a trial of 1 sees that the minimum is a million away."""
    found = solve(
        lambda y, step: 1e-6 * (y - 1), torch.zeros(1, 1, 3, dtype=torch.float64), mp.ConjugateGradient(1.0), 2
    )
    expected = torch.full((1, 1, 3), 5e-6 + 5e-6 * (1 - 5e-6), dtype=torch.float64)
    torch.testing.assert_close(found.y, expected, rtol=1e-9, atol=0)


def test_branches_share_coefficients_so_that_a_difference_is_solved_as_one():
    """All branches take one polynomial of the curvature: where they start alike, they stay alike; scaled, scaled."""
    gradient, curvature, _, start = problem()
    first = start[:, :1]
    pair = torch.cat([first, -2 * first], 1)  # around 0, the solution of both
    found = solve(lambda y, step: y @ curvature, pair, mp.ConjugateGradient(0.7), 3).y
    torch.testing.assert_close(found[:, 1], -2 * found[:, 0])
    alone = solve(lambda y, step: y @ curvature, first, mp.ConjugateGradient(0.7), 3).y
    torch.testing.assert_close(found[:, :1], alone)
    unlike = solve(gradient, start, mp.ConjugateGradient(0.7), 3).y[:, :1]
    own = solve(lambda y, step: gradient(y.expand(-1, 2, -1), step)[:, :1], first, mp.ConjugateGradient(0.7), 3).y
    assert relative_error(unlike, own) > 1e-3


def test_a_task_takes_no_notice_of_the_others():
    gradient, _, _, start = problem()
    wild = lambda y, step: torch.cat([gradient(y, step)[:2], -1e3 * y[2:]])  # noqa: E731
    usual, beside = (solve(one, start, mp.ConjugateGradient(1.0), 4).y for one in (gradient, wild))
    assert torch.equal(usual[:2], beside[:2])


@pytest.mark.parametrize("condition", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("settings", [{}, {"scheme": "forward", "residual_correction": True, "perturb": "center"}])
def test_as_branch_solver_it_is_closer_than_anderson_at_equal_cost(condition, settings):
    family, lam = Quadratic(dim=30, condition=10 * condition), 1 / condition
    inner, tasks = family.problem(lam), family.batch(range(4))
    x = {"y": torch.linspace(-1, 1, 30, dtype=torch.float64)}
    truth = closed_form.meta_gradient(x["y"], tasks, lam).mean(0)
    base = mp.ConjugateGradient(1.0)
    for steps in (2, 4, 9):
        found = [
            mp.FOBMAML(base, 200, branch_solver=solver, branch_steps=steps, **settings)(inner, x, tasks).grad["y"]
            for solver in (mp.ConjugateGradient(1.0), mp.Anderson(1.0))
        ]
        ours, theirs = (relative_error(one, truth) for one in found)
        assert ours < (0.95 if condition < 1000 else 1.0) * theirs
