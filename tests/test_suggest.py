"""``mp.suggest``: the curvature of known quadratics, steps that are stable, units, and what is refused."""

import dataclasses

import pytest
import torch

import metaprox as mp
from conftest import relative_error
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import Quadratic, Sinusoid
from metaprox.tasks.quadratic import loss as quadratic_loss
from metaprox.tasks.quadratic import solution

FAMILY = Quadratic(dim=12, condition=30.0, seed=1)


def case(lam=1.0, scale=1.0, unit=1.0, count=3):
    """Quadratics with losses times ``scale``, of parameters x = ``unit`` z, as functions of z."""
    tasks = FAMILY.batch(range(count))
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(params, data):
        return scale * quadratic_loss({"y": unit * params["y"]}, data)

    return mp.ProximalProblem(loss, loss, lam), {"y": x / unit}, tasks


def largest(tasks):
    return float(torch.linalg.eigvalsh(tasks.support[0]).max())


@pytest.mark.parametrize("steps", [None, 1, 7])
def test_the_curvature_of_quadratics_is_right_and_the_step_stable_and_the_solve_converges(steps):
    problem, x, tasks = case()
    found = mp.suggest(problem, tasks, params=x, steps=steps)
    true = largest(tasks)
    assert 0.97 * true <= found.curvature <= true * (1 + 1e-6)
    assert found.curvature_at_x <= found.curvature
    assert found.inner_lr * (found.curvature + found.lam) == pytest.approx(1)
    assert found.inner_lr * (true + found.lam) < 1.05
    assert found.inner_lr * found.lam * found.steps == pytest.approx(0.25)
    assert found.steps == (steps or found.steps)
    # many such steps end at the solution
    own = dataclasses.replace(problem, lam=found.lam)
    for task in range(3):
        support = tuple(leaf[task] for leaf in tasks.support)
        y = mp.adapt(own, support, found.solver, steps=3000, params=x)["y"]
        assert relative_error(y, solution(x["y"], tasks, found.lam)[task]) < 1e-6


def test_what_was_tried_is_what_adaptation_gives():
    problem, x, tasks = case()
    found = mp.suggest(problem, tasks, params=x)
    assert [one.steps for one in found.tried] == [5, 10, 20]
    for one in found.tried:
        own = dataclasses.replace(problem, lam=one.lam)
        judged = mp.evaluate(own, tasks, None, mp.GradientDescent(one.inner_lr), one.steps, params=x)
        assert judged.loss.mean == pytest.approx(one.query_loss)
        swapped = mp.Task(tasks.support, tasks.support)
        judged = mp.evaluate(own, swapped, None, mp.GradientDescent(one.inner_lr), one.steps, params=x)
        assert judged.loss.mean == pytest.approx(one.support_loss)
        info = mp.FOBMAML(mp.GradientDescent(one.inner_lr), one.steps)(own, x, tasks).info
        first = torch.stack([tasks.support[0][i] @ (x["y"] - tasks.support[1][i]) for i in range(3)]).norm(dim=1)
        assert float((info.base_residual / first).mean()) == pytest.approx(one.residual)
    falls = [found.support_loss - one.support_loss for one in found.tried]
    enough = [one.steps for one, fall in zip(found.tried, falls, strict=True) if fall >= 0.75 * falls[-1]]
    assert found.steps == enough[0]
    assert found.residual == found.chosen.residual < 1


@pytest.mark.parametrize("scale", [2.0**-7, 2.0**5])
@pytest.mark.parametrize("unit", [2.0**-4, 2.0**6])
def test_units_of_losses_and_parameters(scale, unit):
    """H is scale unit^2 that in the old units, and so are lam and 1 / lr."""
    problem, x, tasks = case()
    plain = mp.suggest(problem, tasks, params=x)
    problem, x, tasks = case(scale=scale, unit=unit)
    found = mp.suggest(problem, tasks, params=x)
    factor = scale * unit**2
    assert found.curvature == pytest.approx(factor * plain.curvature, rel=1e-9)
    assert found.lam == pytest.approx(factor * plain.lam, rel=1e-9)
    assert found.inner_lr == pytest.approx(plain.inner_lr / factor, rel=1e-9)
    assert (found.steps, found.support_gradients) == (plain.steps, plain.support_gradients)
    assert found.residual == pytest.approx(plain.residual, rel=1e-9)


def test_gradients_are_counted_and_nothing_is_written_on():
    seen = []

    def loss(params, data):
        seen.append(1)
        return quadratic_loss(params, data)

    _, x, tasks = case()
    before = x["y"].clone()
    found = mp.suggest(
        mp.ProximalProblem(loss, lambda params, data: quadratic_loss(params, data), 1.0), tasks, params=x
    )
    assert torch.equal(x["y"], before)
    assert x["y"].grad is None
    assert len(seen) - found.support_gradients in range(4)  # and a first look at the loss
    assert found.support_gradients <= 3 * 300


