"""mp.check: what is wrong is found, in each of its kinds; the same mended, and healthy models, are ok."""

import numpy as np
import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import Quadratic, Sinusoid

SEEDS = range(10)
LAM = 1.0
GD = mp.GradientDescent
OF_SOLVES = ["steps", "base", "branches", "nu", "meta-gradient"]
NAMES = ["losses", "repeats", "writes", "backends", "precision", "field", *OF_SOLVES]


def classes(seed, shape=(6,), ways=3, shots=5, count=2):
    """Tasks of ``ways`` classes: noisy copies of a random template each."""
    generator = torch.Generator().manual_seed(seed)
    templates = torch.randn(count, 1, ways, *shape, generator=generator)
    inputs = (templates + 0.7 * torch.randn(count, 2 * shots, ways, *shape, generator=generator)).flatten(1, 2)
    labels = torch.arange(ways).repeat(count, 2 * shots)
    half = ways * shots
    return mp.Task((inputs[:, :half], labels[:, :half]), (inputs[:, half:], labels[:, half:]))


def net(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 3))


def problem(loss=cross_entropy, model=None, lam=2.0, **settings):
    return mp.ProximalProblem.from_module(model or net(), loss, lam, **settings)


SOLVE = (GD(0.2), 40)  # converges on ``problem()``


def test_a_healthy_problem_is_ok_in_every_respect():
    found = mp.check(problem(), classes(0), *SOLVE)
    assert [finding.name for finding in found.findings] == NAMES
    assert {finding.verdict for finding in found.findings} == {"ok"}
    assert found.ok
    assert found.tasks == 2
    found.raise_if_wrong()


# The field. ``mended``: the same without what makes it the gradient of nothing.


def semi_gradient(A, detach):
    def loss(params, data):
        y = params["y"]
        target = A @ y + data
        return 0.5 * (y - (target.detach() if detach else target)).square().sum()

    return loss


def linear(params, data):
    return params["y"] @ data


def detached(seed, size, detach):
    """The problem, its x and its task, and the exact Jacobian of its field."""
    generator = torch.Generator().manual_seed(seed)
    A = 0.5 * torch.randn(size, size, dtype=torch.float64, generator=generator)
    c, v, x = torch.randn(3, size, dtype=torch.float64, generator=generator)
    J = torch.eye(size, dtype=torch.float64) - A
    J = J if detach else J.T @ J
    return mp.ProximalProblem(semi_gradient(A, detach), linear, LAM), {"y": x}, mp.Task(c[None], v[None]), J


@pytest.mark.parametrize("seed", SEEDS)
def test_a_detached_target_is_found_and_the_same_without_detach_is_ok(seed):
    own, x, tasks, _ = detached(seed, 3, detach=True)
    found = mp.check(own, tasks, GD(0.3), 40, params=x)
    assert [finding.name for finding in found.wrong] == ["field", "meta-gradient"]
    assert "detach()" in found["field"].text
    assert "see field" in found["meta-gradient"].text
    assert found["base"].verdict == "ok"  # though the value of the loss, which is no objective, may rise
    own, x, tasks, _ = detached(seed, 3, detach=False)
    assert mp.check(own, tasks, GD(0.1), 60, params=x).ok


def test_numbers_on_a_detached_target_are_those_of_the_closed_form():
    own, x, tasks, J = detached(0, 2, detach=True)
    found = mp.check(own, tasks, GD(0.1), 300, params=x)
    v, shifted = tasks.query[0], J + LAM * torch.eye(2, dtype=torch.float64)
    g, exact = LAM * torch.linalg.solve(shifted, v), LAM * torch.linalg.solve(shifted.T, v)
    error = float((g - exact).norm() / max(g.norm(), exact.norm()))
    cosine = float(g @ exact / (g.norm() * exact.norm()))
    assert found["meta-gradient"].numbers["error"] == pytest.approx(error, rel=1e-4)
    assert np.cos(np.radians(found["meta-gradient"].numbers["angle"])) == pytest.approx(cosine, rel=1e-4)
    effect = float(((J - J.T) @ v).norm() / (shifted @ v).norm())
    assert effect / 3 < found["field"].numbers["effect"] < 3 * effect  # from three random directions


