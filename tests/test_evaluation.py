"""Adapting and evaluating: the same solve as the estimators', statistics by hand, fixed ids."""

import math

import pytest
import torch

import metaprox as mp
from conftest import LAM
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import MNIST1D, Quadratic, Sinusoid
from metaprox.tasks import quadratic as closed_form


def test_adapt_reaches_the_closed_form(quadratic):
    problem, params, tasks = quadratic
    one = tuple(leaf[2] for leaf in tasks.support)
    adapted = mp.adapt(problem, one, mp.Anderson(0.7), tol=1e-12, max_steps=200, params=params)
    torch.testing.assert_close(adapted["y"], closed_form.solution(params["y"], tasks, LAM)[2])


def test_adapt_is_the_base_solve_of_the_estimator(quadratic):
    problem, params, tasks = quadratic
    out = mp.FOBMAML(mp.GradientDescent(0.5), steps=4)(problem, params, tasks)
    for i in range(5):
        adapted = mp.adapt(problem, tuple(leaf[i] for leaf in tasks.support), mp.GradientDescent(0.5), 4, params=params)
        torch.testing.assert_close(adapted["y"], out.adapted["y"][i])


def test_adapt_leaves_the_model_alone_and_its_result_can_be_loaded():
    model = mlp([40, 8, 5])
    before = {name: p.clone() for name, p in model.state_dict().items()}
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5)
    tasks = MNIST1D().batch([0])
    support = tuple(leaf[0] for leaf in tasks.support)
    adapted = mp.adapt(problem, support, mp.GradientDescent(0.1), 10)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    loss = cross_entropy(model, support)[0]
    model.load_state_dict(adapted, strict=False)
    assert cross_entropy(model, support)[0] < loss
    assert not any(p.requires_grad for p in adapted.values())


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_evaluate_gives_the_statistics_of_the_closed_form(backend):
    family = Quadratic(dim=5, condition=4.0)
    params = {"y": torch.zeros(5, dtype=torch.float64)}
    ids = range(3, 28)
    out = mp.evaluate(
        family.problem(LAM),
        family.batch,
        ids,
        mp.GradientDescent(0.8),
        200,
        params=params,
        batch_size=7,
        backend=backend,
    )
    exact = closed_form.objective(params["y"], family.batch(ids), LAM)
    torch.testing.assert_close(out.values["loss"], exact)
    assert out.loss.n == 25
    assert out.loss.mean == pytest.approx(exact.mean().item())
    assert out.loss.std == pytest.approx(exact.std().item())
    assert out.loss.ci95 == pytest.approx(1.96 * exact.std().item() / 5)
    assert out.transductive is None


def test_batch_size_changes_nothing_but_rounding():
    problem = mp.ProximalProblem.from_module(mlp([40, 8, 5]), cross_entropy, lam=0.5)
    results = [
        mp.evaluate(problem, MNIST1D().batch, range(10), mp.GradientDescent(0.1), 5, batch_size=size).values
        for size in (1, 4, 100)
    ]
    for values in results[1:]:
        torch.testing.assert_close(values["loss"], results[0]["loss"])
        assert torch.equal(values["accuracy"], results[0]["accuracy"])
    assert mp.evaluate(problem, MNIST1D().batch, [0], mp.GradientDescent(0.1), 5).transductive is False


def test_one_task_has_a_mean_and_no_interval():
    statistic = mp.Statistic.of(torch.tensor([2.0]))
    assert statistic.mean == 2.0
    assert math.isnan(statistic.ci95)
    assert math.isnan(statistic.std)
    assert str(mp.Statistic.of(torch.tensor([1.0, 3.0]))) == "2 ± 2 (n = 2)"


def test_divergence_names_the_id():
    loss = lambda params, curvature: 0.5 * curvature * (params["w"] ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    batch = lambda ids: mp.Task(torch.tensor([1e3 if i == 17 else 1.0 for i in ids]), torch.ones(len(ids)))  # noqa: E731
    with pytest.raises(mp.NonFiniteError, match="task 7: ") as caught:
        mp.evaluate(
            problem, batch, range(10, 20), mp.GradientDescent(0.5), 40, params={"w": torch.ones(2)}, batch_size=3
        )
    assert caught.value.__notes__ == ["task 7 of this evaluation has id 17"]


def test_empty_ids_and_bad_batch_size_are_refused(quadratic):
    problem, params, _ = quadratic
    with pytest.raises(mp.InputError, match="ids is empty"):
        mp.evaluate(problem, Quadratic(dim=8).batch, [], mp.GradientDescent(0.1), 5, params=params)
    with pytest.raises(mp.InputError, match="batch_size must be an integer >= 1, got 0"):
        mp.evaluate(problem, Quadratic(dim=8).batch, [1], mp.GradientDescent(0.1), 5, params=params, batch_size=0)
    with pytest.raises(mp.InputError, match="say when the inner solve ends"):
        mp.adapt(problem, (torch.eye(8), torch.ones(8)), mp.GradientDescent(0.1), params=params)


def test_tasks_themselves_are_taken_for_ids():
    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), mean_squared_error, lam=0.5)
    waves, solver = Sinusoid(), mp.GradientDescent(0.01)
    by_ids = mp.evaluate(problem, waves.batch, range(5), solver, 3, batch_size=2)
    stack = waves.batch(range(5))
    singles = [mp.Task(*(tuple(leaf[i] for leaf in half) for half in stack)) for i in range(5)]
    for tasks in (stack, singles, tuple(singles)):
        torch.testing.assert_close(
            mp.evaluate(problem, tasks, None, solver, 3, batch_size=2).values["loss"], by_ids.values["loss"]
        )
    with pytest.raises(mp.InputError, match="there are 5 tasks for 4 ids"):
        mp.evaluate(problem, stack, range(4), solver, 3)
    with pytest.raises(mp.InputError, match="ids is None, but tasks is a function of them"):
        mp.evaluate(problem, waves.batch, None, solver, 3)


def test_what_is_not_finite_is_not_returned():
    overflows = lambda params, data: (params["w"].exp() * data).sum()  # noqa: E731
    problem = mp.ProximalProblem(overflows, overflows, 0.0)
    x = {"w": torch.full((2,), 50.0)}
    with pytest.raises(mp.NonFiniteError, match="task 0: the point after the last step is not finite"):
        mp.adapt(problem, torch.full((2,), 1e-5), mp.GradientDescent(1e30), 1, params=x)
    nan = mp.ProximalProblem(lambda p, d: p["w"].sum(), lambda p, d: p["w"].sum() * d, 0.0)
    tasks = mp.Task(torch.ones(2), torch.tensor([1.0, torch.nan]))
    with pytest.raises(mp.NonFiniteError, match=r"task 1: the query loss .*non-finite values, in \.query") as found:
        mp.evaluate(nan, tasks, [7, 9], mp.GradientDescent(0.1), 1, params=x)
    assert "has id 9" in found.value.__notes__[0]
