"""``rtol``: steps are taken until the estimated error is below it, per task, and the true one then is too."""

import pytest
import torch

import metaprox as mp
from conftest import SCHEMES, relative_error
from metaprox.tasks import Quadratic
from metaprox.tasks import quadratic as closed_form
from test_oracle import Logistic

LAM, TASKS = 0.1, 4
PAIRS = {
    "adaptive": (mp.AdaptiveGradientDescent(), None),
    "gd": (mp.GradientDescent(0.5), None),
    "krylov": (mp.Nesterov(0.5), mp.Anderson(0.5)),
}


def quadratics():
    """Of condition 100, and the closed form by task."""
    family = Quadratic(dim=20, condition=100.0, seed=3)
    x, tasks = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), family.batch(range(4))
    return family.problem(LAM), {"y": x}, tasks, closed_form.meta_gradient(x, tasks, LAM)


def logistic():
    """Logistic regression, and the dense solve by task."""
    case = Logistic()
    truths = [
        mp.exact_meta_gradient(case.problem, case.params, one(case.tasks, task)).grad["w"] for task in range(TASKS)
    ]
    tasks = mp.Task(*(tuple(leaf[:TASKS] for leaf in part) for part in case.tasks))
    return case.problem, case.params, tasks, torch.stack(truths)


def one(tasks, task):
    return mp.Task(*(tuple(leaf[task : task + 1] for leaf in part) for part in tasks))


CASES = {"quadratics": quadratics(), "logistic": logistic()}


def estimates(case, rtol, pair, steps=1000, **settings):
    """(relative error over rtol, info) of each task alone."""
    problem, params, tasks, truths = CASES[case]
    solver, branch_solver = PAIRS[pair]
    settings = {"branch_solver": branch_solver, "perturb": "center", "backend": "loop"} | settings
    meta = mp.FOBMAML(solver, steps, rtol=rtol, **settings)
    outs = [meta(problem, params, one(tasks, task)) for task in range(TASKS)]
    (name,) = params
    return [(relative_error(out.grad[name], truth) / rtol, out.info) for out, truth in zip(outs, truths, strict=True)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("case", CASES)
def test_the_true_error_is_of_the_order_of_rtol_and_a_looser_one_is_cheaper(case, pair):
    spent = []
    for rtol in (0.3, 0.03, 1e-3):
        found = estimates(case, rtol, pair)
        errors = [error for error, _ in found]
        assert max(errors) < 3
        assert sum(errors) / TASKS > 0.1  # no more accurate than asked for, by far
        for _, info in found:
            assert bool(info.converged)
            assert info.base_error <= rtol / 3
            assert info.branch_error <= 2 * rtol / 3
            # A gradient a step and one where a solve is seen to be enough; another at y_0, from which branches start.
            assert info.counts.support_gradients == int(info.base_steps) + 2 + 2 * int(info.branch_steps)
        spent.append(sum(info.counts.support_gradients for _, info in found))
    assert spent[0] < spent[1] < spent[2]
    assert spent[0] < spent[2] / 2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_for_every_scheme(scheme, correction, perturb):
    settings = {"scheme": scheme, "residual_correction": correction, "perturb": perturb}
    assert max(error for error, _ in estimates("logistic", 0.03, "adaptive", **settings)) < 3


@pytest.mark.parametrize("pair", PAIRS)
def test_a_task_that_is_there_stays_while_others_go_on(pair):
    problem, params, tasks, _ = CASES["quadratics"]
    solver, branch_solver = PAIRS[pair]
    meta = mp.FOBMAML(solver, 1000, branch_solver=branch_solver, rtol=0.01, backend="vmap", chunk_size=None)
    whole = meta(problem, params, tasks)
    alone = [meta(problem, params, one(tasks, task)) for task in range(TASKS)]
    assert whole.info.base_steps.tolist() == [int(out.info.base_steps) for out in alone]
    assert whole.info.branch_steps.tolist() == [int(out.info.branch_steps) for out in alone]
    assert len(set(whole.info.branch_steps.tolist())) > 1
    torch.testing.assert_close(whole.grad["y"], torch.stack([out.grad["y"] for out in alone]).mean(0))
    loop = mp.FOBMAML(solver, 1000, branch_solver=branch_solver, rtol=0.01, backend="loop")(problem, params, tasks)
    torch.testing.assert_close(loop.grad["y"], whole.grad["y"], rtol=1e-6, atol=1e-9)
    assert loop.info.counts.support_gradients <= whole.info.counts.support_gradients  # which evaluates those that stay


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_compiled_it_is_the_same():
    problem, params, tasks, _ = CASES["logistic"]
    plain, compiled = (
        mp.FOBMAML(mp.GradientDescent(0.5), 200, rtol=0.05, perturb="center", backend="vmap", compile=way)(
            problem, params, tasks
        )
        for way in (False, True)
    )
    assert compiled.info.counts == plain.info.counts
    torch.testing.assert_close(compiled.grad, plain.grad, rtol=1e-8, atol=1e-12)


def test_steps_are_bounds():
    for _, info in estimates("quadratics", 1e-6, "gd", steps=7, branch_steps=4):
        assert (int(info.base_steps), int(info.branch_steps), bool(info.converged)) == (7, 4, False)
    predicted = estimates("quadratics", 0.9, "gd", steps=7, start="predictor", branch_steps=0)
    assert all(int(info.branch_steps) == 0 for _, info in predicted)


def test_what_is_solved_takes_no_step():
    """x solves the inner problem of task 0; the query gradient of task 1 is 0 at its solution."""
    problem, params, tasks, _ = CASES["quadratics"]
    (a_matrix, a), (b_matrix, b) = (tuple(leaf.clone() for leaf in part) for part in tasks)
    x = params["y"]
    a[0] = x
    meta = mp.FOBMAML(mp.AdaptiveGradientDescent(), 1000, rtol=0.03)
    solved = mp.Task((a_matrix, a), (b_matrix, b))
    b[1] = closed_form.solution(x, solved, LAM)[1]
    info = meta(problem, params, solved).info
    assert int(info.base_steps[0]) == 0
    assert int(info.base_steps[1]) > 5
    exact = mp.Task(*(tuple(leaf[:1] for leaf in part) for part in (solved.support, (b_matrix, a))))
    out = meta(problem, params, exact)  # v = 0
    assert not out.grad["y"].any()
    assert int(out.info.branch_steps) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5, "rtol": 0.0}, "rtol must be a finite number > 0, got 0.0"),
        ({"tol": 1e-3, "max_steps": 5, "rtol": 0.1}, "rtol=0.1 needs steps=K, at most, and estimate_error=True"),
        ({"steps": 5, "rtol": 0.1, "estimate_error": False}, "rtol=0.1 needs steps=K, at most, and estimate_error"),
    ],
)
def test_what_rtol_needs(settings, message):
    with pytest.raises(mp.InputError, match=message):
        mp.FOBMAML(mp.GradientDescent(0.5), **settings)
