"""Each inner solver against what is known of it."""

import functools
from dataclasses import dataclass
from statistics import fmean

import pytest
import torch

import metaprox as mp
from conftest import LAM, SOLVERS, relative_error
from metaprox.inner.solve import solve
from metaprox.solvers.protocol import relative_step, resumed, separates_branches
from metaprox.tasks import quadratic as closed_form


def batch_of_quadratics(tasks=3, branches=2, size=6, condition=100.0, seed=0):
    """Gradient of sum of quadratics with their own curvatures, their solutions and a start [T, B, P], float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(tasks, size, size, dtype=torch.float64, generator=generator))
    eigenvalues = torch.logspace(0, -torch.tensor(condition).log10().item(), size, dtype=torch.float64)
    curvature = (q * eigenvalues) @ q.mT
    center = torch.randn(tasks, branches, size, dtype=torch.float64, generator=generator)
    start = torch.randn(tasks, branches, size, dtype=torch.float64, generator=generator)
    return lambda y, step: (y - center) @ curvature, center, start


def reference(optimizer, gradient, y, steps):
    """The same steps by an optimizer of torch."""
    leaf = torch.nn.Parameter(y.clone())
    torch_optimizer = optimizer([leaf])
    for step in range(steps):
        leaf.grad = gradient(leaf.detach(), step)
        torch_optimizer.step()
    return leaf.detach()


def test_gradient_descent_is_sgd_of_torch():
    gradient, _, y = batch_of_quadratics()
    ours = solve(gradient, y, mp.GradientDescent(0.3), 7).y
    torch.testing.assert_close(ours, reference(lambda p: torch.optim.SGD(p, 0.3), gradient, y, 7))


def test_adam_is_adam_of_torch():
    gradient, _, y = batch_of_quadratics()
    ours = solve(gradient, y, mp.Adam(0.05, betas=(0.8, 0.99), eps=1e-6), 9).y
    theirs = reference(lambda p: torch.optim.Adam(p, 0.05, betas=(0.8, 0.99), eps=1e-6), gradient, y, 9)
    torch.testing.assert_close(ours, theirs)


def test_nesterov_with_constant_momentum_is_that_of_torch():
    """In torch's form the stored point is z; it extrapolates inside the step, one gradient later."""
    gradient, _, y = batch_of_quadratics()
    beta, lr, steps = 0.7, 0.2, 8
    ours = solve(gradient, y, mp.Nesterov(lr, beta), steps).y
    z_old = z = y
    for step in range(steps):
        look_ahead = z + beta * (z - z_old) if step else y
        z_old, z = z, look_ahead - lr * gradient(look_ahead, step)
    torch.testing.assert_close(ours, z + beta * (z - z_old))


def test_what_each_solver_promises():
    """Adaptive steps and conjugate gradients look at all branches of a task; those of a fixed size are known before."""
    apart = {name for name, solver in SOLVERS.items() if separates_branches(solver)}
    assert apart == SOLVERS.keys() - {"adaptive", "conjugate"}
    assert separates_branches(mp.TorchOptimizer(torch.optim.SGD))
    assert {name: relative_step(solver) for name, solver in SOLVERS.items()} == dict.fromkeys(SOLVERS) | {"gd": 0.6}
    assert not mp.TorchOptimizer(torch.optim.SGD).differentiable


def test_the_defaults_of_adam_are_those_of_torch():
    gradient, _, y = batch_of_quadratics()
    ours = solve(gradient, y, mp.Adam(0.05), 30).y
    torch.testing.assert_close(
        ours, reference(lambda p: torch.optim.Adam(p, 0.05), gradient, y, 30), rtol=1e-10, atol=0
    )
    tiny = lambda y, step: 1e-8 * gradient(y, step)  # noqa: E731  # of the order of eps
    theirs = reference(lambda p: torch.optim.Adam(p, 0.05), tiny, y, 30)
    torch.testing.assert_close(solve(tiny, y, mp.Adam(0.05), 30).y, theirs, rtol=1e-10, atol=0)


