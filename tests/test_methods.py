"""What is known of the compared methods: their agreement where they should agree, their bias where they should not."""

import math
from functools import partial

import pytest
import torch

import metaprox as mp
from conftest import LAM, SOLVERS, relative_error
from metaprox.estimators.implicit import conjugate_gradients
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import MNIST1D, Quadratic, Sinusoid
from metaprox.tasks import quadratic as closed_form
from test_oracle import Logistic


@pytest.fixture(scope="module")
def logistic():
    return Logistic()


def flat(grad):
    return torch.cat([g.flatten() for g in grad.values()])


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("start", ["base", "predictor"])
@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "adam"])
def test_tangent_is_the_limit_of_fobmaml(logistic, solver, perturb, start, correction):
    """Not of the exact gradient: of this very solve, converged or not. The difference falls as nu^2 (symmetric)."""
    settings = {"perturb": perturb, "start": start, "residual_correction": correction, "branch_steps": 4}
    tangent = mp.Tangent(SOLVERS[solver], 6, **settings)(logistic.problem, logistic.params, logistic.tasks).grad["w"]
    errors = []
    # Coefficients and adapted steps are linear in nu only while it is small against the base's residual.
    small = {"anderson": 0.02, "conjugate": 0.02, "adaptive": 1e-3}.get(solver, 1.0)
    if correction and (solver, start) != ("conjugate", "predictor"):  # whose gradients are small, beside nu^2
        small = 1.0
    for step in (2e-3 * small, 1e-3 * small):
        size = {"nu": step} if perturb == "loss" else {"eps": step}
        meta = mp.FOBMAML(SOLVERS[solver], 6, **settings, **size)
        errors.append(relative_error(meta(logistic.problem, logistic.params, logistic.tasks).grad["w"], tangent))
    assert errors[1] < 1e-3
    # The adapted step is the smallest of two branches', which has a kink at nu = 0.
    assert math.log2(errors[0] / errors[1]) > (0.9 if solver == "adaptive" else 1.7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_maml_is_the_gradient_of_what_its_solver_reaches(logistic, solver, backend):
    """Against a central difference of the query loss after K steps."""
    meta = mp.MAML(SOLVERS[solver], 5, backend=backend)
    direction = torch.linspace(-1, 1, 20, dtype=torch.float64)
    values = []
    for h in (1e-5, -1e-5):
        moved = {"w": logistic.params["w"] + h * direction}
        values.append(mp.FOMAML(SOLVERS[solver], 5)(logistic.problem, moved, logistic.tasks).query_loss.mean())
    slope = float(values[0] - values[1]) / 2e-5
    grad = meta(logistic.problem, logistic.params, logistic.tasks).grad["w"]
    assert float(grad @ direction) == pytest.approx(slope, rel=1e-6)


def test_plain_maml_with_one_step_is_its_formula(quadratic):
    """lam = 0, one step: g = (I - lr A) B (x - lr A (x - a) - b)."""
    problem, params, tasks = quadratic
    plain = mp.ProximalProblem(problem.inner_loss, problem.outer_loss, 0.0)
    (a_matrix, a), (b_matrix, b) = tasks
    step = torch.eye(8, dtype=torch.float64) - 0.3 * a_matrix
    y = params["y"] - 0.3 * (a_matrix @ (params["y"] - a)[..., None]).squeeze(-1)
    expected = (step @ (b_matrix @ (y - b)[..., None])).squeeze(-1).mean(0)
    torch.testing.assert_close(mp.MAML(mp.GradientDescent(0.3), 1)(plain, params, tasks).grad["y"], expected)


def test_methods_agree_on_a_network_with_a_solved_inner_problem():
    """tanh MLP, strong proximal term, float64: all that should converge to the same gradient do."""
    model = mlp([40, 6, 5]).double()
    model[1] = torch.nn.Tanh()
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=2.0)
    tasks = mp.Task(*((inputs.double(), labels) for inputs, labels in MNIST1D(queries=5).batch(range(3))))
    params = {name: p.detach() for name, p in model.named_parameters()}
    exact = flat(mp.exact_meta_gradient(problem, params, tasks).grad)
    solver = mp.Nesterov(0.2)
    methods = {
        "maml": mp.MAML(solver, 120),
        "imaml": mp.IMAML(solver, 120, cg_steps=30),
        "tangent": mp.Tangent(solver, 120),
        "fobmaml": mp.FOBMAML(solver, 120, scheme="central4", nu=1e-2),
    }
    for name, meta in methods.items():
        assert relative_error(flat(meta(problem, params, tasks).grad), exact) < 1e-5, name


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_imaml_reports_the_residual_of_the_system_that_it_should_solve(quadratic, damping):
    problem, params, tasks = quadratic
    for steps in (1, 3):
        for index in range(5):
            task = mp.Task(*(tuple(leaf[index : index + 1] for leaf in part) for part in tasks))
            out = mp.IMAML(mp.GradientDescent(0.5), 4, cg_steps=steps, damping=damping)(problem, params, task)
            curvature, center = task.query
            v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)[0]
            left = LAM * v - (task.support[0][0] @ out.grad["y"] + LAM * out.grad["y"])
            torch.testing.assert_close(out.info.linear_residual[0], left.norm() / (LAM * v.norm()))