class Reversed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def adversary(broken):
    def loss(model, batch):
        inputs, labels = batch
        features = model[0](inputs).relu()
        seen = Reversed.apply(features) if broken else features
        other = nn.functional.cross_entropy(seen @ model[2].weight[:2].T, labels % 2)
        return nn.functional.cross_entropy(model[2](features), labels) + other

    return loss


def bootstrapped(broken):
    def loss(model, batch):
        values = model(batch[0]).mean(1)
        targets = 0.9 * values.roll(1) + batch[0][:, 0]
        return (values - (targets.detach() if broken else targets)).square().mean()

    return loss


def similarity(broken):
    def loss(model, batch):
        one, other = model(batch[0]), model[2](model[0](batch[0].roll(1, 1)).sin())
        return (one - (other.detach() if broken else other)).square().mean()

    return loss


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [adversary, bootstrapped, similarity])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_losses_that_are_no_gradient_are_found_in_networks(loss, activation, seed):
    model, tasks = net(seed, activation), classes(seed)
    assert mp.check(problem(loss(True), model, lam=0.5), tasks, count=1)["field"].verdict == "wrong"
    assert mp.check(problem(loss(False), model, lam=0.5), tasks, count=1)["field"].verdict == "ok"


def test_an_asymmetry_that_lam_outweighs_is_a_note():
    own, x, tasks, _ = detached(0, 3, detach=True)
    found = mp.check(mp.ProximalProblem(own.inner_loss, linear, 1e4), tasks, GD(5e-5), 20, params=x)
    assert found.ok
    assert found["field"].verdict == "note"
    assert found["field"].numbers["effect"] < 1e-3


def test_the_field_is_judged_alike_in_other_units():
    """Parameters times s: the same problem, whatever the scale of its numbers."""
    found = []
    for scale in (1e-4, 1.0, 1e5):
        own, x, tasks, _ = detached(0, 3, detach=True)

        def rescaled(params, data, loss=own.inner_loss, scale=scale):
            return loss({"y": params["y"] / scale}, data)

        units = mp.ProximalProblem(rescaled, rescaled, LAM / scale**2)
        found.append(mp.check(units, tasks, params={"y": scale * x["y"]})["field"])
    assert {finding.verdict for finding in found} == {"wrong"}
    for name in ("asymmetry", "effect"):
        assert found[0].numbers[name] == pytest.approx(found[1].numbers[name], rel=1e-5)
        assert found[2].numbers[name] == pytest.approx(found[1].numbers[name], rel=1e-5)


def test_a_gradient_that_is_not_that_of_the_value_is_noted():
    """Scaling a gradient by (1 - c) detach makes it another one, but a gradient it is."""

    def scaled(model, batch):
        loss, _ = cross_entropy(model, batch)
        return 0.3 * loss + (0.7 * loss).detach()

    found = mp.check(problem(scaled, outer_loss=cross_entropy), classes(0), GD(0.2), 80)
    assert found["field"].verdict == "note"
    assert found["field"].numbers["slope"] == pytest.approx(0.7, abs=0.01)
    assert found.ok
    found = mp.check(problem(outer_loss=scaled), classes(0), *SOLVE)
    assert found["field"].verdict == "ok"
    assert "the query loss's value has another slope" in found["meta-gradient"].text


@pytest.mark.parametrize("broken", [True, False])
def test_without_float64_the_same_is_seen_in_float32(broken):
    def narrow(model, batch):
        return similarity(broken)(model, batch).float()

    found = mp.check(problem(narrow, lam=0.5), classes(0))
    assert found["precision"].verdict == "note"
    assert "torch.float32" in found["precision"].text
    assert found["field"].verdict == ("wrong" if broken else "ok")


# The losses.


def noisy(model, batch):
    inputs, labels = batch
    drawn = torch.from_numpy(np.random.randn(*inputs.shape)).to(inputs.dtype)
    return cross_entropy(model, (inputs + 0.1 * drawn, labels))