def test_nesterov_without_momentum_takes_that_of_convex_problems():
    """beta_k = k / (k + 3) at the k-th gradient, from k = 0."""
    gradient, _, y = batch_of_quadratics()
    ours = solve(gradient, y, mp.Nesterov(0.4), 9).y
    z_old, point = y, y
    for k in range(9):
        z = point - 0.4 * gradient(point, k)
        z_old, point = z, z + k / (k + 3) * (z - z_old)
    torch.testing.assert_close(ours, point)


def test_nesterov_beats_gradient_descent_on_an_ill_conditioned_problem():
    gradient, center, y = batch_of_quadratics(condition=1000.0)
    errors = [
        relative_error(solve(gradient, y, solver, 100).y, center)
        for solver in (mp.Nesterov(1.0), mp.GradientDescent(1.0))
    ]
    assert errors[0] < errors[1] / 3


def test_anderson_ends_on_a_quadratic_after_as_many_steps_as_dimensions():
    gradient, center, y = batch_of_quadratics(size=5)
    assert relative_error(solve(gradient, y, mp.Anderson(1.0, memory=5), 7).y, center) < 1e-8
    assert relative_error(solve(gradient, y, mp.GradientDescent(1.0), 7).y, center) > 0.1


@pytest.mark.parametrize("memory", [1, 3])
def test_anderson_is_its_formula(memory):
    """gamma by a dense least-squares solve, over the last differences; one task and branch at a time."""
    gradient, _, start = batch_of_quadratics(condition=20.0)
    ours = solve(gradient, start, mp.Anderson(0.6, memory=memory), 7).y
    tasks, branches, size = start.shape
    for t in range(tasks):
        for b in range(branches):
            slope = lambda point: gradient(point.expand(tasks, branches, size), 0)[t, b]  # noqa: E731, B023
            points, slopes = [start[t, b]], []
            for _ in range(7):
                y, g = points[-1], slope(points[-1])
                slopes.append(g)
                kept = range(max(0, len(slopes) - 1 - memory), len(slopes) - 1)
                move, remaining = torch.zeros_like(y), g
                if kept:
                    d_y = torch.stack([points[i + 1] - points[i] for i in kept], 1)
                    d_g = torch.stack([slopes[i + 1] - slopes[i] for i in kept], 1)
                    gamma = torch.linalg.lstsq(d_g, g[:, None]).solution
                    move, remaining = (d_y @ gamma)[:, 0], g - (d_g @ gamma)[:, 0]
                points.append(y - move - 0.6 * remaining)
            torch.testing.assert_close(ours[t, b], points[-1], rtol=1e-8, atol=1e-10)


def test_anderson_keeps_five_differences_unless_told():
    assert mp.Anderson(0.6) == mp.Anderson(0.6, memory=5)


def test_anderson_of_one_branch_is_not_touched_by_the_others():
    gradient, center, y = batch_of_quadratics()
    both = solve(gradient, y, mp.Anderson(0.7), 5).y
    curvature_only = lambda y, step: gradient(torch.stack([y[:, 0], center[:, 1]], 1), step)[:, :1]  # noqa: E731
    alone = solve(curvature_only, y[:, :1], mp.Anderson(0.7), 5).y
    torch.testing.assert_close(both[:, :1], alone)


def test_anderson_stands_still_at_a_solution():
    gradient, center, _ = batch_of_quadratics()
    assert torch.equal(solve(gradient, center.clone(), mp.Anderson(1.0), 6).y, center)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_anderson_survives_dependent_differences(dtype):
    """One-dimensional problem, memory 5: the differences are multiples of each other."""
    gradient = lambda y, step: 3 * (y - 1)  # noqa: E731
    out = solve(gradient, torch.zeros(1, 1, 1, dtype=dtype), mp.Anderson(0.1), 20).y
    assert out.item() == pytest.approx(1.0, abs=1e-5)