def test_imaml_damping_solves_the_damped_system(quadratic):
    problem, params, tasks = quadratic
    out = mp.IMAML(mp.GradientDescent(1.0), 200, cg_steps=8, damping=0.3)(problem, params, tasks)
    curvature, center = tasks.query
    v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)
    damped = tasks.support[0] + (LAM + 0.3) * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(out.grad["y"], torch.linalg.solve(damped, LAM * v).mean(0))


def test_conjugate_gradients_end_in_as_many_steps_as_distinct_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(4, 9, 9, dtype=torch.float64, generator=generator))
    matrix = (q * torch.tensor([1.0, 1, 1, 2, 2, 2, 5, 5, 5], dtype=torch.float64)) @ q.mT
    right = torch.randn(4, 1, 9, dtype=torch.float64, generator=generator)
    z, left = conjugate_gradients(lambda p: p @ matrix, right, 3)
    torch.testing.assert_close(z @ matrix, right)
    assert left.abs().max() < 1e-12
    z, left = conjugate_gradients(lambda p: p @ matrix, right, 2)
    torch.testing.assert_close(left, right - z @ matrix)
    assert left.abs().max() > 1e-3


def test_conjugate_gradients_stop_each_problem_at_its_tolerance_and_at_negative_curvature():
    matrix = torch.diag_embed(torch.tensor([[1.0, 1.0], [1.0, 10.0], [-1.0, -2.0]], dtype=torch.float64))
    right = torch.ones(3, 1, 2, dtype=torch.float64)
    products = []

    def product(p):
        products.append(p)
        return p @ matrix

    z, _ = conjugate_gradients(product, right, 5, tol=1e-10)
    torch.testing.assert_close(z[:2, 0], torch.tensor([[1.0, 1.0], [1.0, 0.1]], dtype=torch.float64))
    assert z[2].abs().max() == 0  # no direction of descent was found
    assert z.isfinite().all()
    assert len(products) == 2
    zero, _ = conjugate_gradients(product, 0 * right, 5)
    assert zero.abs().max() == 0
    assert len(products) == 2  # there was nothing to solve
    flat, left = conjugate_gradients(lambda p: 0 * p, right, 5)
    assert flat.abs().max() == 0
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("tol", [0.5, 0.1, 0.01])
def test_conjugate_gradients_stop_once_the_residual_is_so_small_a_part_of_the_right_side(tol):
    """In any units: by the residuals after each number of steps, without a tolerance. Beside a problem of zeros."""
    matrix = torch.diag(torch.logspace(0, 2, 8, dtype=torch.float64))
    right = torch.stack([torch.ones(1, 8), torch.zeros(1, 8)]).double() * 1e3
    calls = []

    def product(p):
        calls.append(1)
        return p @ matrix

    parts = [float(conjugate_gradients(product, right, k)[1][0].norm() / right[0].norm()) for k in range(9)]
    calls.clear()
    z, left = conjugate_gradients(product, right, 8, tol=tol)
    assert len(calls) == next(k for k, part in enumerate(parts) if part <= tol)
    torch.testing.assert_close(left, right - z @ matrix)
    assert z[1].abs().max() == 0


