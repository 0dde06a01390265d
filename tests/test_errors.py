"""Bad input: a clear error that names the value, the place and the remedy, before any work is done."""

import functools

import pytest
import torch

import metaprox as mp
from metaprox.models import mean_squared_error, mlp

GD = mp.GradientDescent(0.1)
DATA = torch.ones(2, 3)


class NeverCalled:
    """Any call of this loss is work done too early."""

    def __call__(self, params, data):
        raise AssertionError("the loss was called before the input was checked")


def square(params, data):
    return ((params["w"] - data) ** 2).sum()


def run(params=None, tasks=None, inner=None, outer=None, lam=1.0, **settings):
    problem = mp.ProximalProblem(inner or NeverCalled(), outer or square, lam)
    meta = mp.FOBMAML(GD, steps=2, **settings)
    params = {"w": torch.zeros(3)} if params is None else params
    return meta(problem, params, mp.Task(DATA, DATA) if tasks is None else tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "central3"}, "unknown scheme 'central3'; known: forward, symmetric, central4, central6"),
        ({"nu": 0.0}, "nu must be a finite number > 0, got 0.0"),
        ({"nu": -0.1}, "nu must be a finite number > 0, got -0.1"),
        ({"eps": 0.0, "perturb": "center"}, "eps must be a finite number > 0, got 0.0"),
        ({"eps": 0.1, "perturb": "loss"}, "eps=0.1 is the step of perturb='center', but perturb='loss'"),
        ({"eps": 0.1, "nu": 0.2}, "give nu=0.2, for perturb='loss', or eps=0.1, for 'center', not both"),
        ({"nu": 0.1, "perturb": "center"}, "nu=0.1 is the step of perturb='loss', but perturb='center'"),
        ({"perturb": "weights"}, "unknown perturb 'weights'; known: loss, center"),
        ({"start": "x"}, "unknown start 'x'; known: base, predictor"),
        ({"backend": "jit"}, "unknown backend 'jit'; known: auto, vmap, loop"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
        ({"branch_steps": 0}, "branch_steps must be an integer >= 1, got 0"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": 2.5}, "steps must be an integer >= 1, got 2.5"),
        ({"steps": None}, r"say when the inner solve ends: steps=K, or tol=... with max_steps=...; got steps=None"),
        ({"steps": 3, "tol": 0.1}, "say when the inner solve ends"),
        ({"steps": None, "tol": 0.1}, "say when the inner solve ends"),
        ({"steps": None, "tol": 0.0, "max_steps": 9}, "tol must be a finite number > 0, got 0.0"),
        ({"steps": None, "tol": 0.1, "max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
    ],
)
def test_settings_of_the_estimator(settings, message):
    with pytest.raises(mp.InputError, match=message):
        mp.FOBMAML(GD, **({"steps": 3} | settings))


class OwnOptimizer(torch.optim.SGD):
    """Not one of torch's."""


class OnlyInit:
    def init(self, y):
        return None


class OnlyStep:
    def step(self, grad, y, state):
        return y, state


@pytest.mark.parametrize(
    ("solver", "remedy"),
    [
        (torch.optim.Adam, "mp.TorchOptimizer(functools.partial(torch.optim.Adam, lr=...))"),
        (functools.partial(torch.optim.SGD, lr=0.1), "mp.TorchOptimizer(functools.partial(torch.optim.SGD, lr=...))"),
        (torch.optim.SGD([torch.zeros(1)], 0.1), "mp.TorchOptimizer(functools.partial(torch.optim.SGD, lr=...))"),
        (OwnOptimizer, "mp.TorchOptimizer(functools.partial(OwnOptimizer, lr=...))"),
        *((wrong, "such as mp.GradientDescent(lr=0.1)") for wrong in (OnlyInit(), OnlyStep(), mp.GradientDescent, 0.1)),
    ],
)
def test_what_is_no_solver_is_told_how_to_be_one(solver, remedy):
    for settings in ({"solver": solver}, {"solver": GD, "branch_solver": solver}):
        with pytest.raises(mp.InputError, match="solver must be an inner solver, an object") as caught:
            mp.FOBMAML(steps=3, **settings)
        assert remedy in str(caught.value)


def held(**values):
    """The same as tensors without dimensions."""
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("kind", "first", "settings"),
    [
        (mp.FOBMAML, GD, {"steps": 3, "branch_steps": 2, "nu": 0.25, "chunk_size": 2, "compile": True}),
        (mp.FOBMAML, GD, {"tol": 0.5, "max_steps": 3, "residual_correction": True, "estimate_error": False}),
        (mp.Tangent, GD, {"steps": 3, "branch_steps": 2, "residual_correction": True}),
        (mp.IMAML, GD, {"steps": 3, "cg_steps": 4, "cg_tol": 0.25, "damping": 0.5}),
        (mp.MAML, GD, {"steps": 3, "compile": False}),
        (mp.FOMAML, GD, {"steps": 3, "chunk_size": 1}),
        (mp.Reptile, GD, {"tol": 0.25, "max_steps": 1}),
        (mp.GradientDescent, 0.5, {}),
        (mp.Nesterov, 0.5, {"momentum": 0.25}),
        (mp.Adam, 0.5, {"eps": 0.125}),
        (mp.Anderson, 0.5, {"memory": 3}),
        (mp.ConjugateGradient, 0.5, {}),
        (mp.AdaptiveGradientDescent, 0.5, {"probe": 0.25}),
    ],
)
def test_settings_are_kept_as_numbers_of_python(kind, first, settings):
    given = kind(torch.tensor(first) if isinstance(first, float) else first, **held(**settings))
    assert given == kind(first, **settings)
    assert {name: type(getattr(given, name)) for name in settings} == {n: type(v) for n, v in settings.items()}


@pytest.mark.parametrize("lam", [-1.0, float("nan"), float("inf"), "1"])
def test_lam_must_be_a_number(lam):
    with pytest.raises(mp.InputError, match="lam must be a finite number >= 0, got"):
        mp.ProximalProblem(square, square, lam)


def test_lam_zero_is_refused_where_a_proximal_solve_needs_it():
    with pytest.raises(mp.InputError, match=r"lam must be a finite number > 0, got 0.0: FOBMAML .*needs a prox"):
        run(lam=0.0)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (mp.Task(torch.ones(2, 3), torch.ones(3, 3)), r"leading \(task\) sizes differ: tasks.*: 2, tasks.*: 3"),
        (mp.Task(torch.ones(0, 3), torch.ones(0, 3)), r"batch of tasks is empty: the leading \(task\) size is 0"),
        ([], "batch of tasks is empty: give at least one task"),
        (mp.Task((), ()), "holds no tensors"),
        (
            mp.Task(DATA, torch.tensor(1.0)),
            "with a leading task dimension, got a torch.float32 tensor of shape",
        ),
        (mp.Task(DATA, "query"), "must be a tensor with a leading task dimension, got a str.*backend='loop'"),
        ([mp.Task(DATA, DATA), (DATA, DATA)], r"tasks\[1\] must be a mp.Task\(support, query\), got tuple"),
    ],
)
def test_tasks(tasks, message):
    with pytest.raises(mp.InputError, match=message):
        run(tasks=tasks)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("tasks", "task", "place"),
    [
        (mp.Task(DATA, torch.tensor([[0.0, 1, 2], [0, NAN, 0]])), 1, r"\.query"),
        (mp.Task(torch.tensor([[INF, 1, 2], [0, 0, 0]]), DATA), 0, r"\.support"),
        ([mp.Task(DATA[0], DATA[0]), mp.Task(DATA[0], DATA[0] * NAN)], 1, r"\.query"),
        ([mp.Task((DATA[0], DATA[0] * NAN), DATA[0])], 0, r"\.support\[1\]"),
    ],
)
def test_non_finite_data_are_named_where_they_spoil_a_task(tasks, task, place, backend):
    def loss(params, data):
        return sum(square(params, leaf) for leaf in (data if isinstance(data, tuple) else (data,)))

    with pytest.raises(
        mp.NonFiniteError, match=rf"task {task}: .* Its data have non-finite values, in {place}\."
    ) as found:
        run(tasks=tasks, inner=loss, backend=backend)
    assert found.value.task == task


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no parameters to adapt"),
        ({"w": torch.zeros(3, dtype=torch.int64)}, "parameter 'w' has dtype torch.int64: only real floating-point"),
        (
            {"w": torch.zeros(3, dtype=torch.complex64)},
            "parameter 'w' has dtype torch.complex64: only real",
        ),
        ({"w": torch.zeros(3, dtype=torch.bfloat16)}, "parameter 'w' has dtype torch.bfloat16, too coarse"),
        ({"w": torch.tensor([0.0, float("nan"), 1.0])}, "parameter 'w' has non-finite values"),
        ({"w": [0.0, 1.0]}, "parameter 'w' must be a tensor, got list"),
    ],
)
def test_parameters(params, message):
    with pytest.raises(mp.InputError, match=message):
        run(params=params)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda p, d: (p["w"] - d) ** 2,
            r"must return a scalar tensor, got a torch.float32 tensor of shape \(3,\); reduce it",
        ),
        (lambda p, d: 1.0, "must return a scalar tensor, got a float"),
        (lambda p, d: (d**2).sum(), r"does not depend on the parameters \['w'\]"),
        (lambda p, d: ((p["w"].detach() - d) ** 2).sum(), r"does not depend on the parameters \['w'\]"),
    ],
)
def test_losses(loss, message, backend):
    with pytest.raises(mp.InputError, match=f"inner_loss {message}"):
        run(inner=loss, backend=backend)
    with pytest.raises(mp.InputError, match=f"outer_loss {message}"):
        run(inner=square, outer=loss, backend=backend)


