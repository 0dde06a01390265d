"""The same problem in other units has the same meta-gradient: to the last bit for powers of two."""

from dataclasses import dataclass

import pytest
import torch

import metaprox as mp
from conftest import SCHEMES
from metaprox.estimators.stencil import STENCILS, stencil
from metaprox.estimators.step import SHARE, Lengths, weight

LAM, LR = 0.3, 0.1


@dataclass(frozen=True)
class Units:
    """Parameters are s times what they were, both losses c times, the query loss another q times."""

    s: float = 1.0
    c: float = 1.0
    q: float = 1.0


CHANGES = {
    "parameters": Units(s=2.0**-10),
    "longer parameters": Units(s=2.0**9),
    "losses": Units(c=2.0**-15),
    "query loss": Units(q=2.0**-20),
    "larger query loss": Units(q=2.0**13),
    "all": Units(2.0**5, 2.0**7, 2.0**-9),
    "squares vanish": Units(c=2.0**-80),
    "squares overflow": Units(c=2.0**70),
}


def network(dtype, activation=torch.tanh):
    """(loss, params, tasks): two layers and 4 tasks; a tenth of the loss in a parameter that starts at 0."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    params = {"a": draw(12, 3) * 0.6, "b": draw(1, 12) * 0.3, "c": torch.zeros(1)}
    tasks = mp.Task((draw(4, 8, 3), draw(4, 8, 1)), (draw(4, 8, 3), draw(4, 8, 1)))

    def loss(p, batch):
        inputs, targets = batch
        return ((activation(inputs @ p["a"].T) @ p["b"].T + p["c"] - targets) ** 2).mean()

    data = mp.Task(*(tuple(leaf.to(dtype) for leaf in half) for half in tasks))
    return loss, {name: value.to(dtype) for name, value in params.items()}, data


def gradient(make, units, dtype=torch.float32, activation=torch.tanh):
    """What ``make(lr)`` says of the problem in these units, said in the units of old; and its info."""
    loss, params, tasks = network(dtype, activation)
    s, c, q = units.s, units.c, units.q
    scaled = lambda scale: lambda p, b: scale * loss({name: value / s for name, value in p.items()}, b)  # noqa: E731
    problem = mp.ProximalProblem(scaled(c), scaled(c * q), LAM * c / s**2)
    out = make(LR * s**2 / c)(problem, {name: s * value for name, value in params.items()}, tasks)
    return torch.cat([value.flatten().double() * s / (c * q) for value in out.grad.values()]), out.info


def assert_same(make, units, **settings):
    one, old = gradient(make, Units(), **settings)
    other, new = gradient(make, units, **settings)
    assert one.norm() > 1e-3
    assert torch.equal(one, other)
    for name in ("gradient_ratio", "linear_residual"):
        torch.testing.assert_close(getattr(new, name), getattr(old, name), rtol=1e-6, atol=0, equal_nan=True)
    for name in ("relative_error", "branch_error", "base_error", "truncation_error", "rounding_error"):
        torch.testing.assert_close(getattr(new, name), getattr(old, name), rtol=1e-4, atol=0, equal_nan=True)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_step_is_the_same_in_all_units(scheme, perturb, corrected):
    settings = {"scheme": scheme, "perturb": perturb, "residual_correction": corrected}
    for backend, steps, change in (("vmap", 3, "all"), ("vmap", 15, "squares vanish"), ("loop", 3, "all")):
        make = lambda lr: mp.FOBMAML(mp.GradientDescent(lr), steps, backend=backend, **settings)  # noqa: B023, E731
        assert_same(make, CHANGES[change])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_in_every_change_of_units(perturb, change):
    assert_same(lambda lr: mp.FOBMAML(mp.GradientDescent(lr), 8, perturb=perturb), CHANGES[change])


@pytest.mark.parametrize("change", ["all", "query loss"])
@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_in_float64_and_with_kinks(perturb, change):
    make = lambda lr: mp.FOBMAML(mp.GradientDescent(lr), 10, perturb=perturb)  # noqa: E731
    assert_same(make, CHANGES[change], dtype=torch.float64)
    assert_same(make, CHANGES[change], activation=torch.relu)


@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_other_numbers_than_powers_of_two_change_rounding_alone(perturb):
    make = lambda lr: mp.FOBMAML(mp.GradientDescent(lr), 10, perturb=perturb)  # noqa: E731
    one, _ = gradient(make, Units(), torch.float64)
    for units in (Units(s=1e-3), Units(s=1e3), Units(c=1e5), Units(q=1e-6), Units(0.7, 1.3, 1e4)):
        other, _ = gradient(make, units, torch.float64)
        assert (one - other).norm() < 1e-9 * one.norm()


SOLVERS = {
    "nesterov": mp.Nesterov,
    "anderson": mp.Anderson,
    "conjugate": mp.ConjugateGradient,
    "adaptive": mp.AdaptiveGradientDescent,
    "free": lambda lr: mp.AdaptiveGradientDescent(),
}
METHODS = {
    "fobmaml": lambda solver: mp.FOBMAML(solver, 6),
    "fobmaml, rtol": lambda solver: mp.FOBMAML(solver, 60, rtol=0.3),
    "fobmaml, with its truncation": lambda solver: mp.FOBMAML(solver, 6, estimate_truncation=True),
    "fobmaml, predictor": lambda solver: mp.FOBMAML(solver, 6, start="predictor"),
    "tangent": lambda solver: mp.Tangent(solver, 6, residual_correction=True),
    "imaml": lambda solver: mp.IMAML(solver, 6),
    "maml": lambda solver: mp.MAML(solver, 6),
    "fomaml": lambda solver: mp.FOMAML(solver, 6),
}


@pytest.mark.parametrize("change", ["all", "squares vanish", "squares overflow"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_in_all_units(method, change):
    assert_same(lambda lr: METHODS[method](mp.GradientDescent(lr)), CHANGES[change])


@pytest.mark.parametrize("change", ["all", "squares vanish", "squares overflow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_the_same_in_all_units(solver, change):
    assert_same(lambda lr: mp.FOBMAML(SOLVERS[solver](lr), 6), CHANGES[change])


@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_a_tolerance_of_the_base_asks_the_same_of_the_branches_in_all_units(perturb):
    """The tolerance is in units of support loss per parameter; the query loss may be in any."""
    found = []
    for units in (Units(), Units(s=2.0**-8), Units(c=2.0**20), Units(q=2.0**-30), Units(q=2.0**30)):
        tol = 2e-2 * units.c / units.s
        make = lambda lr: mp.FOBMAML(mp.GradientDescent(lr), tol=tol, max_steps=200, perturb=perturb)  # noqa: B023, E731
        got, info = gradient(make, units)
        found.append((got, info.branch_steps))
        assert info.converged.sum() == (info.branch_steps < 200).sum() > 0
    for got, steps in found[1:]:
        assert torch.equal(got, found[0][0])
        assert torch.equal(steps, found[0][1])


def quadratic(support, query, curvature=1.0):
    """Tasks fhat = |y - a|^2 / 2, f = curvature |y - b|^2 / 2 with lam = 1, in one dimension and float64."""
    inner = lambda p, a: 0.5 * ((p["y"] - a) ** 2).sum()  # noqa: E731
    outer = lambda p, b: 0.5 * curvature * ((p["y"] - b) ** 2).sum()  # noqa: E731
    column = lambda values: torch.tensor(values, dtype=torch.float64)[:, None]  # noqa: E731
    return mp.ProximalProblem(inner, outer, 1.0), mp.Task(column(support), column(query))


START = {"y": torch.zeros(1, dtype=torch.float64)}


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("corrected", [False, True])
def test_branches_that_have_no_minimum_are_replaced(corrected, scheme, backend):
    """y_0 = 1/2 nearly: the closer b is to it, the smaller v and the larger nu, at which fhat - nu f is concave."""
    queries = [3.0, 0.5 + 1e-2, 0.5 + 1e-4, 0.5 - 1e-8, 0.0, 0.5 + 1e-12]
    problem, tasks = quadratic([1.0] * len(queries), queries, curvature=50.0)
    meta = mp.FOBMAML(mp.GradientDescent(0.3), 12, scheme=scheme, residual_correction=corrected, backend=backend)
    out = meta(problem, START, tasks)
    v = 50 * (out.adapted["y"] - tasks.query)
    exact = (v / 2).mean()
    assert abs(float(out.grad["y"] - exact)) < 0.02 * float(v.abs().mean())
    assert (out.info.gradient_ratio <= 2).all()


def test_a_replaced_task_is_the_one_of_the_center_and_the_others_are_untouched():
    problem, tasks = quadratic([1.0, 1.0, 1.0], [3.0, 0.5 + 1e-4, 0.2], curvature=50.0)
    meta = {p: mp.FOBMAML(mp.GradientDescent(0.3), 12, perturb=p) for p in ("loss", "center")}
    one = lambda i: mp.Task(tasks.support[i : i + 1], tasks.query[i : i + 1])  # noqa: E731
    out = meta["loss"](problem, START, tasks)
    singles = [meta["center" if i == 1 else "loss"](problem, START, one(i)) for i in range(3)]
    torch.testing.assert_close(out.grad["y"], torch.stack([single.grad["y"] for single in singles]).mean(0))
    for name in ("nu", "gradient_ratio", "linear_residual"):
        torch.testing.assert_close(
            getattr(out.info, name), torch.cat([getattr(single.info, name) for single in singles])
        )
    # The work of both is counted: 12 + 1 + 2 * 11 gradients of each, and the center takes one query gradient.
    assert out.info.counts == mp.Counts(2 * 3 * 35, 3 * (1 + 22) + 3)


def test_a_given_nu_is_kept_and_its_failure_names_it():
    problem, tasks = quadratic([1.0], [0.0], curvature=50.0)
    meta = mp.FOBMAML(mp.GradientDescent(0.3), 2000, nu=0.5)
    with pytest.raises(mp.NonFiniteError, match=r"branch solve .* Or lower nu=0.5: at -nu, f may outweigh"):
        meta(problem, START, tasks)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_where_v_is_zero_so_is_the_gradient(perturb, scheme, backend):
    """Also where the query loss is curved: its gradient along the way of the branches is not v."""
    problem, tasks = quadratic([1.0, 1.0], [0.5, 3.0])
    meta = mp.FOBMAML(mp.Anderson(0.5), 12, scheme=scheme, perturb=perturb, backend=backend)
    at = torch.tensor([[0.5], [0.5]], dtype=torch.float64)
    assert torch.equal(mp.FOMAML(mp.Anderson(0.5), 12)(problem, START, tasks).adapted["y"], at)  # exact, so that v is 0
    out = meta(problem, START, tasks)
    assert out.info.nu[0] == 0
    assert out.info.gradient_ratio[0] == 0
    torch.testing.assert_close(out.grad["y"], torch.tensor([-2.5 / 2 / 2], dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("start", [0.0, 7.0, -1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_base_that_does_not_move_still_has_a_step(start, perturb, dtype):
    """x solves the inner problem: D = 0, and at 0 there is no length at all but that of v. g = v / 2."""
    problem = mp.ProximalProblem(
        lambda p, a: 0.5 * ((p["y"] - a) ** 2).sum(), lambda p, b: 0.5 * ((p["y"] - b) ** 2).sum(), 1.0
    )
    x = torch.tensor([start, start], dtype=dtype)
    tasks = mp.Task(x[None], x[None] + torch.tensor([0.3, -0.4], dtype=dtype))
    for scheme in SCHEMES:
        out = mp.FOBMAML(mp.GradientDescent(0.4), 40, scheme=scheme, perturb=perturb)(problem, {"y": x}, tasks)
        precision = torch.finfo(dtype).eps
        worst = max(10 * precision ** (1 / 3), 30 * precision ** (STENCILS[scheme].order / 8))
        torch.testing.assert_close(out.grad["y"], torch.tensor([-0.15, 0.2], dtype=dtype), rtol=worst, atol=0)


def test_a_displacement_next_to_rounding_is_no_length():
    """x is off the solution by a few units in the last place; the step is taken from ||y_0|| then."""
    problem = mp.ProximalProblem(
        lambda p, a: 0.5 * ((p["y"] - a) ** 2).sum(), lambda p, b: torch.cosh(p["y"] - b).sum(), 1.0
    )
    x = torch.tensor([5.0, -3.0])
    for off in (1e-6, 1e-5, 1e-4, 1e-2):
        tasks = mp.Task((x + off)[None], (x + torch.tensor([0.3, -0.4]))[None])
        out = mp.FOBMAML(mp.GradientDescent(0.4), 60)(problem, {"y": x}, tasks)
        exact = torch.sinh(out.adapted["y"][0] - tasks.query[0]) / 2
        torch.testing.assert_close(out.grad["y"], exact, rtol=2e-2, atol=0)


def test_the_formula_of_the_step_by_hand():
    """p = 2, D = 3, ||y_0|| = 5: 3 sqrt(||r|| / (3 lam)), at most 6; SHARE of ||grad fhat|| / lam for "loss"."""
    y0 = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    moved = torch.tensor([[[0.0, 3.0]]], dtype=torch.float64)
    residual = torch.tensor([[[0.12, 0.0]]], dtype=torch.float64)
    lengths = Lengths.of(y0, moved.clone(), residual, lam=0.5)
    torch.testing.assert_close(lengths.eps(stencil("symmetric"), query_moves=False).item(), 3 * (0.24 / 3) ** 0.5)
    slope = (0.12**2 + (0.5 * 3) ** 2) ** 0.5  # r - lam (y_0 - x)
    torch.testing.assert_close(lengths.eps(stencil("symmetric"), query_moves=True).item(), SHARE * slope / 0.5)
    far = Lengths.of(y0, moved.clone(), 100 * residual, lam=0.5)
    assert far.eps(stencil("symmetric"), query_moves=False).item() == 6.0
    solved = Lengths.of(y0, moved.clone(), 0 * residual, lam=0.5)
    least = (torch.finfo(torch.float64).eps * 5) ** (1 / 3) * 3 ** (2 / 3)
    torch.testing.assert_close(solved.eps(stencil("symmetric"), query_moves=True).item(), least)
    v = torch.tensor([[[4.0]], [[0.0]], [[5e-324]]], dtype=torch.float64)
    nu = weight(torch.full_like(v, 2.0), 0.5, v).flatten()
    assert nu[:2].tolist() == [0.25, 0.0]
    assert nu[2].isfinite()


def test_the_reference_is_the_same_in_all_units():
    """Newton's method stops by what it has gained, not at a number."""

    def found(units):
        loss, params, tasks = network(torch.float64)
        s, c, q = units.s, units.c, units.q
        scaled = lambda scale: lambda p, b: scale * loss({name: value / s for name, value in p.items()}, b)  # noqa: E731
        problem = mp.ProximalProblem(scaled(c), scaled(c * q), 10 * LAM * c / s**2)
        out = mp.exact_meta_gradient(problem, {name: s * value for name, value in params.items()}, tasks)
        return torch.cat([value.flatten() * s / (c * q) for value in out.grad.values()])

    one = found(Units())
    for change in ("all", "squares vanish", "squares overflow", "losses"):
        assert torch.equal(found(CHANGES[change]), one)