def test_adaptive_takes_steps_of_its_own_for_each_task():
    """Curvatures 1, 10 and 100: where a fixed lr of 0.5 diverges in two of the three tasks, each gets its own."""
    curvature = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).view(3, 1, 1)
    gradient = lambda y, step: curvature * y  # noqa: E731
    solution = solve(gradient, torch.ones(3, 2, 4, dtype=torch.float64), mp.AdaptiveGradientDescent(), 3)
    assert solution.y.abs().max() < 1e-12  # the second step is 1 / curvature
    assert torch.allclose(solution.step_sizes[:, 1], 1 / curvature.flatten(), rtol=1e-6)
    fixed = solve(gradient, torch.ones(3, 2, 4, dtype=torch.float64), mp.GradientDescent(0.5), 60).y
    assert fixed[1:].abs().min() > 1e20


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_adaptive_without_lr_is_faster_than_the_best_fixed_step(condition):
    gradient, center, y = batch_of_quadratics(condition=condition, size=20)  # curvatures up to 1
    errors = [
        relative_error(solve(gradient, y, solver, 60).y, center)
        for solver in (mp.AdaptiveGradientDescent(), mp.GradientDescent(2 / (1 + 1 / condition)))
    ]
    assert errors[0] < errors[1] / 2


def by_hand(gradient, start, steps, lr, probe):
    """Step sizes [T, steps] of one task after another, where they end, and how many steps were taken back."""
    sizes, ends, back = [], [], 0
    for t in range(len(start)):
        slope = lambda y: gradient(y[None].expand_as(start), 0)[t]  # noqa: E731, B023
        y, g, own = start[t], slope(start[t]), []
        last, losses, way = (y, g), [[0.0] * len(y)], [[] for _ in y]
        for k in range(steps):
            if k == 0:
                h = min(probe * min(lr, float(a.norm() / b.norm())) for a, b in zip(y, g, strict=True))
            else:
                limits = []
                for s, d, passed in zip(y - last[0], g - last[1], way, strict=True):
                    curvature, turn = float(s @ d / (s @ s)), float(d.norm() / s.norm())
                    passed.append((float(s @ s), float(d @ d)))
                    whole = (fmean(d for _, d in passed) / fmean(s for s, _ in passed)) ** 0.5
                    by_last = 1 / (max(curvature, turn / 4) * turn) ** 0.5 if turn else float("inf")
                    limits.append(max(by_last, 1 / (2 * whole) if whole else 0.0))
                for j, (s, d) in enumerate(zip(*((z - z.mean(0)) for z in (y - last[0], g - last[1])), strict=True)):
                    if float(s.norm()) > 100 * torch.finfo(y.dtype).eps * float(y[j].norm()):
                        limits[j] = max(limits[j], float(s.norm() / d.norm()) / 2)
                before, h = h, min(limits) if k == 1 and min(limits) < float("inf") else min(*limits, 1.5 * h)
                rises = [float(a @ (b + c)) / 2 for a, b, c in zip(y - last[0], g, last[1], strict=True)]
                if any(losses[-1][j] + rise > fmean(one[j] for one in losses) for j, rise in enumerate(rises)):
                    (y, g), h, back = last, min(h, before / 2), back + 1
                else:
                    losses.append([loss + rise for loss, rise in zip(losses[-1], rises, strict=True)])
            h = min(h, lr)
            last, y = (y, g), y - h * g
            g = slope(y)
            own.append(h)
        sizes.append(own)
        ends.append(y)
    return torch.tensor(sizes, dtype=torch.float64), torch.stack(ends), back


