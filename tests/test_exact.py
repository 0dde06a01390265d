"""The reference itself: damped steps, where it stops, and what it refuses."""

import pytest
import torch

import metaprox as mp


def problem_of(inner, lam):
    return mp.ProximalProblem(inner, lambda params, data: (params["w"] ** 2).sum(), lam=lam)


def at(x):
    return {"w": torch.tensor([x], dtype=torch.float64)}


TASK = [mp.Task(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))]


def test_newton_is_damped_where_its_steps_lead_away():
    """sqrt(1 + y^2), whose Newton steps from beyond 1 go -y^3: the solution solves y / sqrt(1 + y^2) = lam (x - y)."""
    problem = problem_of(lambda params, data: (1 + params["w"] ** 2).sqrt().sum(), lam=0.01)
    y = float(mp.exact_meta_gradient(problem, at(3.0), TASK).solutions)
    assert y / (1 + y**2) ** 0.5 == pytest.approx(0.01 * (3.0 - y), rel=1e-9)


def test_newton_stops_once_the_gradient_is_small_enough():
    """(y + 2)^4 / 4 from x = 0: one step, by 8 / 13, makes the gradient a quarter of what it was."""
    problem = problem_of(lambda params, data: ((params["w"] + 2) ** 4).sum() / 4, lam=1.0)
    once = mp.exact_meta_gradient(problem, at(0.0), TASK, tol=0.3).solutions
    torch.testing.assert_close(once, torch.tensor([[-8 / 13]], dtype=torch.float64))
    solved = float(mp.exact_meta_gradient(problem, at(0.0), TASK).solutions)
    assert (solved + 2) ** 3 + solved == pytest.approx(0.0, abs=1e-10)


def test_steps_are_counted():
    problem = problem_of(lambda params, data: ((params["w"] + 2) ** 4).sum() / 4, lam=1.0)
    with pytest.raises(mp.MetaproxError, match="after 2 steps"):
        mp.exact_meta_gradient(problem, at(0.0), TASK, max_steps=2)


def test_a_problem_without_a_proximal_term_is_refused():
    problem = problem_of(lambda params, data: (params["w"] ** 2).sum(), lam=0.0)
    with pytest.raises(mp.InputError, match="lam"):
        mp.exact_meta_gradient(problem, at(1.0), TASK)
