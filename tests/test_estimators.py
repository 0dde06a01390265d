"""What all estimators have in common: settings that are held as what they say, whatever they were given as."""

import functools

import pytest
import torch

import metaprox as mp
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.estimators.branches import AtBase, Branches
from metaprox.losses.choose import Choice

SOLVER = mp.GradientDescent(0.1)
METHODS = (mp.FOBMAML, mp.FOMAML, mp.Reptile, mp.IMAML, mp.Tangent)


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_held_as_plain_numbers(method):
    counted = method(SOLVER, torch.tensor(3), chunk_size=torch.tensor(2), compile=torch.tensor(False))
    assert (counted.steps, counted.chunk_size, counted.compile) == (3, 2, False)
    assert [type(value) for value in (counted.steps, counted.chunk_size, counted.compile)] == [int, int, bool]
    until = method(SOLVER, tol=torch.tensor(0.5), max_steps=torch.tensor(4))
    assert (until.tol, until.max_steps, type(until.tol), type(until.max_steps)) == (0.5, 4, float, int)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *(({"steps": steps}, "steps") for steps in (0, 2.5)),
        *(({"tol": tol, "max_steps": 3}, "tol") for tol in (0.0, "0.1")),
        *(({"steps": 3, "chunk_size": size}, "chunk_size") for size in (0, "all")),
        *(({"steps": 3, name: "yes"}, name) for name in ("compile", "backend", "on_nonfinite")),
        ({"steps": 3, "solver": None}, "solver"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(method, settings, name):
    with pytest.raises(mp.InputError, match=rf"{name}\b"):
        method(**{"solver": SOLVER, **settings})


def test_the_gradients_of_what_does_not_adapt_see_one_noise_at_both_ends_of_a_difference():
    """Of <w, random numbers> they are the random numbers, wherever y is, and their difference is nothing."""
    draw = lambda params, data: (params["w"] * torch.rand(2, dtype=torch.float64)).sum() + params["y"].sum()  # noqa: E731
    params = {"y": torch.ones(4, dtype=torch.float64), "w": torch.ones(2, dtype=torch.float64)}
    problem, rows = mp.ProximalProblem(draw, draw, 0.5, adapt="y"), torch.ones(3, 4, dtype=torch.float64)
    with begun(problem, params, TaskBatch.of(mp.Task(rows, rows)), Choice("loop", None)) as call:
        gradients = call.gradients((0, 3))
        y, one = torch.ones(3, 1, 4, dtype=torch.float64), torch.ones(3, 1, 1, dtype=torch.float64)
        at_base = AtBase.of(gradients, y, measured=False)[0]
        for nodes, weights in (((1.0,), (1.0,)), ((-1.0, 1.0), (-0.5, 0.5))):
            branches = Branches.of(at_base, nodes, weights, one, center=False, corrected=True)
            found = branches.shared_difference(gradients, [y + n for n in nodes])
            assert found.shape == (3, 1, 2)
            assert found.abs().max() == 0


@pytest.mark.parametrize(
    ("meta", "count"),
    [
        *((method(SOLVER, 4), 1) for method in (mp.FOMAML, mp.Reptile)),
        (mp.FOBMAML(SOLVER, 4), 2),
        (mp.FOBMAML(SOLVER, 4, scheme="central6"), 6),
        (mp.FOBMAML(SOLVER, 4, scheme="forward"), 2),
        (mp.FOBMAML(SOLVER, 4, scheme="forward", residual_correction=True), 1),  # the base is the other point
        *((method(SOLVER, 4), 3) for method in (mp.IMAML, mp.Tangent)),  # a gradient, its derivative, and both at once
        (mp.MAML(SOLVER, 4), 9),  # of four steps a gradient and its derivative each, and the query
    ],
)
def test_memory_is_told_by_how_many_evaluations_a_task_holds_at_once(meta, count):
    assert meta._evaluations_at_once() == count


def test_arguments_in_each_others_place_are_refused_by_name():
    problem = mp.ProximalProblem(*(lambda params, data: params["y"].square().sum(),) * 2, 0.5)
    params, tasks = {"y": torch.ones(3)}, mp.Task(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(mp.InputError, match="problem"):
        mp.FOMAML(SOLVER, 3)(params, problem, tasks)
    with pytest.raises(mp.InputError, match="params"):
        mp.FOMAML(SOLVER, 3)(problem, tasks, params)


class Two(torch.autograd.Function):
    """2; under vmap, wrongly, 0."""

    @staticmethod
    def forward(y):
        return torch.full_like(y, 2.0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        return None

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)

    @staticmethod
    def vmap(info, in_dims, y):
        return torch.zeros_like(y), in_dims[0]


def made_of(name, value, derivative):
    """A function with its derivative."""

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    parts = {
        "forward": value,
        "setup_context": setup_context,
        "backward": lambda ctx, g: g * derivative(*ctx.saved_tensors),
    }
    static = {part: staticmethod(function) for part, function in parts.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **static})


Slope = made_of("Slope", lambda y: 2 * y, Two.apply)
Square = made_of("Square", lambda y: y**2, Slope.apply)
TWICE = (mp.IMAML, mp.Tangent, mp.MAML)


@pytest.mark.parametrize("method", [*METHODS, mp.MAML])
def test_second_derivatives_are_compared_with_the_loops_where_they_are_taken_and_nowhere_else(method):
    loss = lambda params, data: (Square.apply(params["y"]) * data).sum()  # noqa: E731
    tasks = mp.Task(torch.ones(2, 3), torch.ones(2, 3))
    problem, params = mp.ProximalProblem(loss, loss, 0.5), {"y": torch.ones(3)}
    if method in TWICE:
        with pytest.raises(mp.InputError, match="second derivative differs from that of the loop"):
            method(SOLVER, 3, backend="vmap")(problem, params, tasks)
        return
    one, other = (method(SOLVER, 3, backend=backend)(problem, params, tasks) for backend in ("vmap", "loop"))
    torch.testing.assert_close(one.grad, other.grad)


def test_all_methods_see_the_same_noise_on_the_way_to_the_base_and_there():
    draw = lambda params, data: (params["y"] * torch.rand(3)).sum() + (params["y"] - data).square().sum()  # noqa: E731
    problem, tasks = mp.ProximalProblem(draw, draw, 0.5), mp.Task(torch.ones(2, 3), torch.ones(2, 3))
    losses, residuals = [], []
    for method in (*METHODS, mp.MAML):
        torch.manual_seed(0)
        out = method(SOLVER, 3, backend="loop")(problem, {"y": torch.ones(3)}, tasks)
        losses.append(out.query_loss)
        if method in (mp.FOBMAML, mp.IMAML, mp.Tangent):
            residuals.append(out.info.base_residual)
    for found in (losses, residuals):
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])
        assert found[0][0] != found[0][1]  # each task has its own