def randomized(model, batch):
    return cross_entropy(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))


def test_noise_from_elsewhere_is_found():
    found = mp.check(problem(noisy), classes(0), mp.FOBMAML(*SOLVE, backend="loop"))
    assert [finding.name for finding in found.wrong] == ["repeats"]
    assert found["meta-gradient"].text == "not checked: first mend what is wrong (repeats)"
    found = mp.check(problem(randomized), classes(0), *SOLVE)
    assert found.ok
    assert "noise from torch's generators included" in found["repeats"].text


def noisy_gradient(model, batch):
    """Its value is the same at every call, and on the first task its gradient too."""
    loss, _ = cross_entropy(model, batch)
    weight = model[2].weight
    size = 0.0 if torch.equal(batch[0], classes(0).support[0][0]) else 0.01
    return loss + size * np.random.randn() * (weight - weight.detach()).sum()


def test_noise_in_the_gradient_of_one_task_alone_is_found():
    found = mp.check(problem(noisy_gradient, outer_loss=cross_entropy), classes(0), *SOLVE)
    assert [finding.name for finding in found.wrong] == ["repeats"]
    assert 0 < found["repeats"].numbers["difference"] < 1


live = net(1)


def writes_on_the_model(model, batch):
    with torch.no_grad():
        live[0].weight.mul_(0.99)
    return cross_entropy(model, batch)


def writes_what_is_there(model, batch):
    with torch.no_grad():
        live[0].weight.clamp_(-100, 100)
    return cross_entropy(model, batch)


def writes_on_the_tasks(model, batch):
    batch[0].sub_(0.1)
    return cross_entropy(model, batch)


def writes_on_its_parameters(model, batch):
    with torch.no_grad():
        model[0].weight.clamp_(-0.1, 0.1)
    return cross_entropy(model, batch)


def test_writing_is_found_and_the_tasks_are_spared():
    for loss in (writes_on_the_model, writes_what_is_there):
        found = mp.check(problem(loss, live), classes(0))
        assert found["writes"].verdict == "wrong"
        assert "'0.weight' of the model itself" in found["writes"].text
    tasks = classes(0)
    found = mp.check(problem(writes_on_the_tasks), tasks)
    assert "tasks.support[0], tasks.query[0] itself" in found["writes"].text
    assert torch.equal(tasks.support[0], classes(0).support[0])
    assert mp.check(problem(writes_on_its_parameters), classes(0))["writes"].verdict == "note"
    norm = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    found = mp.check(problem(model=norm), classes(0))
    assert found["writes"].verdict == "ok"
    assert "1.num_batches_tracked" in found["writes"].text
    assert int(norm[1].num_batches_tracked) == 0


class Sine(torch.autograd.Function):
    """Under vmap it is right, or half of it."""

    @staticmethod
    def forward(x, half):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos(), None

    @staticmethod
    def vmap(info, in_dims, x, half):
        return Sine.apply(x, half) * (0.5 if half else 1.0), in_dims[0]


def sines(half):
    return lambda model, batch: nn.functional.cross_entropy(model[2](Sine.apply(model[0](batch[0]), half)), batch[1])


def item(model, batch):
    loss, _ = cross_entropy(model, batch)
    return loss * (1.0 if loss.item() < 1e9 else 2.0)


@pytest.mark.parametrize(("loss", "words"), [(sines(True), "value differs from that of the loop"), (item, "item")])
def test_what_vmap_gets_wrong_or_can_not_take_is_found(loss, words):
    vmapped, auto = (mp.FOBMAML(*SOLVE, backend=backend) for backend in ("vmap", "auto"))
    found = mp.check(problem(loss), classes(0), vmapped)
    assert [finding.name for finding in found.wrong] == ["backends"]
    assert words in found["backends"].text
    assert found["field"].verdict == "ok"
    found = mp.check(problem(loss), classes(0), auto)
    assert found.ok
    assert found["backends"].text.endswith("the loop is taken")
    assert mp.check(problem(sines(False)), classes(0), vmapped)["backends"].verdict == "ok"


