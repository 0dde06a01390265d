"""The loop: stopping by count or tolerance, finite checks that name the task and the step, records."""

import pytest
import torch

import metaprox as mp
from metaprox.inner.failures import Purpose
from metaprox.inner.progress import Solution
from metaprox.inner.solve import Stopping, solve, solve_parts
from metaprox.inner.trail import Trail
from metaprox.losses.backend import Step

CURVATURE = torch.tensor([0.2, 1.0, 1.9], dtype=torch.float64).view(3, 1, 1)


def gradient(y, step):
    return CURVATURE * y


def ones():
    return torch.ones(3, 1, 2, dtype=torch.float64)


def test_a_solve_ends_by_a_count_or_by_a_tolerance_with_a_limit():
    assert Stopping.of(5, None, None) == Stopping(5, None)
    assert Stopping.of(None, 1e-3, 9) == Stopping(9, 1e-3)
    for given in (Stopping.of(torch.tensor(5), None, None), Stopping.of(None, torch.tensor(0.5), torch.tensor(9))):
        assert type(given.max_steps) is int
        assert type(given.tol) in (float, type(None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((given, "say when the inner solve ends") for given in [(5, 0.1, None), (5, None, 9), (5, 0.1, 9)]),
        *((given, "say when the inner solve ends") for given in [(None, 0.1, None), (None, None, 9), (None,) * 3]),
        *(((steps, None, None), "steps must be") for steps in (0, -1, 2.5, "5")),
        *(((None, tol, 9), "tol must be") for tol in (0.0, -1e-3, float("nan"), "0.1")),
        *(((None, 0.1, most), "max_steps must be") for most in (0, -1, 2.5)),
    ],
)
def test_another_end_is_refused_by_name(given, message):
    with pytest.raises(mp.InputError, match=message):
        Stopping.of(*given)


def test_each_task_stops_at_its_own_tolerance():
    tol = torch.tensor([1e-3, 1e-8, 1e-8], dtype=torch.float64)
    out = solve(gradient, ones(), mp.GradientDescent(0.9), 1000, tol=tol)
    norms = (CURVATURE * out.y).norm(dim=-1).flatten()
    assert (norms <= tol).all()
    contraction = (1 - 0.9 * CURVATURE.flatten()).abs()
    start = CURVATURE.flatten() * 2**0.5
    expected = (torch.log(tol / start) / torch.log(contraction)).ceil().long()
    assert out.steps.tolist() == expected.tolist()


def test_step_count_ends_a_solve_that_does_not_reach_its_tolerance():
    out = solve(gradient, ones(), mp.GradientDescent(0.9), 5, tol=torch.full((3,), 1e-12, dtype=torch.float64))
    assert out.steps.tolist() == [5, 5, 5]


def test_a_task_goes_on_until_its_worst_branch_is_there():
    """One branch starts at the solution: the task has as many steps ahead of it as the other branch has."""
    start = torch.cat([0 * ones(), ones()], 1)
    tol = torch.full((3,), 1e-6, dtype=torch.float64)
    both, one = (solve(gradient, y, mp.GradientDescent(0.9), 1000, tol=tol) for y in (start, ones()))
    assert both.steps.tolist() == one.steps.tolist()
    assert both.converged.all()
    torch.testing.assert_close(both.y[:, 1:], one.y)


def test_nothing_is_evaluated_once_all_tasks_are_there():
    calls = []

    def counted(y, step):
        calls.append(step)
        return gradient(y, step)

    out = solve(counted, ones(), mp.GradientDescent(0.9), 1000, tol=torch.full((3,), 1e-3, dtype=torch.float64))
    assert calls == list(range(int(out.steps.max()) + 1))  # the last look takes no step


def test_a_gradient_of_just_the_tolerance_is_there():
    """Norms 1, 1/2, 1/4, all of them exact."""
    start = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    out = solve(lambda y, step: y, start, mp.GradientDescent(0.5), 9, tol=torch.tensor([0.25], dtype=torch.float64))
    assert out.steps.tolist() == [2]


