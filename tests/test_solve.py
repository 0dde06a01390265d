"""The loop: stopping by count or tolerance, finite checks that name the task and the step, records."""

import pytest
import torch

import metaprox as mp
from metaprox.solve import solve

CURVATURE = torch.tensor([0.2, 1.0, 1.9], dtype=torch.float64).view(3, 1, 1)


def gradient(y, step):
    return CURVATURE * y


def ones():
    return torch.ones(3, 1, 2, dtype=torch.float64)


def test_each_task_stops_at_its_own_tolerance():
    tol = torch.tensor([1e-3, 1e-8, 1e-8], dtype=torch.float64)
    out = solve(gradient, ones(), mp.GradientDescent(0.9), 1000, tol=tol)
    norms = (CURVATURE * out.y).norm(dim=-1).flatten()
    assert (norms <= tol).all()
    contraction = (1 - 0.9 * CURVATURE.flatten()).abs()
    start = CURVATURE.flatten() * 2**0.5
    expected = (torch.log(tol / start) / torch.log(contraction)).ceil().long()
    assert out.steps.tolist() == expected.tolist()
    assert torch.equal(out.grad, gradient(out.y, 0))  # at y: the tolerance ended the solve


def test_step_count_ends_a_solve_that_does_not_reach_its_tolerance():
    out = solve(gradient, ones(), mp.GradientDescent(0.9), 5, tol=torch.full((3,), 1e-12, dtype=torch.float64))
    assert out.steps.tolist() == [5, 5, 5]


def test_a_solve_that_starts_at_its_solution_takes_no_step():
    out = solve(gradient, 0 * ones(), mp.GradientDescent(0.9), 50, tol=torch.full((3,), 1e-12, dtype=torch.float64))
    assert out.steps.tolist() == [0, 0, 0]
    assert out.step_sizes.shape == (3, 0)


def test_step_sizes_are_those_taken():
    out = solve(gradient, ones(), mp.GradientDescent(0.25), 4)
    torch.testing.assert_close(out.step_sizes, torch.full((3, 4), 0.25, dtype=torch.float64))


def test_start_is_not_written_on():
    y = ones()
    solve(gradient, y, mp.GradientDescent(0.5), 4)
    assert torch.equal(y, ones())


@pytest.mark.parametrize("tol", [None, torch.full((3,), 1e-9, dtype=torch.float64)])
def test_divergence_names_the_first_bad_task_the_step_and_the_remedy(tol):
    def explodes(y, step):
        return torch.where(torch.tensor([[[0.0]], [[1.0]], [[1.0]]]) * step >= 3, torch.nan, gradient(y, step))

    with pytest.raises(mp.NonFiniteError) as caught:
        solve(explodes, ones(), mp.GradientDescent(0.05), 16, tol=tol, first_task=10, describe="base solve")
    assert (caught.value.task, caught.value.step) == (11, 3)
    message = str(caught.value)
    for part in (
        "task 11 (and 1 more)",
        "base solve",
        "step 3 of 16",
        "lr=0.05",
        "Lower lr",
        "raise lam",
        "AdaptiveGradientDescent",
    ):
        assert part in message


def test_estimator_names_the_task_of_the_whole_batch_and_the_step():
    """Task 3 grows by |1 - 0.5 (1e3 + 1)| = 499.5 a step: the square of 1001 * 499.5^6 is too large for float32."""
    loss = lambda params, curvature: 0.5 * curvature * (params["w"] ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = mp.Task(torch.tensor([1.0, 1.0, 1.0, 1e3, 1.0]), torch.ones(5))
    for settings in ({"backend": "loop"}, {"chunk_size": 2}, {}):
        with pytest.raises(
            mp.NonFiniteError, match=r"task 3: the gradient of the base solve became non-finite at step \d+ of 40"
        ) as caught:
            mp.FOBMAML(mp.GradientDescent(0.5), steps=40, **settings)(problem, {"w": torch.ones(2)}, tasks)
        assert caught.value.task == 3
        assert caught.value.step == 6


def test_non_finite_query_loss_is_named():
    inner = lambda params, data: ((params["w"] - data) ** 2).sum()  # noqa: E731
    outer = lambda params, data: (params["w"] * data).log().sum()  # noqa: E731
    tasks = mp.Task(torch.ones(3, 1), torch.tensor([[1.0], [0.0], [1.0]]))
    with pytest.raises(mp.NonFiniteError, match="task 1: the loss or its gradient is not finite"):
        mp.FOBMAML(mp.GradientDescent(0.1), steps=3)(mp.ProximalProblem(inner, outer, 1.0), {"w": torch.ones(1)}, tasks)


def test_tolerance_of_an_estimator_reaches_the_closed_form(quadratic):
    from metaprox.tasks import quadratic as closed_form

    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.GradientDescent(1.0), tol=1e-9, max_steps=500)(problem, params, tasks)
    assert (out.info.base_residual <= 1e-9).all()
    assert (out.info.base_steps < 500).all()
    truth = closed_form.meta_gradient(params["y"], tasks, problem.lam).mean(0)
    torch.testing.assert_close(out.grad["y"], truth, rtol=1e-7, atol=1e-8)