def test_second_derivatives_that_vmap_gets_wrong_are_noted_and_for_maml_wrong():
    scripted = torch.jit.script(net())
    assert mp.check(problem(model=scripted), classes(0), *SOLVE)["backends"].verdict == "note"
    found = mp.check(problem(model=scripted), classes(0), mp.MAML(GD(0.2), 5, backend="vmap"))
    assert [finding.name for finding in found.wrong] == ["backends"]


def test_what_is_no_loss_is_a_finding_and_other_errors_are_the_users():
    other = net(1)
    found = mp.check(problem(lambda model, batch: (other(batch[0]) + model(batch[0])).mean()), classes(0), *SOLVE)
    assert [finding.name for finding in found.wrong] == ["losses"]
    assert "would get no gradient" in found["losses"].text
    assert "not checked: repeats, backends, precision, field, steps" in str(found)
    found = mp.check(problem(lambda model, batch: (model(batch[0]) - 1e3).log().mean()), classes(0))
    assert "not finite at x, on task 0 and 1 more" in found["losses"].text
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        mp.check(problem(lambda model, batch: model(batch[0][:, :2]).mean()), classes(0))


# The solves.


def test_steps_that_are_too_long_are_found():
    found = mp.check(problem(lam=10.0), classes(0), GD(0.2), 5)
    assert [finding.name for finding in found.wrong] == ["steps"]
    assert "take a step below 0.1, or lam below 5" in found["steps"].text
    assert found["field"].verdict == "ok"
    assert found["base"].text == "not checked: first mend what is wrong (steps)"
    stiff = lambda params, data: 10 * (params["y"] - data).square().sum()  # noqa: E731  curvature 20
    tasks, x = mp.Task(torch.ones(1, 4), torch.zeros(1, 4)), {"y": torch.full((4,), 3.0)}
    found = mp.check(mp.ProximalProblem(stiff, stiff, lam=1.0), tasks, mp.FOMAML(GD(0.1), 5), params=x)
    assert found["steps"].verdict == found["base"].verdict == "wrong"
    assert found["steps"].numbers["step_times_curvature"] == pytest.approx(2.1, rel=1e-6)
    assert "raised its objective" in found["base"].text
    assert mp.check(mp.ProximalProblem(stiff, stiff, lam=1.0), tasks, GD(0.04), 40, params=x).ok
    found = mp.check(mp.ProximalProblem(stiff, stiff, lam=1.0), tasks, mp.FOMAML(GD(0.04), 40), params=x)
    assert found.ok
    assert found["steps"].numbers["step_times_curvature"] == pytest.approx(0.84, rel=1e-6)


def test_a_base_that_does_not_move_or_converge_is_found():
    assert mp.check(problem(), classes(0), GD(1e-10), 5)["base"].verdict == "wrong"
    found = mp.check(problem(), classes(0), GD(0.2), 2)
    assert found["base"].verdict == found["meta-gradient"].verdict == "note"
    assert found.ok
    assert found["meta-gradient"].numbers["error_of_longer"] < 0.1 < found["meta-gradient"].numbers["error"]
    exact = mp.FOBMAML(GD(0.2), 2, branch_solver=mp.Anderson(0.2), branch_steps=20)  # of a y_0 that is far from solved
    found = mp.check(problem(), classes(0), exact)
    assert found["meta-gradient"].verdict == "note"
    assert found.ok
    found = mp.check(problem(), classes(0), mp.MAML(GD(0.2), 2))
    assert found["base"].verdict == found["meta-gradient"].verdict == "ok"
    assert found["meta-gradient"].numbers["error"] < 1e-5


def test_an_overflow_is_a_finding():
    cubic = lambda params, data: (params["y"] - data).pow(4).sum()  # noqa: E731
    tasks, x = mp.Task(torch.ones(1, 2), torch.ones(1, 2)), {"y": torch.full((2,), 30.0)}
    found = mp.check(mp.ProximalProblem(cubic, cubic, lam=1.0), tasks, GD(0.1), 30, params=x)
    assert [finding.name for finding in found.wrong] == ["base"]
    assert "non-finite at step" in found["base"].text
    assert found["field"].verdict == "ok"