def test_what_is_to_be_raised_is_raised_before_the_others_are_solved():
    calls = []

    def fails(y, step):
        calls.append(step)
        return torch.where(torch.tensor([0, 1, 0]).view(3, 1, 1) * step >= 3, torch.nan, gradient(y, step))

    with pytest.raises(mp.NonFiniteError, match=r"task 1: .* at step 3 of 1000"):
        solve(fails, ones(), mp.GradientDescent(0.9), 1000, tol=torch.full((3,), 1e-9, dtype=torch.float64))
    assert calls == [0, 1, 2, 3]


def test_points_in_parts_are_joined_branch_after_branch():
    parts = tuple(torch.full((3, b, 2), float(b)) for b in (1, 2, 3))
    for count in (1, 2, 3):
        solution = Solution(parts[:count], None, *(torch.empty(0) for _ in range(4)))
        assert torch.equal(solution.y, torch.cat(parts[:count], 1))


def test_what_a_count_ends_has_taken_all_its_steps_and_nothing_to_converge_to():
    for steps in (0, 1, 4):
        out = solve(gradient, ones(), mp.GradientDescent(0.25), steps)
        assert out.steps.dtype == torch.int64
        assert out.steps.tolist() == [steps] * 3
        assert out.step_sizes.shape == (3, steps)
        assert out.converged.tolist() == out.finite.tolist() == [True] * 3
        assert out.trail is out.failure is None


def test_converged_is_who_was_seen_at_the_tolerance():
    """The error is multiplied by 0.82, 0.1 and -0.71 a step: one of 4 steps, one of 16, and one of none by then."""
    tol = torch.tensor([1e-9, 1e-3, 1.0], dtype=torch.float64)
    out = solve(gradient, ones(), mp.GradientDescent(0.9), 6, tol=tol)
    assert out.converged.tolist() == [False, True, True]
    assert out.finite.tolist() == [True] * 3
    assert out.steps.tolist() == [6, 4, 3]
    assert out.step_sizes.isnan().sum(1).tolist() == [0, 2, 3]
    assert solve(gradient, ones(), mp.GradientDescent(0.9), 0, tol=tol).converged.tolist() == [True] * 3
    assert solve(gradient, ones(), mp.GradientDescent(0.9), 1, tol=tol).converged.tolist() == [False] * 3


