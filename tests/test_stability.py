"""What lam alone does to the steps of a solver is known before the solve, and said with what would help."""

import math

import pytest
import torch

import metaprox as mp
from metaprox.inner.solve import solve
from metaprox.solvers.stability import check_stable, largest_curvature, remedy

TASKS = mp.Task(torch.zeros(2, 3), torch.ones(2, 3))
SOLVERS = {
    "gd": mp.GradientDescent(0.1),
    "nesterov": mp.Nesterov(0.1),
    "momentum 0": mp.Nesterov(0.1, momentum=0.0),
    "momentum 0.5": mp.Nesterov(0.1, momentum=0.5),
    "momentum 0.9": mp.Nesterov(0.1, momentum=0.9),
}


def end(solver, curvature, steps):
    """How far ``steps`` steps on curvature y^2 / 2 from 1 end from the minimum."""
    y = torch.ones(1, 1, 1, dtype=torch.float64)
    return float(solve(lambda y, step: curvature * y, y, solver, steps).y.abs())


@pytest.mark.parametrize("steps", [2, 5, 20, 300])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_largest_curvature_is_where_the_solver_itself_begins_to_diverge(name, steps):
    solver = SOLVERS[name]
    limit = largest_curvature(solver, steps)
    if name.startswith("momentum") and steps < 300:
        return  # what momentum gains at first is lost again: the limit is that of many steps
    assert end(solver, 0.97 * limit, steps) < 1
    assert end(solver, 1.03 * limit, steps) > 1


def test_the_limits_by_their_formulas():
    assert largest_curvature(mp.GradientDescent(0.1), 7) == 20.0
    assert largest_curvature(mp.Nesterov(0.1, momentum=0.9), 7) == pytest.approx(3.8 / 2.8 / 0.1)
    assert largest_curvature(mp.Nesterov(0.1), 100_000) == pytest.approx(4 / 3 / 0.1, rel=1e-3)
    for solver in (mp.Anderson(0.1), mp.AdaptiveGradientDescent(0.1), mp.Adam(0.1)):
        assert largest_curvature(solver, 7) is None
        check_stable(solver, 1e6, 7)


def test_a_solver_that_overrides_the_step_has_another_limit():
    class Careful(mp.Nesterov):
        def step(self, grad, y, state):
            return super().step(grad / 100, y, state)

    assert largest_curvature(Careful(0.1), 7) is None
    assert Careful(0.1).largest_curvature(7) is None


@pytest.mark.parametrize("steps", [2, 3, 5, 20])
def test_the_limit_of_growing_momentum_is_sharp(steps):
    """The momentum k / (k + 3) is in it: that of k / (k + 4) would be off by a percent."""
    solver = mp.Nesterov(0.5)
    limit = largest_curvature(solver, steps)
    assert end(solver, limit * (1 - 1e-6), steps) < 1 < end(solver, limit * (1 + 1e-6), steps)


def counting():
    calls = []

    def loss(params, data):
        calls.append(1)
        return ((params["w"] - data) ** 2).mean()

    return loss, calls


METHODS = {
    "fobmaml": mp.FOBMAML,
    "tangent": mp.Tangent,
    "imaml": mp.IMAML,
    "maml": mp.MAML,
    "fomaml": mp.FOMAML,
    "reptile": mp.Reptile,
}