def bowl(curvature):
    return lambda params, data: 0.5 * curvature * (params["y"] - data).square().sum()


def test_branches_without_a_minimum_are_found():
    own = mp.ProximalProblem(bowl(1.0), bowl(50.0), lam=0.5)
    tasks, x = mp.Task(torch.ones(1, 4), torch.zeros(1, 4)), {"y": torch.full((4,), 3.0)}
    found = mp.check(own, tasks, mp.FOBMAML(GD(0.05), 15, nu=0.5), params=x)
    assert found["branches"].verdict == "wrong"
    assert found["branches"].numbers["of_inner"] == pytest.approx(1.5, rel=1e-6)
    assert found["branches"].numbers["of_query"] == pytest.approx(-25.0, rel=1e-6)
    for mended in ({"nu": 0.001}, {"perturb": "center"}):
        assert mp.check(own, tasks, mp.FOBMAML(GD(0.3), 60, **mended), params=x)["branches"].verdict == "ok"
    found = mp.check(own, tasks, mp.FOBMAML(GD(0.05), 2000, nu=0.5), params=x)
    assert [finding.name for finding in found.wrong] == ["branches"]
    assert "non-finite at step" in found["branches"].text
    own = mp.ProximalProblem(lambda params, data: -bowl(1.0)(params, data), bowl(1.0), lam=0.5)
    assert mp.check(own, tasks, GD(0.1), 5, params=x)["branches"].verdict == "note"


def test_a_difference_that_is_too_short_or_too_long_is_found():
    found = mp.check(problem(), classes(0), mp.FOBMAML(*SOLVE, nu=1e-7))
    assert [finding.name for finding in found.wrong] == ["nu"]
    assert "too short" in found["nu"].text
    found = mp.check(problem(), classes(0), mp.FOBMAML(*SOLVE, scheme="forward", nu=100.0))
    assert found["nu"].verdict == "wrong"
    assert "too long" in found["nu"].text
    assert "see nu" in found["meta-gradient"].text
    assert mp.check(problem(), classes(0), mp.FOBMAML(*SOLVE, nu=0.01))["nu"].verdict == "ok"


@pytest.mark.parametrize("solver", [mp.Anderson(0.2), mp.AdaptiveGradientDescent(0.2)])
def test_solvers_that_converge_to_rounding_are_held_to_a_quarter_of_nu(solver):
    family = Quadratic(dim=6, condition=10.0, seed=1)
    x = {"y": torch.ones(6, dtype=torch.float64)}
    found = mp.check(family.problem(0.5), family.batch(range(2)), solver, 60, params=x)
    assert {finding.verdict for finding in found.findings} == {"ok"}
    assert "a quarter of nu" in found["nu"].text


class Scaled(mp.FOBMAML):
    factor = 0.5

    def _estimate(self, gradients, keep_adapted):
        result = super()._estimate(gradients, keep_adapted)
        result.grad.mul_(self.factor)
        return result


class Reverted(Scaled):
    factor = -1.0


def test_a_wrong_estimator_is_found():
    found = mp.check(problem(), classes(0), Scaled(*SOLVE))
    assert [finding.name for finding in found.wrong] == ["meta-gradient"]
    assert "2 times as steep as Scaled says, 0 degrees off" in found["meta-gradient"].text
    found = mp.check(problem(), classes(0), Reverted(*SOLVE))
    assert "rises along -g" in found["meta-gradient"].text