@pytest.mark.parametrize("tol", [None, 1e-3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_task_that_is_skipped_stays_where_it_was_and_the_others_go_on(tol, bad):
    """One branch of task 1 fails at step 2 alone: the whole task stops there, for good."""
    start = torch.stack([ones()[:, 0], 2 * ones()[:, 0]], 1)

    def fails_once(y, step):
        slope = gradient(y, step)
        if step == 2:
            slope[1, 1, 0] = bad
        return slope

    limits = None if tol is None else torch.full((3,), tol, dtype=torch.float64)
    solver, skip = mp.GradientDescent(0.9), Purpose("a solve", first_task=10, on_nonfinite="skip")
    out = solve(fails_once, start, solver, 60, tol=limits, purpose=skip)
    plain = solve(gradient, start, solver, 60, tol=limits)
    assert out.finite.tolist() == [True, False, True]
    assert (out.failure.task, out.failure.step) == (11, 2)
    torch.testing.assert_close(out.y[[0, 2]], plain.y[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(out.y[1], solve(gradient, start, solver, 2).y[1], rtol=0, atol=0)
    assert (~out.step_sizes.isnan()).sum(1).tolist() == [int(plain.steps[0]), 2, int(plain.steps[2])]
    assert out.converged.tolist() == ([True] * 3 if tol is None else [True, False, True])
    assert out.steps.tolist() == ([60] * 3 if tol is None else [int(plain.steps[0]), 2, int(plain.steps[2])])


def test_a_caller_that_asks_to_be_told_gets_what_came_out():
    """Nothing is raised, and nothing held back: steps go on along what is no number."""
    tell = Purpose("a solve", on_nonfinite="tell")
    out = solve(lambda y, step: y / (3.0 - 3.0 * (step == 1)), ones(), mp.GradientDescent(0.5), 3, purpose=tell)
    assert out.finite.tolist() == [False] * 3
    assert out.failure.step == 1
    assert not out.y.isfinite().any()


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_a_step_that_comes_with_its_gradient_is_taken_as_it_is(tol):
    """Where there is none the gradient is asked for, and then the solver for the step; nowhere else."""
    limits, asked, stepped = None if tol is None else torch.full((3,), tol, dtype=torch.float64), [], []

    def fused(y, step, branches):
        slope = gradient(y, step)
        return Step(y - 0.9 * slope, slope, slope.norm(dim=-1)) if step % 2 else None

    def alone(y, step, branches):
        asked.append(step)
        return gradient(y, step)

    class Watched(mp.GradientDescent):
        def step(self, grad, y, state):
            stepped.append(asked[-1])
            return super().step(grad, y, state)

    solver = mp.GradientDescent(0.9)
    seen = [Trail((2.0,), None, 3, closed=True) for _ in range(2)]
    out = solve_parts(alone, [ones()], Watched(0.9), 60, tol=limits, trail=seen[0], fused=fused)
    assert stepped in (asked, asked[:-1])  # the last look takes no step
    plain = solve_parts(lambda y, step, _: gradient(y, step), [ones()], solver, 60, tol=limits, trail=seen[1])
    assert asked == [step for step in range(max(asked) + 1) if step % 2 == 0]
    torch.testing.assert_close(out.y, plain.y)
    torch.testing.assert_close(seen[0].last, seen[1].last)
    torch.testing.assert_close(seen[0].curvature, seen[1].curvature, equal_nan=True)
    torch.testing.assert_close(out.step_sizes, plain.step_sizes, equal_nan=True)
    assert out.steps.tolist() == plain.steps.tolist()


def test_a_gradient_that_is_known_is_not_asked_for_alone_or_with_its_step():
    asked = []

    def fused(y, step, branches):
        asked.append(step)
        slope = gradient(y, step)
        return Step(y - 0.9 * slope, slope, slope.norm(dim=-1))

    first, solver = [gradient(ones(), 0)], mp.GradientDescent(0.9)
    out = solve_parts(lambda *_: pytest.fail("asked"), [ones()], solver, 5, first=first, fused=fused)
    assert asked == [1, 2, 3, 4]
    assert first == []  # taken over
    torch.testing.assert_close(out.y, solve(gradient, ones(), solver, 5).y)


def test_a_solve_that_starts_at_its_solution_takes_no_step():
    out = solve(gradient, 0 * ones(), mp.GradientDescent(0.9), 50, tol=torch.full((3,), 1e-12, dtype=torch.float64))
    assert out.steps.tolist() == [0, 0, 0]
    assert out.step_sizes.shape == (3, 0)


def test_step_sizes_are_those_taken():
    out = solve(gradient, ones(), mp.GradientDescent(0.25), 4)
    torch.testing.assert_close(out.step_sizes, torch.full((3, 4), 0.25, dtype=torch.float64))


def test_step_sizes_are_measured_where_the_solver_does_not_declare_them():
    class Halving(mp.GradientDescent):
        relative_step = None

    declared, measured = (solve(gradient, ones(), kind(0.5), 4).step_sizes for kind in (mp.GradientDescent, Halving))
    torch.testing.assert_close(measured, declared)
    still = solve(gradient, 0 * ones(), mp.GradientDescent(0.5), 4)
    assert still.step_sizes.eq(0.5).all()  # known where there is nothing to measure


def test_autocast_does_not_reach_the_solver():
    """Anderson's products in bfloat16 would be 1 % off."""
    y = torch.linspace(-1, 2, 24).view(3, 2, 4)
    curvature = torch.linspace(0.1, 1, 4)
    plain = solve(lambda y, step: curvature * y, y, mp.Anderson(0.5), 4).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = solve(lambda y, step: curvature * y, y, mp.Anderson(0.5), 4).y
    assert torch.equal(around, plain)


def test_start_is_not_written_on():
    y = ones()
    solve(gradient, y, mp.GradientDescent(0.5), 4)
    assert torch.equal(y, ones())


@pytest.mark.parametrize("tol", [None, torch.full((3,), 1e-3, dtype=torch.float64)])
def test_the_trail_sees_the_weighted_sum_of_the_last_gradients(tol):
    start = torch.arange(18.0, dtype=torch.float64).view(3, 3, 2)
    weights = (-0.5, 2.0, 0.25)
    seen = Trail(weights, 0.9, 2, closed=False)
    out = solve_parts(
        lambda y, step, branches: gradient(y, step), [start], mp.GradientDescent(0.9), 400, tol=tol, trail=seen
    )
    before = out.y if tol is not None else out.y / (1 - 0.9 * CURVATURE)
    expected = sum(w * gradient(before, 0)[:, j : j + 1] for j, w in enumerate(weights))
    torch.testing.assert_close(seen.last, expected.norm(dim=-1).flatten(), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("solver", [mp.GradientDescent(0.3), mp.Nesterov(0.3), mp.Adam(0.3), mp.Anderson(0.3)], ids=str)
def test_branches_one_by_one_are_the_branches_at_once(solver):
    start = torch.arange(18.0, dtype=torch.float64).view(3, 3, 2)
    shift = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)[:, None]
    asked = []

    def pulled(y, step, branches):
        asked.append((step, branches.start, branches.stop))
        return CURVATURE * (y - shift[branches])

    seen = [Trail((1.0, -3.0, 2.0), None, 3, closed=False) for _ in range(2)]
    together = solve_parts(pulled, [start], solver, 7, trail=seen[0])
    parts = [start[:, j : j + 1] for j in range(3)]
    apart = solve_parts(pulled, parts, solver, 7, trail=seen[1])
    assert asked == [(k, 0, 3) for k in range(7)] + [(k, j, j + 1) for k in range(7) for j in range(3)]
    assert parts == []  # taken over, so that no start outlives its first step
    torch.testing.assert_close(apart.y, together.y, rtol=1e-12, atol=1e-12)
    for name in ("last", "before"):
        torch.testing.assert_close(getattr(seen[1], name), getattr(seen[0], name), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(seen[1].curvature, seen[0].curvature, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(apart.step_sizes, together.step_sizes)


def test_divergence_of_a_later_branch_is_seen_too():
    def explodes(y, step, branches):
        return y * (torch.nan if branches.start == 1 and step == 2 else 1.0)

    with pytest.raises(mp.NonFiniteError, match="step 2 of 5"):
        solve_parts(explodes, [ones(), ones()], mp.GradientDescent(0.5), 5)


@pytest.mark.parametrize("tol", [None, torch.full((3,), 1e-9, dtype=torch.float64)])
def test_divergence_names_the_first_bad_task_the_step_and_the_remedy(tol):
    def explodes(y, step):
        return torch.where(torch.tensor([[[0.0]], [[1.0]], [[1.0]]]) * step >= 3, torch.nan, gradient(y, step))

    with pytest.raises(mp.NonFiniteError) as caught:
        solve(explodes, ones(), mp.GradientDescent(0.05), 16, tol=tol, purpose=Purpose("base solve", first_task=10))
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
    """Task 3 grows by |1 - 0.5 (1e3 + 1)| = 499.5 a step: 1001 * 499.5^14 is too large for float32."""
    loss = lambda params, curvature: 0.5 * curvature * (params["w"] ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = mp.Task(torch.tensor([1.0, 1.0, 1.0, 1e3, 1.0]), torch.ones(5))
    for settings in ({"backend": "loop"}, {"chunk_size": 2}, {}):
        with pytest.raises(
            mp.NonFiniteError, match=r"task 3: the gradient of the base solve became non-finite at step \d+ of 40"
        ) as caught:
            mp.FOBMAML(mp.GradientDescent(0.5), steps=40, **settings)(problem, {"w": torch.ones(2)}, tasks)
        assert caught.value.task == 3
        assert caught.value.step == 14


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