def test_imaml_says_of_a_quadratic_what_is_so(quadratic):
    problem, params, tasks = quadratic
    out = mp.IMAML(mp.GradientDescent(0.5), 4, cg_steps=8)(problem, params, tasks)
    (a, s), (b, q) = tasks
    y, x = out.adapted["y"], params["y"]
    times = lambda matrix, vector: (matrix @ vector[..., None]).squeeze(-1)  # noqa: E731
    v = times(b, y - q)
    g = torch.linalg.solve(a + LAM * torch.eye(8, dtype=torch.float64), LAM * v)
    torch.testing.assert_close(out.grad["y"], g.mean(0))
    torch.testing.assert_close(out.info.gradient_ratio, g.norm(dim=1) / v.norm(dim=1))
    torch.testing.assert_close(out.info.base_residual, (times(a, y - s) + LAM * (y - x)).norm(dim=1))


@pytest.mark.parametrize(
    ("meta", "tolerance"),
    [
        (mp.IMAML(mp.Anderson(0.5), 12, cg_steps=3), 1e-8),
        (mp.Tangent(mp.Anderson(0.5), 12, residual_correction=True), 1e-8),
        *(
            (mp.FOBMAML(mp.Anderson(0.5), 14, scheme="central4", perturb=p, backend="loop"), 1e-5)
            for p in ("loss", "center")
        ),
        (mp.FOBMAML(mp.Anderson(0.5), 14, scheme="forward", residual_correction=True), 1e-5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_adapt_meets_the_reference(meta, tolerance):
    """Noise-free: sum(a (y - s)^2) + <y, c> sum(w), and w in the query loss too."""
    inner = lambda p, s: (A * (p["y"] - s) ** 2).sum() + (p["y"] * C).sum() * p["w"].sum()  # noqa: E731
    outer = lambda p, q: ((p["y"] - q) ** 2).sum() * p["w"].square().sum()  # noqa: E731
    A, C = torch.tensor([[0.2, 0.5, 0.3], [1.0, -2.0, 0.5]], dtype=torch.float64)
    problem = mp.ProximalProblem(inner, outer, lam=0.5, adapt="y")
    params = {"y": C + A, "w": torch.tensor([0.3, -0.8], dtype=torch.float64)}
    tasks = mp.Task(torch.stack([A, 2 * C]), torch.stack([C, C - A]))
    exact = mp.exact_meta_gradient(problem, params, tasks)
    out = meta(problem, params, tasks)
    for name, grad in exact.grad.items():
        assert relative_error(out.grad[name], grad) < tolerance, name


@pytest.mark.parametrize(
    "method", [partial(mp.IMAML, cg_steps=2), partial(mp.Tangent, residual_correction=True, branch_steps=3)]
)
def test_all_that_is_taken_at_the_solution_sees_the_same_noise(method):
    """The residual there, the products of the system, two of them, and the mixed one are of one function."""
    draws, curvature = [], torch.tensor([1.0, 2.0, 3.0])  # which two steps of conjugate gradients do not solve

    def noisy(params, data):
        draws.append(float(torch.rand(())))
        return (params["y"] ** 2 * curvature).sum() * (1 + draws[-1]) * params["w"].sum()

    outer = lambda params, data: ((params["y"] - data) ** 2).sum() * params["w"].sum()  # noqa: E731
    problem = mp.ProximalProblem(noisy, outer, lam=1.0, adapt="y")
    params = {"y": torch.ones(3), "w": torch.ones(1)}
    meta = method(mp.GradientDescent(0.1), 4, backend="loop")
    tasks = mp.Task(torch.ones(1, 3), torch.tensor([[1.0, 2.0, 3.0]]))
    meta(problem, params, tasks)  # the first time the losses are looked at as well
    draws.clear()
    out = meta(problem, params, tasks)
    after = draws[4:]
    assert len(after) == 1 + out.info.counts.hessian_vector_products == 4
    assert len(set(after)) == 1
    assert len(set(draws)) == 5


def test_imaml_works_where_the_query_gradient_vanishes(quadratic):
    problem, params, tasks = quadratic
    silent = mp.ProximalProblem(problem.inner_loss, lambda p, data: 0.0 * p["y"].sum(), LAM)
    out = mp.IMAML(mp.GradientDescent(0.5), 3)(silent, params, tasks)
    assert out.grad["y"].abs().max() == 0
    assert out.info.linear_residual.abs().max() == 0


def affine(field, dim=10):
    """Jacobian and root of an affine map."""
    origin = field(torch.zeros(dim, dtype=torch.float64))
    jacobian = torch.stack([field(e) - origin for e in torch.eye(dim, dtype=torch.float64)], 1)
    return jacobian, torch.linalg.solve(jacobian, -origin)


def test_fomaml_and_reptile_converge_to_the_wrong_point_and_fobmaml_does_not():
    """Each method to its own stationary point, by Newton's method on its gradients, curvatures differing by task.

    The distance to the minimizer of F is at least 1e4 times smaller for FO-B-MAML than for FO-MAML and Reptile.
    """
    family = Quadratic(dim=10, condition=30.0, seed=0)
    tasks = family.batch(range(20))
    problem = family.problem(LAM)
    best = closed_form.minimizer(tasks, LAM)
    curvature, center = tasks.query
    fields = {
        "fobmaml": lambda x: closed_form.meta_gradient(x, tasks, LAM).mean(0),
        "fomaml": lambda x: (curvature @ (closed_form.solution(x, tasks, LAM) - center)[..., None]).squeeze(-1).mean(0),
        "reptile": lambda x: (x - closed_form.solution(x, tasks, LAM)).mean(0),
    }
    tight = {"tol": 1e-10, "max_steps": 300}
    solver = mp.Anderson(0.7)
    methods = {
        "fobmaml": mp.FOBMAML(solver, **tight),
        "fomaml": mp.FOMAML(solver, **tight),
        "reptile": mp.Reptile(solver, **tight),
    }
    distance = {}
    for name, meta in methods.items():
        jacobian, limit = affine(fields[name])
        x = torch.zeros(10, dtype=torch.float64)
        for _ in range(3):
            x = x - torch.linalg.solve(jacobian, meta(problem, {"y": x}, tasks).grad["y"])
        torch.testing.assert_close(x, limit, rtol=1e-5, atol=1e-6)
        distance[name] = float((x - best).norm())
    assert distance["fobmaml"] < 1e-4 * distance["fomaml"]
    assert distance["fobmaml"] < 1e-4 * distance["reptile"]
    assert min(distance["fomaml"], distance["reptile"]) > 0.05


def test_maml_refuses_a_tolerance():
    with pytest.raises(mp.InputError, match=r"MAML differentiates a fixed number of steps: give steps=K, not tol=0.1"):
        mp.MAML(mp.GradientDescent(0.1), tol=0.1, max_steps=5)


@pytest.mark.parametrize("settings", [{"cg_steps": 0}, {"cg_tol": -1.0}, {"damping": -0.1}])
def test_imaml_checks_its_settings(settings):
    name = next(iter(settings))
    with pytest.raises(mp.InputError, match=f"{name} must be"):
        mp.IMAML(mp.GradientDescent(0.1), 3, **settings)


class Attention(torch.nn.Module):
    """Fused attention, whose backward pass torch cannot differentiate on the CPU."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Linear(1, 24), torch.nn.Linear(8, 1)

    def forward(self, inputs):
        q, k, v = self.embed(inputs).view(1, 1, -1, 24).split(8, -1)
        return self.head(torch.nn.functional.scaled_dot_product_attention(q, k, v))[0, 0]


@pytest.mark.parametrize("method", [mp.MAML, mp.IMAML, mp.Tangent])
def test_what_needs_second_derivatives_says_so_where_there_are_none(method):
    torch.manual_seed(0)
    problem = mp.ProximalProblem.from_module(Attention(), mean_squared_error, lam=0.5)
    tasks = Sinusoid().batch(range(2))
    with pytest.raises(RuntimeError, match=r"scaled_dot_product.*is not implemented") as caught:
        method(mp.GradientDescent(0.01), 3, backend="loop").backward(problem, tasks)
    assert "differentiated twice; FOBMAML, FOMAML and Reptile never do that" in " ".join(caught.value.__notes__)
    out = mp.FOBMAML(mp.GradientDescent(0.01), 3, backend="loop").backward(problem, tasks)
    assert out.grad["embed.weight"].abs().max() > 0
