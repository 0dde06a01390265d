"""One table, one row for each method and backend: the oracle, float32, purity, counts, averages, errors."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

import metaprox as mp
from conftest import LAM, relative_error
from metaprox.tasks import quadratic as closed_form

GD = mp.GradientDescent(1.0)
STEPS = 100
EYE = torch.eye(8, dtype=torch.float64)


def exact(x, tasks):
    """grad F_i = lam (A + lam I)^{-1} B (y_i - b)."""
    return closed_form.meta_gradient(x, tasks, LAM)


def query_gradient(x, tasks):
    """B (y_i - b), where FO-MAML ends."""
    curvature, center = tasks.query
    return (curvature @ (closed_form.solution(x, tasks, LAM) - center)[..., None]).squeeze(-1)


def displacement(x, tasks):
    """x - y_i, where Reptile ends."""
    return x - closed_form.solution(x, tasks, LAM)


@dataclass(frozen=True)
class Row:
    """A method with settings that solve quadratics to rounding, what it then is, and its cost per task."""

    meta: mp.Estimator
    limit: object
    support: int
    query: int
    products: int = 0
    tolerance: float = 1e-8


ROWS = {
    "fobmaml": Row(mp.FOBMAML(GD, STEPS), exact, 299, 1),
    "fobmaml-forward": Row(mp.FOBMAML(GD, STEPS, scheme="forward"), exact, 299, 1, tolerance=3e-7),
    "fobmaml-adaptive": Row(mp.FOBMAML(mp.AdaptiveGradientDescent(), STEPS), exact, 299, 1),
    "loss-forward": Row(mp.FOBMAML(GD, STEPS, perturb="loss", scheme="forward"), exact, 299, 100, tolerance=3e-7),
    "loss-symmetric": Row(mp.FOBMAML(GD, STEPS, perturb="loss"), exact, 299, 199),
    "loss-central4": Row(mp.FOBMAML(GD, STEPS, perturb="loss", scheme="central4"), exact, 497, 397),
    "loss-central6": Row(mp.FOBMAML(GD, STEPS, perturb="loss", scheme="central6"), exact, 695, 595),
    "loss-adaptive": Row(mp.FOBMAML(mp.AdaptiveGradientDescent(), STEPS, perturb="loss"), exact, 299, 199),
    "fobmaml-corrected": Row(
        mp.FOBMAML(GD, STEPS, scheme="forward", perturb="center", residual_correction=True),
        exact,
        200,
        1,
        tolerance=1e-7,
    ),
    "tangent": Row(mp.Tangent(GD, STEPS), exact, 201, 1, 100),
    "tangent-loss": Row(mp.Tangent(GD, STEPS, perturb="loss"), exact, 201, 101, 100),
    "tangent-corrected": Row(mp.Tangent(GD, STEPS, residual_correction=True), exact, 101, 1, 99),
    "maml": Row(mp.MAML(GD, STEPS), exact, 100, 1, 100),
    "imaml": Row(mp.IMAML(GD, STEPS, cg_steps=8), exact, 101, 1, 8),
    "fomaml": Row(mp.FOMAML(GD, STEPS), query_gradient, 100, 1),
    "reptile": Row(mp.Reptile(GD, STEPS), displacement, 100, 0),
}
CASES = [(name, backend) for name in ROWS for backend in ("vmap", "loop")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def row(request):
    name, backend = request.param
    return replace(ROWS[name], meta=replace(ROWS[name].meta, backend=backend))


@pytest.fixture
def short(row):
    """The same method with few steps, for what does not need the limit."""
    return replace(row.meta, steps=3)


def narrow(task):
    return mp.Task(*(tuple(leaf.float() for leaf in part) for part in task))


def test_limit_is_the_closed_form_at_the_counts_of_the_docstring(row, quadratic):
    problem, params, tasks = quadratic
    out = row.meta(problem, params, tasks)
    assert out.info.counts == mp.Counts(5 * row.support, 5 * row.query, 5 * row.products)
    assert relative_error(out.grad["y"], row.limit(params["y"], tasks).mean(0)) < row.tolerance
    torch.testing.assert_close(out.query_loss, closed_form.objective(params["y"], tasks, LAM))
    torch.testing.assert_close(out.adapted["y"], closed_form.solution(params["y"], tasks, LAM))


def test_limit_in_float32(row, quadratic):
    problem, params, tasks = quadratic
    out = replace(row.meta, steps=60)(problem, {"y": params["y"].float()}, narrow(tasks))
    assert out.grad["y"].dtype == torch.float32
    assert relative_error(out.grad["y"].double(), row.limit(params["y"], tasks).mean(0)) < 2e-3


def test_batch_is_the_mean_of_its_tasks_and_chunks_change_nothing(short, quadratic):
    problem, params, tasks = quadratic
    whole = short(problem, params, tasks)
    singles = [mp.Task(*(tuple(leaf[i] for leaf in part) for part in tasks)) for i in range(5)]
    parts = [short(problem, params, [task]).grad["y"] for task in singles]
    torch.testing.assert_close(whole.grad["y"], torch.stack(parts).mean(0), rtol=1e-7, atol=1e-8)
    chunked = replace(short, chunk_size=2)(problem, params, tasks)
    torch.testing.assert_close(whole.grad["y"], chunked.grad["y"], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(whole.adapted["y"], chunked.adapted["y"])


def test_backends_agree(short, quadratic):
    a, b = (replace(short, backend=backend)(*quadratic) for backend in ("vmap", "loop"))
    torch.testing.assert_close(a.grad["y"], b.grad["y"], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(a.query_loss, b.query_loss)
    torch.testing.assert_close(a.info.base_step_sizes, b.info.base_step_sizes)


def test_parameters_stay_bit_for_bit_and_no_graph_is_kept(short, quadratic):
    problem, params, tasks = quadratic
    live = {"y": params["y"].clone().requires_grad_()}
    out = short(problem, live, tasks)
    assert torch.equal(live["y"], params["y"])
    assert live["y"].grad is None
    assert not any(t.requires_grad for t in (out.grad["y"], out.adapted["y"], out.query_loss, out.info.gradient_ratio))


@pytest.mark.parametrize("at_call", [1, 3])
def test_parameters_stay_when_a_loss_raises(short, quadratic, at_call):
    _, params, tasks = quadratic
    calls = 100  # none fails while the losses are looked at

    def failing(p, data):
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise KeyError("the user's own error")
        return closed_form.loss(p, data)

    live = {"y": params["y"].clone().requires_grad_()}
    problem = mp.ProximalProblem(failing, failing, LAM)
    short(problem, live, tasks)
    calls = 0
    with pytest.raises(KeyError):
        short.backward(problem, tasks, live)
    assert torch.equal(live["y"], params["y"])
    assert live["y"].grad is None


def test_backward_fills_grad(short, quadratic):
    problem, params, tasks = quadratic
    live = {"y": params["y"].clone().requires_grad_()}
    short.backward(problem, tasks, live)
    torch.testing.assert_close(live["y"].grad, short(problem, params, tasks).grad["y"])


def test_zero_query_loss_gives_zero_where_the_query_is_learned_from(short, quadratic):
    problem, params, tasks = quadratic
    silent = mp.ProximalProblem(problem.inner_loss, lambda p, data: 0.0 * p["y"].sum(), LAM)
    out = short(silent, params, tasks)
    if not isinstance(short, mp.Reptile):
        assert out.grad["y"].abs().max() < 1e-14


def test_base_solve_is_the_same_in_all_methods(short, quadratic):
    problem, params, tasks = quadratic
    reference = mp.FOMAML(short.solver, 3)(problem, params, tasks)
    torch.testing.assert_close(short(problem, params, tasks).adapted["y"], reference.adapted["y"])


def test_divergence_names_the_task_and_the_step(short):
    """Task 3 grows by 499.5 a step, from a gradient of 1001: it overflows float32 at step 14."""
    loss = lambda params, curvature: 0.5 * curvature * (params["w"] ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = mp.Task(torch.tensor([1.0, 1.0, 1.0, 1e3, 1.0]), torch.ones(5))
    with pytest.raises(mp.NonFiniteError, match="task 3: the gradient of the base solve became non-finite at step 14"):
        replace(short, solver=mp.GradientDescent(0.5), steps=40)(problem, {"w": torch.ones(2)}, tasks)


def test_lam_zero_is_refused_where_the_method_needs_a_proximal_term(short, quadratic):
    problem, params, tasks = quadratic
    plain = mp.ProximalProblem(problem.inner_loss, problem.outer_loss, 0.0)
    if isinstance(short, (mp.MAML, mp.FOMAML, mp.Reptile)):
        assert short(plain, params, tasks).grad["y"].norm() > 0
    else:
        with pytest.raises(mp.InputError, match="needs a proximal term"):
            short(plain, params, tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": None}, "say when the inner solve ends"),
        ({"backend": "jit"}, "unknown backend 'jit'; known: auto, vmap, loop"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings_are_refused(short, settings, message):
    with pytest.raises(mp.InputError, match=message):
        replace(short, **settings)


COMMON = {
    "steps": None,
    "tol": None,
    "max_steps": None,
    "backend": "auto",
    "chunk_size": "auto",
    "reduce": None,
    "compile": False,
    "on_nonfinite": "raise",
}
BRANCHED = COMMON | {
    "perturb": None,
    "branch_solver": None,
    "branch_steps": None,
    "residual_correction": False,
    "start": "base",
}
DEFAULTS = {
    mp.FOBMAML: BRANCHED
    | {"scheme": "symmetric", "nu": None, "eps": None, "estimate_error": True, "rtol": None}
    | {"estimate_truncation": False, "offload": False},
    mp.Tangent: BRANCHED,
    mp.IMAML: COMMON | {"cg_steps": 5, "cg_tol": 0.0, "damping": 0.0},
    **dict.fromkeys((mp.MAML, mp.FOMAML, mp.Reptile), COMMON),
}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_settings_that_nobody_gave(kind):
    settings = {field.name: field.default for field in fields(kind) if field.name != "solver"}
    assert settings == DEFAULTS[kind]