def test_problem_without_live_parameters_says_what_to_do():
    problem = mp.ProximalProblem(square, square, 1.0)
    meta = mp.FOBMAML(GD, steps=2)
    with pytest.raises(mp.InputError, match=r"pass params=..., or build it with ProximalProblem\.from_module"):
        meta.backward(problem, mp.Task(DATA, DATA))


def test_a_model_that_is_all_frozen_is_refused():
    model = mlp([1, 2, 1]).requires_grad_(False)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 1.0)
    with pytest.raises(mp.InputError, match="no parameter of the model requires gradients"):
        mp.FOBMAML(GD, steps=2).backward(problem, mp.Task(DATA, DATA))


def test_errors_are_also_of_the_built_in_kind_and_of_one_family():
    assert issubclass(mp.InputError, ValueError)
    assert issubclass(mp.NonFiniteError, ArithmeticError)
    assert issubclass(mp.RunFolderError, OSError)
    assert issubclass(mp.MissingExtraError, ImportError)
    for error in (mp.InputError, mp.NonFiniteError, mp.RunFolderError, mp.MissingExtraError):
        assert issubclass(error, mp.MetaproxError)


def test_stacking_no_tasks_is_refused():
    with pytest.raises(mp.InputError, match="empty list of tasks"):
        mp.Task.stack([])


def test_exact_reference_says_when_it_has_not_converged():
    problem = mp.ProximalProblem(square, square, 1.0)
    with pytest.raises(mp.MetaproxError, match="Newton's method stopped"):
        mp.exact_meta_gradient(problem, {"w": torch.zeros(3)}, mp.Task(DATA, DATA), tol=1e-30, max_steps=3)
