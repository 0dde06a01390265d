"""What a meta-gradient says of its own error: the formulas by hand, and what is seen of the solves."""

import math

import pytest
import torch

import metaprox as mp
from metaprox.estimators.error import COLUMNS, Seen, linear_residual, of_last_steps
from metaprox.inner.solve import solve, solve_parts
from metaprox.inner.trail import Trail
from metaprox.vectors.norms import BLOCK, inner

CURVATURE = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
LAM, LR = 0.5, 0.3


def gradient(y, step=0, branches=None):
    return CURVATURE * y


def test_an_inner_product_is_one_whatever_the_units_and_the_size():
    a, b = torch.randn(2, 3, 1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = b.norm(dim=-1).flatten()
    torch.testing.assert_close(inner(a, b, lengths), (a * b).sum(-1).flatten() / lengths)
    for scale in (1e-30, 1e30):
        small = (b * scale).float()
        lengths = torch.linalg.vector_norm(small.double(), dim=-1).float().flatten()
        torch.testing.assert_close(inner(small, small, lengths), lengths)
    wide = torch.ones(1, 1, 2 * BLOCK + 7)
    lengths = wide.norm(dim=-1).flatten()
    torch.testing.assert_close(inner(3 * wide, wide, lengths), 3 * lengths)
    assert inner(a, 0 * b, torch.zeros(3, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("solver", "relative"),
    [(mp.GradientDescent(LR), LR), (mp.GradientDescent(LR), None), (mp.Nesterov(LR), None), (mp.Anderson(LR), None)],
    ids=str,
)
def test_the_trail_has_the_curvature_along_the_last_step(solver, relative, steps, closed):
    """A quadratic's is <s, H s> / <s, s>; by the steps themselves, or by the gradients that they are a multiple of."""
    points, start = [], torch.ones(2, 1, 3, dtype=torch.float64)
    start[1, 0, 2] = -4.0

    def watched(y, step, branches):
        points.append(y)
        return gradient(y)

    trail = Trail((1.0,), relative, 1 if closed else 2, closed=closed)
    end = solve_parts(watched, [start], solver, steps, trail=trail).y
    if closed:
        trail.ended(gradient(end), gradient(end).norm(dim=-1).flatten())
        points.append(end)
    torch.testing.assert_close(trail.last, gradient(points[-1]).norm(dim=-1).flatten())
    if len(points) == 1:
        assert trail.before is trail.curvature is None
        return
    step = points[-1] - points[-2]
    expected = (CURVATURE * step * step).sum(-1) / (step * step).sum(-1)
    torch.testing.assert_close(trail.curvature, expected.flatten(), rtol=1e-9, atol=0)
    torch.testing.assert_close(trail.before, gradient(points[-2]).norm(dim=-1).flatten())
    assert trail._way is None  # no vector is kept
    assert not (trail._grads)
    assert not (trail._moves)


def test_tasks_that_stopped_keep_what_was_seen_of_their_last_step():
    start = torch.ones(2, 1, 3, dtype=torch.float64)
    start[1] *= 1e-3
    tol = torch.tensor([1e-6, 1e-4], dtype=torch.float64)
    trail = Trail((1.0,), LR, 2, closed=True)
    out = solve_parts(gradient, [start], mp.GradientDescent(LR), 400, tol=tol, trail=trail)
    assert out.converged.all()
    assert out.steps[1] < out.steps[0]
    for task in range(2):
        alone = Trail((1.0,), LR, 2, closed=True)
        solve_parts(gradient, [start[task : task + 1]], mp.GradientDescent(LR), int(out.steps[task]) + 1, trail=alone)
        torch.testing.assert_close(trail.last[task], alone.last[0])
        torch.testing.assert_close(trail.before[task], alone.before[0])
        torch.testing.assert_close(trail.curvature[task], alone.curvature[0])


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_of_several_steps_the_least_curvature_counts(tol):
    """Of the last five, of each task by itself where one stops before the other."""
    seen, start = [], torch.ones(2, 1, 3, dtype=torch.float64)
    start[1] *= 0.02

    def watched(y, step):
        seen.append((y, gradient(y)))
        return seen[-1][1]

    trail = of_last_steps((1.0,), mp.Nesterov(LR), 4)
    limit = None if tol is None else torch.full((2,), tol, dtype=torch.float64)
    out = solve(watched, start, mp.Nesterov(LR), 400 if tol else 12, tol=limit, trail=trail)
    assert not tol or 6 < out.steps[1] < out.steps[0] < 400
    for task in range(2):
        last = int(out.steps[task]) + (1 if tol else 0)
        pairs = [
            tuple(after[task] - before[task] for before, after in zip(*seen[k : k + 2], strict=True))
            for k in range(last - 6, last - 1)
        ]
        expected = torch.stack([(s * d).sum() / (s * s).sum() for s, d in pairs]).min()
        torch.testing.assert_close(trail.curvature[task], expected, rtol=1e-9, atol=0)


def test_where_steps_are_one_multiple_of_the_gradient_the_last_counts():
    assert of_last_steps((1.0,), mp.GradientDescent(LR), 4).evaluations == 2
    assert of_last_steps((1.0,), mp.GradientDescent(LR), 0) is None
    trail = of_last_steps((1.0,), mp.Nesterov(LR), 4)
    assert trail.curvature is None
    trail._curvatures = [torch.tensor([2.0, math.nan, math.nan]), torch.tensor([1.0, 3.0, math.nan])]
    assert trail.curvature.tolist() == [1.0, 3.0, math.inf]  # what is not known is no least


def quadratic(tasks=3):
    source = torch.Generator().manual_seed(1)
    a, b, support, query = torch.rand(4, tasks, 4, generator=source, dtype=torch.float64).add(0.1)
    inner = lambda p, data: 0.5 * (data[0] * (p["y"] - data[1]).square()).sum()  # noqa: E731
    batch = mp.Task((a, support), (b, query - 1))
    return mp.ProximalProblem(inner, inner, LAM), {"y": torch.zeros(4, dtype=torch.float64)}, batch


def by_hand(steps, branch_steps, nu, tasks):
    """Everything of symmetric "loss" with gradient descent on diagonal quadratics, from x = 0."""
    (a, s), (b, q) = tasks
    path = [torch.zeros_like(s)]
    for _ in range(steps):
        path.append(path[-1] - LR * (a * (path[-1] - s) + LAM * path[-1]))
    y0 = path[-1]
    norm = lambda x: x.norm(dim=-1)  # noqa: E731
    residual = norm(a * (y0 - s) + LAM * y0)
    moves = [after - before for before, after in zip(path[-2:-1], path[-1:], strict=True)]
    least = torch.stack([((a + LAM) * m * m).sum(-1) / (m * m).sum(-1) for m in moves]).amin(0).clamp(min=LAM)
    ends, differences, slopes = [y0, y0], [], []
    for _ in range(branch_steps):
        grads = [a * (y - s) + LAM * y + sign * nu * b * (y - q) for y, sign in zip(ends, (1, -1), strict=True)]
        slopes.append((grads[0] - grads[1]) / 2)
        differences.append((ends[0] - ends[1]) / 2)
        ends = [y - LR * slope for y, slope in zip(ends, grads, strict=True)]
    g = -(LAM / nu) * (ends[0] - ends[1]) / 2
    curvature, ratio = torch.full_like(norm(g), LAM), torch.ones_like(norm(g))
    if branch_steps > 1:
        moved = differences[-1] - differences[-2]
        curvature = ((slopes[-1] - slopes[-2]) * moved).sum(-1) / (moved * moved).sum(-1)
        ratio = (norm(slopes[-1]) / norm(slopes[-2])).clamp(0.03, 1.0)
    branch = ratio * norm(slopes[-1]) * LAM / nu / (LAM * curvature.clamp(min=LAM)).sqrt()
    base = 1 / 3 * norm(g) * residual / (LAM * least).sqrt() / norm(y0)
    rounding = torch.finfo(torch.float64).eps * norm(y0) * LAM / nu
    whole = norm(g) + branch + base + rounding
    return {"branch_error": branch / whole, "base_error": base / whole, "rounding_error": rounding / whole}


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize(("steps", "branch_steps"), [(8, 5), (12, 2), (6, 30), (5, 1)])
def test_the_error_by_its_parts_is_the_formulas(backend, steps, branch_steps):
    problem, params, tasks = quadratic()
    meta = mp.FOBMAML(mp.GradientDescent(LR), steps, branch_steps=branch_steps, nu=0.05, backend=backend)
    info = meta(problem, params, tasks).info
    expected = by_hand(steps, branch_steps, 0.05, tasks)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(info, name), value, rtol=1e-6, atol=1e-18)
    torch.testing.assert_close(info.relative_error, sum(expected.values()), rtol=1e-6, atol=0)
    assert info.truncation_error.isnan().all()
    assert "relative_error_median" in info.summary()
    silent = mp.FOBMAML(mp.GradientDescent(LR), steps, branch_steps=branch_steps, nu=0.05, estimate_error=False)
    quiet = silent(problem, params, tasks)
    assert quiet.info.relative_error.isnan().all()
    assert quiet.info.counts == info.counts  # no further gradient is taken
    assert "relative_error_median" not in quiet.info.summary()


@pytest.mark.parametrize("method", [mp.FOBMAML, mp.Tangent, mp.IMAML], ids=lambda m: m.__name__)
def test_the_estimate_falls_with_the_error_down_to_none(method):
    problem, params, tasks = quadratic()
    truth = mp.exact_meta_gradient(problem, params, tasks).per_task
    settings = {"residual_correction": True} if method is mp.Tangent else {}
    if method is mp.FOBMAML:
        settings["perturb"] = "center"
    for steps in (3, 10, 30, 100):
        if method is mp.IMAML:
            settings["cg_steps"] = min(steps, 4)
        for task in range(3):
            one = mp.Task(*(tuple(leaf[task : task + 1] for leaf in part) for part in tasks))
            out = method(mp.GradientDescent(LR), steps, **settings)(problem, params, one)
            error = float((out.grad["y"] - truth[task]).norm() / out.grad["y"].norm())
            estimate = float(out.info.relative_error)
            assert error / (1 + error) <= 3 * estimate + 1e-8
            assert estimate <= 10 * error + 1e-6


@pytest.mark.parametrize("method", [mp.MAML, mp.FOMAML, mp.Reptile], ids=lambda m: m.__name__)
def test_methods_that_know_nothing_of_their_error_say_nan(method):
    problem, params, tasks = quadratic()
    info = method(mp.GradientDescent(LR), 4)(problem, params, tasks).info
    for name in ("relative_error", "branch_error", "base_error", "truncation_error", "rounding_error"):
        assert getattr(info, name).isnan().all()
    assert info.sampling_error > 0


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("method", [mp.FOBMAML, mp.FOMAML, mp.MAML], ids=lambda m: m.__name__)
def test_the_sampling_error_is_the_standard_error_of_the_mean(method, backend):
    problem, params, tasks = quadratic(5)
    meta = method(mp.GradientDescent(LR), 4, backend=backend)
    alone = torch.stack(
        [
            meta(problem, params, mp.Task(*(tuple(x[i : i + 1] for x in part) for part in tasks))).grad["y"]
            for i in range(5)
        ]
    )
    expected = (alone.var(0).sum() / 5).sqrt() / alone.mean(0).norm()
    found = meta(problem, params, tasks).info.sampling_error
    assert found.shape == ()
    torch.testing.assert_close(found, expected)
    single = meta(problem, params, mp.Task(*(tuple(x[:1] for x in part) for part in tasks)))
    assert math.isnan(single.info.sampling_error)


def test_tasks_that_are_skipped_are_no_part_of_the_sampling_error():
    problem, params, tasks = quadratic(4)
    wild = mp.Task((tasks.support[0].clone(), tasks.support[1]), tasks.query)
    wild.support[0][2] = 1e4
    meta = mp.FOMAML(mp.GradientDescent(LR), 400, on_nonfinite="skip")
    out = meta(problem, params, wild)
    assert out.info.skipped.tolist() == [False, False, True, False]
    rest = mp.Task(*(tuple(x[[0, 1, 3]] for x in part) for part in tasks))
    torch.testing.assert_close(out.info.sampling_error, meta(problem, params, rest).info.sampling_error)


def test_where_nothing_is_left_to_do_the_error_is_rounding():
    """x solves the inner problem, and f does not depend on it: y_0 = x, r = 0, v = 0, g = 0."""
    inner = lambda p, target: 0.5 * (p["y"] - target).square().sum()  # noqa: E731
    flat = lambda p, target: 0.0 * p["y"].sum()  # noqa: E731
    tasks = mp.Task(torch.zeros(2, 3), torch.zeros(2, 3))
    info = mp.FOBMAML(mp.GradientDescent(0.1), 3)(
        mp.ProximalProblem(inner, flat, 1.0), {"y": torch.zeros(3)}, tasks
    ).info
    assert not info.relative_error.isnan().any()
    assert info.relative_error.max() == 0


def test_the_error_of_conjugate_gradients_is_the_formulas():
    """One step of them, along v: z = v |v|^2 / <v, A v>."""
    problem, params, tasks = quadratic()
    (a, s), (b, q) = tasks
    info = mp.IMAML(mp.GradientDescent(LR), 6, cg_steps=1)(problem, params, tasks).info
    path = [torch.zeros_like(s)]
    for _ in range(6):
        path.append(path[-1] - LR * (a * (path[-1] - s) + LAM * path[-1]))
    y0, move = path[-1], path[-1] - path[-2]
    dot = lambda one, other: (one * other).sum(-1)  # noqa: E731
    v = b * (y0 - q)
    z = v * (dot(v, v) / dot(v, (a + LAM) * v))[:, None]
    left, length = v - (a + LAM) * z, LAM * z.norm(dim=-1)
    curvature = (dot((a + LAM) * z, z) / dot(z, z)).clamp(min=LAM)
    branch = LAM * left.norm(dim=-1) / (LAM * curvature).sqrt()
    slope = (dot((a + LAM) * move, move) / dot(move, move)).clamp(min=LAM)
    base = length / 3 * (a * (y0 - s) + LAM * y0).norm(dim=-1) / (LAM * slope).sqrt() / y0.norm(dim=-1)
    whole = length + branch + base
    torch.testing.assert_close(info.branch_error, branch / whole)
    torch.testing.assert_close(info.base_error, base / whole)
    assert info.rounding_error.tolist() == [0.0] * 3


def numbers(**changes):
    one = torch.ones(1, dtype=torch.float64)
    known = dict.fromkeys(COLUMNS, one) | {"rho": 2 * one, "truncation": math.nan * one}
    errors = Seen(0.5, **known | {name: torch.full_like(one, value) for name, value in changes.items()}).errors()
    if errors["truncation"].isnan():
        del errors["truncation"]
    return {name: float(value) for name, value in errors.items()}


def test_what_is_seen_counts_within_its_limits():
    plain = numbers()
    assert plain["branch"] / plain["base"] == pytest.approx(3.0)  # of 1 / sqrt(lam), and a third of it
    for reduction in (7.0, math.nan, math.inf):  # what did not fall, or was not seen to, is taken as it is
        assert numbers(reduction=reduction) == plain
    assert numbers(reduction=1e-9)["branch"] / numbers(reduction=1e-9)["base"] == pytest.approx(0.09)
    for curvature in (0.1, -3.0, math.nan, math.inf):  # at least lam, which stands in for what is not known
        assert numbers(curvature=curvature) == numbers(curvature=0.5)
        assert numbers(base_curvature=curvature) == numbers(base_curvature=0.5)
    assert numbers(moved=0.0)["base"] == 1.0  # nothing has moved, and a residual is left: all is error
    assert numbers(moved=0.0, residual=0.0)["base"] == 0.0
    assert numbers(size=1e9)["rounding"] > 1e-8
    bent = numbers(truncation=0.25)
    assert bent["truncation"] / bent["base"] == pytest.approx(0.25 * 3 * 0.5**0.5)
    assert 0.999 < sum(numbers(rho=1e9).values()) <= 1.0


def test_the_linear_residual_is_none_where_v_is():
    trail = Trail((1.0,), LR, 2, closed=False)
    trail.last = torch.tensor([2.0, 0.0])
    found = linear_residual(trail, torch.tensor([4.0, 0.0]), torch.tensor([3.0, 0.0]))
    assert found.tolist() == [1.5, 0.0]
    assert linear_residual(None, torch.ones(2), torch.ones(2)).isnan().all()