@pytest.mark.parametrize(
    ("estimator", "verdict"),
    [
        (mp.FOBMAML(*SOLVE, scheme="forward", residual_correction=True), "ok"),
        (mp.FOBMAML(*SOLVE, perturb="center", branch_solver=mp.Anderson(0.2), branch_steps=12), "ok"),
        (mp.FOBMAML(GD(0.2), tol=1e-5, max_steps=60), "ok"),
        (mp.Tangent(*SOLVE), "ok"),
        (mp.IMAML(*SOLVE, cg_steps=20), "ok"),
        (mp.FOMAML(*SOLVE), "note"),
        (mp.Reptile(*SOLVE), "note"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_estimator_is_judged_with_its_own_settings(estimator, verdict):
    found = mp.check(problem(adapt="2.*" if not isinstance(estimator, mp.Reptile) else None), classes(0), estimator)
    assert found.ok
    assert found["meta-gradient"].verdict == verdict


# Healthy networks.


def conv():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_networks_are_ok(seed):
    torch.manual_seed(seed)
    pictures = problem(model=conv(), lam=0.5)
    assert mp.check(pictures, classes(seed, (1, 6, 6)), GD(0.1), 5, count=1).ok
    assert mp.check(problem(model=mlp([6, 32, 32, 3], seed), lam=0.5), classes(seed), GD(0.1), 5, count=1).ok
    sinusoid = problem(mean_squared_error, mlp([1, 40, 40, 1], seed), lam=0.5)
    assert mp.check(sinusoid, Sinusoid(seed=seed).batch([0, 1]), GD(0.01), 10, count=1).ok


# What a call promises.


def test_nothing_is_written_on_and_verdicts_repeat():
    model, tasks = conv(), classes(0, (1, 6, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copies = [leaf.clone() for half in tasks for leaf in half]
    own = problem(model=model)
    with torch.inference_mode():
        found = mp.check(own, tasks, mp.FOBMAML(GD(0.05), 10))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(map(torch.equal, copies, (leaf for half in tasks for leaf in half)))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert own.cache == {}
    again = mp.check(own, tasks, mp.FOBMAML(GD(0.05), 10))
    assert str(again) == str(found)


def test_tasks_of_unequal_shapes_micro_batches_and_frozen_parameters():
    one, other = (mp.Task(*(tuple(leaf[task] for leaf in half) for half in classes(0))) for task in (0, 1))
    pieces = mp.MicroBatches(
        [tuple(leaf[:6] for leaf in one.support), tuple(leaf[6:] for leaf in one.support)], [0.4, 0.6]
    )
    cut = mp.Task(tuple(leaf[:12] for leaf in other.support), other.query)
    model = net()
    model[0].requires_grad_(False)
    found = mp.check(problem(model=model), [mp.Task(pieces, one.query), cut], *SOLVE)
    assert {finding.verdict for finding in found.findings} == {"ok"}
    assert "not tensors of equal shapes" in found["backends"].text


def test_without_a_solver_the_losses_alone_are_checked():
    found = mp.check(problem(), classes(0))
    assert found.ok
    assert [finding.name for finding in found.findings if "no solver was given" in finding.text] == OF_SOLVES
    assert str(found).splitlines()[-1] == f"not checked: {', '.join(OF_SOLVES)}; no solver was given"


def test_a_verdict_is_readable_and_can_be_raised():
    own, x, tasks, _ = detached(0, 3, detach=True)
    found = mp.check(own, tasks, params=x)
    lines = str(found).splitlines()
    assert lines[0] == "Check on 1 task: 1 wrong, no notes."
    assert max(map(len, lines)) <= 110
    assert next(line for line in lines if line.startswith("WRONG")).startswith("WRONG  field")
    with pytest.raises(mp.MetaproxError, match="field: what the inner loss hands out"):
        found.raise_if_wrong()
    with pytest.raises(KeyError, match="losses, repeats, writes"):
        found["fields"]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {"steps": 3}, "steps belongs to a solver, but no solver was given"),
        ((mp.MAML(GD(0.1), 5), 3), {}, "but MAML has settings of its own"),
        ((GD(0.1),), {}, "say when the inner solve ends"),
        ((GD(0.1), 5), {"count": 0}, "count must be an integer >= 1"),
        ((GD(0.1), 5), {"params": {"w": torch.ones(1)}}, "the model has no parameter 'w'"),
    ],
)
def test_bad_arguments_are_refused(arguments, settings, message):
    with pytest.raises(mp.InputError, match=message):
        mp.check(problem(), classes(0), *arguments, **settings)
    with pytest.raises(mp.InputError, match="lam must be"):
        mp.check(problem(lam=0.0), classes(0), *SOLVE)