@pytest.mark.parametrize("lr", [None, 0.9, 20.0])
def test_adaptive_steps_are_their_formula(lr):
    """On a field that curves up and down and turns, where all of its terms come into play."""
    gradient, _, start = batch_of_quadratics(tasks=3, condition=300.0)
    turning = lambda y, step: gradient(y, step) + 0.4 * (3 * y).sin() + 0.6 * (y - 1).roll(1, -1)  # noqa: E731
    out = solve(turning, start, mp.AdaptiveGradientDescent(lr, probe=0.02), 30)
    sizes, ends, _ = by_hand(turning, start, 30, lr or float("inf"), 0.02)
    torch.testing.assert_close(out.step_sizes, sizes, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.y, ends)
    ratios = sizes[:, 2:] / sizes[:, 1:-1]
    assert lr == 0.9 or torch.isclose(ratios, torch.tensor(1.5, dtype=torch.float64)).any()
    assert (ratios < 0.9).any()
    assert mp.AdaptiveGradientDescent(lr) == mp.AdaptiveGradientDescent(lr, probe=0.01)


def wall(y, step=0):
    """Slopes of 1 to 2 that end in a wall."""
    return torch.linspace(1, 2, y.shape[1] * y.shape[2], dtype=y.dtype).view(y.shape[1:]) + 1e3 * (y + 1).clamp(max=0)


@pytest.mark.parametrize("lr", [None, 5.0])
def test_adaptive_takes_back_a_step_that_went_too_far(lr):
    """On a slope steps grow by half each, until one ends within the wall."""
    start = torch.arange(1.0, 25.0, dtype=torch.float64).view(3, 2, 4)
    out = solve(wall, start, mp.AdaptiveGradientDescent(lr), 30)
    sizes, ends, back = by_hand(wall, start, 30, lr or float("inf"), 0.01)
    assert back > 5
    torch.testing.assert_close(out.step_sizes, sizes, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.y, ends)