def test_tangent_differentiates_its_solver_unless_the_problem_of_the_branches_is_linear():
    loss = lambda params, data: (params["y"] - data).square().sum()  # noqa: E731
    problem, tasks = mp.ProximalProblem(loss, loss, 0.5), mp.Task(torch.ones(2, 3), 2 * torch.ones(2, 3))
    sgd = mp.TorchOptimizer(functools.partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(mp.InputError, match="Tangent without residual correction"):
        mp.Tangent(sgd, 3)
    linear = [mp.Tangent(solver, 3, residual_correction=True, branch_steps=2) for solver in (sgd, SOLVER)]
    one, other = (meta(problem, {"y": torch.zeros(3)}, tasks) for meta in linear)
    torch.testing.assert_close(one.grad, other.grad)
    assert (one.info.base_steps.tolist(), one.info.branch_steps.tolist()) == ([3, 3], [2, 2])


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("method", [mp.FOBMAML, mp.Tangent])
def test_a_query_loss_without_a_number_is_named_before_branches_leave(method, correction):
    inner = lambda params, data: (params["y"] - data).square().sum()  # noqa: E731
    outer = lambda params, data: (params["y"] * data).log().sum()  # noqa: E731
    problem = mp.ProximalProblem(inner, outer, 1.0)
    tasks = mp.Task(torch.ones(3, 1), torch.tensor([[1.0], [0.0], [1.0]]))
    with pytest.raises(mp.NonFiniteError, match="task 1: the loss or its gradient is not finite"):
        method(SOLVER, 3, residual_correction=correction)(problem, {"y": torch.ones(1)}, tasks)


def test_the_defaults_of_imaml():
    assert mp.IMAML(SOLVER, 3) == mp.IMAML(SOLVER, 3, cg_steps=5, cg_tol=0.0, damping=0.0)


@pytest.mark.parametrize("method", [mp.FOBMAML, mp.Tangent])
def test_branches_take_a_step_at_least_unless_they_start_at_a_prediction(method):
    assert method(SOLVER, 3, branch_steps=torch.tensor(1)).branch_steps == 1
    assert method(SOLVER, 3, start="predictor", branch_steps=0).branch_steps == 0
    for settings in ({"branch_steps": 0}, {"branch_steps": -1, "start": "predictor"}, {"branch_steps": 1.5}):
        with pytest.raises(mp.InputError, match="branch_steps must be"):
            method(SOLVER, 3, **settings)


def test_what_differentiates_a_proximal_solve_needs_one():
    loss = lambda params, data: (params["y"] - data).square().sum()  # noqa: E731
    problem, tasks = mp.ProximalProblem(loss, loss, 0.0), mp.Task(torch.ones(2, 3), torch.ones(2, 3))
    for method in (mp.FOBMAML, mp.Tangent, mp.IMAML):
        with pytest.raises(mp.InputError, match=f"lam must be .*{method.__name__} differentiates a proximal solve"):
            method(SOLVER, 3)(problem, {"y": torch.zeros(3)}, tasks)
    for method in (mp.FOMAML, mp.Reptile, mp.MAML):
        assert method(SOLVER, 3)(problem, {"y": torch.zeros(3)}, tasks).grad["y"].abs().min() > 0


def test_the_solver_whose_steps_are_too_long_is_named():
    """2 / 0.1 = 20 is the largest curvature, of which lam is one."""
    loss = lambda params, data: params["y"].square().sum()  # noqa: E731
    problem, short = mp.ProximalProblem(loss, loss, 30.0), mp.GradientDescent(0.01)
    for method in (mp.FOBMAML, mp.Tangent):
        for settings, name in (
            ({"solver": SOLVER}, "solver"),
            ({"solver": SOLVER, "branch_solver": short}, "solver"),
            ({"solver": short, "branch_solver": SOLVER}, "branch_solver"),
        ):
            with pytest.raises(mp.InputError, match=rf"(^|\W){name}\b"):
                method(steps=3, **settings).check(problem)
        method(short, 3).check(problem)
        assert [name for name, _, _ in method(short, 3)._solves()] == ["solver", "solver"]


@pytest.mark.parametrize("correction", [False, True])
def test_a_branch_of_tangent_that_diverges_is_named(correction):
    loss = lambda params, data: 1e6 * (params["y"] - data).square().sum()  # noqa: E731
    problem, tasks = mp.ProximalProblem(loss, loss, 1.0), mp.Task(torch.ones(2, 1), torch.zeros(2, 1))
    settings = {"branch_steps": 20, "residual_correction": correction}
    with pytest.raises(mp.NonFiniteError, match=r"task 0 .* of the branch solve became"):
        mp.Tangent(mp.GradientDescent(1e-7), 3, branch_solver=SOLVER, **settings)(problem, {"y": torch.zeros(1)}, tasks)


def test_tangent_of_one_parameter():
    """y = (2 s + lam x) / (2 + lam) by Newton's step of 1 / (2 + lam), v = 2 (y - q), g = lam v / (2 + lam)."""
    loss = lambda params, data: (params["y"] - data).square().sum()  # noqa: E731
    problem, tasks = mp.ProximalProblem(loss, loss, 0.5), mp.Task(torch.ones(1, 1), torch.full((1, 1), 3.0))
    out = mp.Tangent(mp.GradientDescent(0.4), 2)(problem, {"y": torch.zeros(1)}, tasks)
    assert out.grad["y"].item() == pytest.approx(0.5 * 2 * (2 / 2.5 - 3) / 2.5)
    assert (out.info.nu.tolist(), out.info.gradient_ratio.tolist()) == ([0.0], pytest.approx([0.2]))
    assert out.info.base_residual.tolist() == pytest.approx([0.0], abs=1e-6)


def test_what_maml_says_of_its_solve():
    loss = lambda params, data: (data * params["y"].square()).sum()  # noqa: E731
    problem, params = mp.ProximalProblem(loss, loss, 0.5), {"y": torch.ones(3)}
    info = mp.MAML(SOLVER, 3)(problem, params, mp.Task(*(torch.ones(2, 3),) * 2)).info
    assert (info.base_steps.tolist(), info.base_steps.dtype) == ([3, 3], torch.int64)
    assert info.converged.tolist() == [True, True]  # nothing was asked for
    torch.testing.assert_close(info.base_step_sizes, torch.full((2, 3), 0.1))
    skipping, tasks = mp.MAML(SOLVER, 3, on_nonfinite="skip"), mp.Task(torch.full((2, 3), 1e30), torch.ones(2, 3))
    with pytest.raises(mp.NonFiniteError, match=r"all 2 tasks diverged.*base solve became non-finite at step 1 of 3"):
        skipping(problem, params, tasks)