def test_the_reference_where_x_is_the_solution():
    problem = mp.ProximalProblem(lambda p, a: 0.5 * ((p["y"] - a) ** 2).sum(), lambda p, b: (p["y"] * b).sum(), 1.0)
    x = torch.tensor([7.3, 1e-3], dtype=torch.float64)
    out = mp.exact_meta_gradient(problem, {"y": x}, mp.Task(x[None] * (1 + 1e-15), torch.ones_like(x)[None]))
    torch.testing.assert_close(out.grad["y"], torch.full_like(x, 0.5))


@pytest.mark.parametrize(("largest", "anew"), [(1.0, False), (1.9, False), (2.1, True), (3.0, True)])
def test_a_gradient_more_than_twice_the_query_gradient_is_taken_anew(largest, anew):
    """fhat = -a y^2 / 2 has ||g|| / ||v|| = lam / (lam - a); which is right here; the counts tell."""
    a = 1.0 - 1.0 / largest
    problem = mp.ProximalProblem(lambda p, s: -0.5 * a * (p["y"] ** 2).sum(), lambda p, q: (p["y"] * q).sum(), lam=1.0)
    tasks = mp.Task(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    out = mp.FOBMAML(mp.GradientDescent(1.0), 60, perturb="loss")(
        problem, {"y": torch.ones(2, dtype=torch.float64)}, tasks
    )
    assert out.info.gradient_ratio.item() == pytest.approx(largest, rel=1e-4)
    assert out.info.counts.support_gradients == (1 + anew) * (60 + 1 + 2 * 59)


@pytest.mark.parametrize(
    ("settings", "branches"),
    [
        ({"nu": 0.1}, 2),
        ({"perturb": "center"}, 2),
        ({"perturb": "center", "eps": 0.1}, 2),
        ({"perturb": "loss", "scheme": "forward"}, 2),
    ],
    ids=str,
)
def test_what_has_no_branch_without_a_minimum_or_was_asked_for_is_kept(settings, branches):
    problem = mp.ProximalProblem(lambda p, s: -(p["y"] ** 2).sum() / 3, lambda p, q: (p["y"] * q).sum(), lam=1.0)
    tasks = mp.Task(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    out = mp.FOBMAML(mp.GradientDescent(1.0), 60, **settings)(problem, {"y": torch.ones(2, dtype=torch.float64)}, tasks)
    assert out.info.gradient_ratio.item() == pytest.approx(3.0, rel=1e-4)
    assert out.info.counts.support_gradients == 60 + 1 + branches * 59