@pytest.mark.parametrize("backend", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("method", METHODS)
def test_too_stiff_is_said_before_any_loss_is_evaluated(method, backend):
    loss, calls = counting()
    problem = mp.ProximalProblem(loss, loss, lam=25.0)
    meta = METHODS[method](mp.GradientDescent(0.1), 5, backend=backend)
    with pytest.raises(mp.UnstableError) as caught:
        meta(problem, {"w": torch.zeros(3)}, TASKS)
    message = str(caught.value)
    for part in ("solver=GradientDescent(lr=0.1)", "lam=25", "lr * lam = 2.5 > 2", "lr < 0.08", "lam < 20"):
        assert part in message
    assert not calls
    assert isinstance(caught.value, mp.InputError)
    assert isinstance(caught.value, mp.NonFiniteError)


def test_the_solver_of_the_branches_is_looked_at_too():
    loss, calls = counting()
    problem = mp.ProximalProblem(loss, loss, lam=25.0)
    for method in (mp.FOBMAML, mp.Tangent):
        meta = method(mp.GradientDescent(0.01), 5, branch_solver=mp.Nesterov(0.1), branch_steps=8)
        with pytest.raises(mp.UnstableError, match=r"branch_solver=Nesterov.* makes 8 such steps diverge"):
            meta(problem, {"w": torch.zeros(3)}, TASKS)
    assert not calls


def test_adapt_and_evaluate_say_it_too():
    loss, calls = counting()
    problem = mp.ProximalProblem(loss, loss, lam=25.0)
    with pytest.raises(mp.UnstableError, match=r"lr \* lam = 2.5 > 2"):
        mp.adapt(problem, torch.zeros(3), mp.GradientDescent(0.1), 5, params={"w": torch.zeros(3)})
    assert not calls
    with pytest.raises(mp.UnstableError, match=r"lr \* lam = 2.5 > 2"):
        mp.evaluate(
            problem,
            lambda ids: TASKS,
            [0, 1],
            mp.GradientDescent(0.1),
            tol=1e-3,
            max_steps=5,
            params={"w": torch.zeros(3)},
        )


def test_what_does_not_diverge_is_not_refused():
    """One step from x does not see the proximal term; at lr lam = 2 nothing grows; adaptive solvers find their step."""
    loss, _ = counting()
    params = {"w": torch.zeros(3)}
    one = mp.FOMAML(mp.GradientDescent(0.1), 1)(mp.ProximalProblem(loss, loss, 25.0), params, TASKS)
    assert one.query_loss.isfinite().all()
    for solver, lam in (
        (mp.GradientDescent(0.1), 20.0),
        (mp.AdaptiveGradientDescent(0.1), 1e3),
        (mp.Anderson(0.1), 30.0),
    ):
        out = mp.FOMAML(solver, 5)(mp.ProximalProblem(loss, loss, lam), params, TASKS)
        assert out.query_loss.max() < 2
    assert mp.MAML(mp.GradientDescent(0.1), 5)(mp.ProximalProblem(loss, loss, 0.0), params, TASKS).grad["w"].norm() > 0


def test_the_advice_fits_the_cause():
    assert remedy(mp.GradientDescent(0.1), 0.5) == "Lower lr, raise lam, or use mp.AdaptiveGradientDescent."
    stiff = remedy(mp.GradientDescent(0.1), 15.0)
    assert "raise lam" not in stiff
    assert "Lower lr, or lower lam" in stiff
    assert "lr * lam = 1.5" in stiff
    assert "AdaptiveGradientDescent" not in remedy(mp.AdaptiveGradientDescent(0.1), 0.5)
    curved = lambda params, data: 50 * (params["w"] ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(curved, curved, lam=15.0)
    with pytest.raises(mp.NonFiniteError, match=r"Lower lr, or lower lam, of which much .*lr \* lam = 1.5") as caught:
        mp.FOMAML(mp.GradientDescent(0.1), 200)(problem, {"w": torch.ones(3)}, TASKS)
    assert not isinstance(caught.value, mp.InputError)
    assert math.isfinite(caught.value.step)


class Bare:
    """Steps that nobody knows a size of, but for a limit that it declares."""

    def __repr__(self):  # the same in every process
        return "Bare()"

    def init(self, y):
        return None

    def step(self, grad, y, state):
        return y - grad, None

    def largest_curvature(self, steps):
        return 2.0


ANEW = "; or use mp.AdaptiveGradientDescent."
PLAIN = "Lower lr, raise lam, or use mp.AdaptiveGradientDescent."
ADAPTIVE = "Lower lr, or raise lam."
FREE = "Give lr, the longest step, or raise lam."


@pytest.mark.parametrize(
    ("solver", "lam", "advice"),
    [
        *((kind(0.5), lam, PLAIN) for kind in (mp.GradientDescent, mp.Nesterov) for lam in (None, 0.5, 1.0)),
        *((kind(0.5), 1.5, f"(lr * lam = 0.75){ANEW}") for kind in (mp.GradientDescent, mp.Nesterov)),
        *((mp.AdaptiveGradientDescent(0.5), lam, ADAPTIVE) for lam in (None, 1.0, 1.5)),
        (mp.AdaptiveGradientDescent(), 1.5, FREE),
        (Bare(), 1.5, PLAIN),
    ],
    ids=str,
)
def test_what_would_help_depends_on_the_share_of_lam_in_the_stiffness(solver, lam, advice):
    said = remedy(solver, lam)
    assert said == advice if advice in (PLAIN, ADAPTIVE, FREE) else said.endswith(advice)
    assert said.startswith("Lower lr" if advice != FREE else "Give lr")


def test_a_limit_without_a_step_size_is_said_in_lam_alone():
    with pytest.raises(mp.UnstableError) as caught:
        check_stable(Bare(), 3.0, 5)
    assert "with lam=3: (lam/2) ||y - x||^2 alone makes 5 such steps diverge. Use lam < 2" in str(caught.value)
    check_stable(Bare(), 2.0, 5)
    with pytest.raises(mp.UnstableError) as caught:
        check_stable(mp.Nesterov(0.5), 1000.0, 2, "branch_solver")
    assert "branch_solver=" in str(caught.value)
    assert "lr * lam = 500 > " in str(caught.value)