def kinks(seed=0):
    """mean |A y - b| + ||y||^2 / 20, of which the minimum lies on kinks: its value [T] at y, and its gradient."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 30, 20, dtype=torch.float64, generator=rng)
    b = torch.randn(3, 30, 1, dtype=torch.float64, generator=rng)
    value = lambda y: (a @ y.mT - b).abs().mean((1, 2)) + (y**2).sum((1, 2)) / 20  # noqa: E731
    return value, lambda y, step: ((a @ y.mT - b).sign().mT @ a) / 30 + y / 10


def test_adaptive_steps_do_not_die_out_at_kinks():
    """However short a step, it crosses one; a long solve comes as near as fixed steps of three lengths do."""
    value, gradient = kinks()
    start = torch.ones(3, 1, 20, dtype=torch.float64)
    out = solve(gradient, start, mp.AdaptiveGradientDescent(), 1000)
    assert out.step_sizes[:, -1].min() > 0.03
    fixed = torch.stack([value(solve(gradient, start, mp.GradientDescent(h), 1000).y) for h in (0.3, 0.1, 0.03)])
    assert ((value(start) - value(out.y)) / (value(start) - fixed.amin(0)) > 0.95).all()


def test_adaptive_steps_do_not_die_out_under_noise():
    """Noise at each step, as dropout makes it: the longer the solve, the nearer the solution."""
    gradient, center, start = batch_of_quadratics(branches=1, condition=10.0, size=20)
    noise = torch.randn(1000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = lambda y, step: gradient(y, step) + 0.1 * noise[step]  # noqa: E731
    errors = {}
    for steps in (10, 100, 1000):
        out = solve(noisy, start, mp.AdaptiveGradientDescent(), steps)
        errors[steps] = relative_error(out.y, center)
    assert out.step_sizes[:, -1].min() > 0.02
    assert errors[1000] < errors[100] < errors[10]


def test_adaptive_branches_do_not_see_the_noise_that_they_share():
    """Two branches differ by a thousandth of what noise does to each: their difference converges all the same."""
    gradient, center, _ = batch_of_quadratics(branches=1, condition=10.0, size=20)
    noise = torch.randn(61, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tilt = 1e-4 * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None] * noise[60]
    shaken = lambda y, step: gradient(y, step) + tilt + 0.1 * noise[step]  # noqa: E731
    y = solve(shaken, center.expand(-1, 2, -1), mp.AdaptiveGradientDescent(), 60).y
    hessian = gradient(center + torch.eye(20, dtype=torch.float64), 0)
    assert relative_error(y[:, 0] - y[:, 1], -2e-4 * torch.linalg.solve(hessian, noise[60])) < 0.02


def test_adaptive_branches_share_steps_and_respect_lr():
    gradient, _, y = batch_of_quadratics()
    sizes = []

    @dataclass(frozen=True)
    class Watched(mp.AdaptiveGradientDescent):
        def step(self, grad, y, state):
            moved, state = super().step(grad, y, state)
            sizes.append((y - moved).norm(dim=-1) / grad.norm(dim=-1))
            return moved, state

    solve(gradient, y, Watched(0.8), 30)
    for size in sizes:
        torch.testing.assert_close(size[:, 0], size[:, 1])
        assert size.max() <= 0.8 + 1e-12
    assert max(size.max() for size in sizes) > 0.5


def test_adaptive_stands_still_at_a_solution_and_starts_where_it_has_to():
    gradient, center, _ = batch_of_quadratics()
    assert torch.equal(solve(gradient, center.clone(), mp.AdaptiveGradientDescent(1.0), 6).y, center)
    late = lambda y, step: gradient(y, step) * (step > 2)  # noqa: E731  # no gradient at first, as dropout can have it
    assert relative_error(solve(late, center + 1, mp.AdaptiveGradientDescent(), 100).y, center) < 1e-2
    out = solve(gradient, 0 * center, mp.AdaptiveGradientDescent(), 100)  # 0 has no length
    assert relative_error(out.y, center) < 1e-2
    torch.testing.assert_close(out.step_sizes[:, 0], 0.01 / gradient(0 * center, 0).norm(dim=-1).amax(1))
    one_solved = torch.cat([center[:, :1], center[:, :1] + 1], 1)
    end = solve(lambda y, step: gradient(y, step), one_solved, mp.AdaptiveGradientDescent(), 100).y
    assert relative_error(end, center) < 1e-2


def test_adaptive_crosses_what_is_flat():
    """A constant gradient has no curvature: steps grow by half."""
    out = solve(lambda y, step: torch.ones_like(y), torch.ones(1, 1, 4), mp.AdaptiveGradientDescent(), 5)
    torch.testing.assert_close(out.step_sizes[0, 1:] / out.step_sizes[0, :-1], torch.full((4,), 1.5), rtol=1e-4, atol=0)


class Restarted(mp.AdaptiveGradientDescent):
    """Inherits ``resume``, which is then no promise of its own."""


@pytest.mark.parametrize("tol", [None, 0.05])
def test_adaptive_branches_go_on_with_the_step_of_their_base(quadratic, tol):
    problem, params, tasks = quadratic
    stop = {"steps": 6} if tol is None else {"tol": tol, "max_steps": 30}
    info = mp.FOBMAML(mp.AdaptiveGradientDescent(), **stop)(problem, params, tasks).info
    last = torch.stack([sizes[taken - 1] for sizes, taken in zip(info.base_step_sizes, info.base_steps, strict=True)])
    torch.testing.assert_close(info.branch_step_sizes[:, 0], last, rtol=1e-6, atol=0)
    assert info.counts.support_gradients == int(info.base_steps.sum()) + 5 * (2 * 5 + 1) or tol
    again = mp.FOBMAML(mp.AdaptiveGradientDescent(), **stop, branch_solver=mp.AdaptiveGradientDescent())
    assert torch.equal(again(problem, params, tasks).info.branch_step_sizes[:, 0], info.branch_step_sizes[:, 0])
    for other in (Restarted(3.0), mp.AdaptiveGradientDescent(3.0)):
        anew = mp.FOBMAML(mp.GradientDescent(0.5), 6, branch_solver=other)(problem, params, tasks).info
        assert anew.branch_step_sizes[:, 0].max() <= 0.03 + 1e-9  # a probe
    assert resumed(Restarted(3.0), Restarted(3.0), info.base_step_sizes) is None


def test_a_single_base_step_was_a_probe_and_the_second_of_the_branches_is_as_long_as_it_may_be(quadratic):
    problem, params, tasks = quadratic
    info = mp.FOBMAML(mp.AdaptiveGradientDescent(), 1, branch_steps=3)(problem, params, tasks).info
    torch.testing.assert_close(info.branch_step_sizes[:, 0], info.base_step_sizes[:, 0], rtol=1e-6, atol=0)
    assert (info.branch_step_sizes[:, 1] > 2 * info.branch_step_sizes[:, 0]).all()


@pytest.mark.parametrize("kind", [mp.FOBMAML, mp.Tangent])
def test_adaptive_branches_of_another_base_need_lr(kind):
    with pytest.raises(mp.InputError, match=r"branch_solver=AdaptiveGradientDescent\(lr=None.* give it lr"):
        kind(mp.Nesterov(0.1), 5, branch_solver=mp.AdaptiveGradientDescent())


@pytest.mark.parametrize("name", SOLVERS)
def test_base_and_branch_solvers_meet_the_closed_form_in_any_pair_with_gradient_descent(quadratic, name):
    problem, params, tasks = quadratic
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    exact = mp.GradientDescent(1.0)
    as_base = mp.FOBMAML(SOLVERS[name], steps=400, branch_solver=exact, branch_steps=200, scheme="central4", nu=1e-2)
    as_branch = mp.FOBMAML(exact, steps=200, branch_solver=SOLVERS[name], branch_steps=400, scheme="central4", nu=1e-2)
    # Adam's steps do not shrink at a solution: it hovers, as its docstring says.
    limits = (0.2, 1.0) if name == "adam" else (1e-6, 1e-6)
    for meta, limit in zip((as_base, as_branch), limits, strict=True):
        assert relative_error(meta(problem, params, tasks).grad["y"], truth) < limit


def test_any_object_with_init_and_step_is_a_solver(quadratic):
    class Newton:
        """Divides by the curvature of the tasks, which the test knows."""

        def __init__(self, tasks):
            self.inverse = torch.linalg.inv(tasks.support[0] + LAM * torch.eye(8, dtype=torch.float64))

        def init(self, y):
            return None

        def step(self, grad, y, state):
            return y - grad @ self.inverse, state

    problem, params, tasks = quadratic
    out = mp.FOBMAML(Newton(tasks), steps=2, perturb="center")(problem, params, tasks)
    truth = closed_form.meta_gradient(params["y"], tasks, LAM).mean(0)
    assert relative_error(out.grad["y"], truth) < 1e-9
    assert out.info.base_residual.max() < 1e-12


@pytest.mark.parametrize(
    "cls", [mp.GradientDescent, mp.Nesterov, mp.Adam, mp.Anderson, mp.ConjugateGradient, mp.AdaptiveGradientDescent]
)
@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf"), "0.1", True])
def test_lr_must_be_a_positive_number(cls, lr):
    with pytest.raises(mp.InputError, match="lr must be a finite number > 0, got"):
        cls(lr)


@pytest.mark.parametrize("beta", [0.3, 0.7])
def test_nesterov_with_constant_momentum_converges_up_to_the_curvature_that_it_says(beta):
    solver = mp.Nesterov(0.1, beta)
    limit = solver.largest_curvature(2000)
    for share, less in ((0.99, True), (1.01, False)):
        end = solve(lambda y, step: share * limit * y, torch.ones(1, 1, 1, dtype=torch.float64), solver, 2000)  # noqa: B023
        assert (end.y.abs().max() < 1e-3) == less


def test_half_a_solver_and_how_to_make_an_optimizer_are_refused_by_name():
    class Half:
        def step(self, grad, y, state):
            return y, state

    with pytest.raises(mp.InputError, match=r"any with init\(y\) and step\(grad, y, state\)"):
        mp.FOMAML(Half(), 3)
    with pytest.raises(mp.InputError, match=r"mp.TorchOptimizer\(functools.partial\(torch.optim.Adam"):
        mp.FOMAML(functools.partial(torch.optim.Adam, lr=0.1), 3)