def test_what_is_given_is_kept():
    problem, x, tasks = case()
    found = mp.suggest(problem, tasks, params=x, lam=0.1)
    assert found.lam == 0.1
    true = largest(tasks)
    assert found.steps == pytest.approx(0.25 * (true + 0.1) / 0.1, abs=1)
    found = mp.suggest(problem, tasks, params=x, lam=0.1, steps=3)
    assert (found.lam, found.steps, len(found.tried)) == (0.1, 3, 1)
    assert found.inner_lr == pytest.approx(1 / (true + 0.1), rel=0.03)
    assert mp.suggest(problem, tasks, params=x, count=1).tasks == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_with_kinks_in_either_precision_and_tasks_of_unequal_sizes(dtype):
    """The curvature that steps meet, and not that of a kink, which has no limit."""
    waves = Sinusoid(shots=10)
    model = mlp([1, 40, 40, 1], 0).to(dtype)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    tasks = [
        mp.Task(*(tuple(leaf[0, :size].to(dtype) for leaf in half) for half in waves.batch([number])))
        for number, size in enumerate((10, 7, 9))
    ]
    found = mp.suggest(problem, tasks)
    assert 20 < found.curvature < 200
    assert found.chosen.support_loss < found.support_loss
    assert all(p.grad is None for p in model.parameters())
    exact = max(
        float(torch.linalg.eigvalsh(hessian(model, [half.double() for half in task.support])).abs().max())
        for task in tasks
    )
    assert 0.5 * exact < found.curvature_at_x < 2 * exact
    text = str(found)
    assert f"--lam {found.lam:.2g} --steps {found.steps}" in text
    assert f"cost: {found.support_gradients} support gradients" in text
    assert len(text.splitlines()) == 4 + len(found.tried)


def hessian(model, batch):
    """Of the loss at the model's parameters, dense, in float64."""
    params = {name: p.detach().double() for name, p in model.named_parameters()}
    sizes = {name: p.numel() for name, p in params.items()}

    def loss(vector):
        pieces = vector.split(list(sizes.values()))
        own = {name: piece.view_as(params[name]) for name, piece in zip(sizes, pieces, strict=True)}
        return (torch.func.functional_call(model, own, (batch[0],)) - batch[1]).square().mean()

    return torch.func.hessian(loss)(torch.cat([p.flatten() for p in params.values()]))


def with_loss(loss):
    return mp.ProximalProblem(loss, loss, 1.0)


W = {"w": torch.tensor([3.0, -2.0])}
DATA = mp.Task(torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p, d: (p["w"] * d).sum(), "the inner loss has no curvature around x, as linear ones have none"),
        (lambda p, d: 0 * p["w"].sum(), "the gradient of the inner loss is 0 at x on all tasks"),
        (lambda p, d: -((p["w"] - d) ** 2).sum(), r"task 0: the inner loss curves downwards most .* by 2: .* Give lam"),
        (lambda p, d: 1e12 * (p["w"] - 3 + 1e-7 * d).square().sum() + 1e12 * p["w"][1] ** 2, None),
        (lambda p, d: (p["w"] - 3 - 1e-7).square()[0] + 0 * d.sum(), "is lost in the rounding of the parameters"),
    ],
)
def test_losses_of_which_nothing_can_be_told_are_refused(loss, words):
    if words is None:
        assert mp.suggest(with_loss(loss), DATA, params=W).curvature == pytest.approx(4e12, rel=0.05)
        return
    with pytest.raises(mp.InputError, match=words):
        mp.suggest(with_loss(loss), DATA, params=W)


def test_a_hill_with_a_lam_that_makes_it_a_valley_is_taken():
    found = mp.suggest(with_loss(lambda p, d: -((p["w"] - d) ** 2).sum()), DATA, params=W, lam=5.0)
    assert found.inner_lr == pytest.approx(1 / 7)


def test_losses_that_are_not_finite_and_bad_arguments_are_refused():
    def infinite(params, data):
        return (params["w"] / 0.0).sum()

    with pytest.raises(mp.NonFiniteError, match="task 0: the inner loss is not finite at x"):
        mp.suggest(with_loss(infinite), DATA, params=W)

    def cliff(params, data):
        return ((params["w"] - data) ** 2).sum() - 1e-3 * torch.log(params["w"][0] - 2.5)

    with pytest.raises(mp.NonFiniteError, match="AdaptiveGradientDescent as the solver"):
        mp.suggest(with_loss(cliff), DATA, params=W)
    problem = with_loss(lambda p, d: ((p["w"] - d) ** 2).sum())
    for given, words in (
        ({"lam": 0}, "lam must be a finite number > 0"),
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"count": 0}, "count must be an integer >= 1"),
        ({"params": {"w": W["w"].bfloat16()}}, r"parameter 'w' is torch.bfloat16, too coarse for differences"),
        ({"params": None}, "has no parameters of its own"),
    ):
        with pytest.raises(mp.InputError, match=words):
            mp.suggest(problem, DATA, **({"params": W} | given))
    with pytest.raises(mp.InputError, match=r"problem must be a mp.ProximalProblem"):
        mp.suggest(W, DATA)
    with pytest.raises(mp.InputError, match=r"tasks must be a mp.Task"):
        mp.suggest(problem, torch.ones(2), params=W)


@pytest.mark.parametrize("start", ["zeros", "means"])
def test_tasks_with_heads_of_their_own_are_looked_at_from_where_each_begins(start):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()
    problem = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5, head=mp.Head("2", start))
    tasks = []
    for classes in (2, 3):
        pair = (torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % classes)
        tasks.append(mp.Task(pair, pair))
    alone = [mp.suggest(problem, [task], steps=5) for task in tasks]
    together = mp.suggest(problem, tasks, steps=5)
    assert together.curvature_at_x == pytest.approx(max(one.curvature_at_x for one in alone))
    assert together.query_loss == pytest.approx(sum(one.query_loss for one in alone) / 2)
