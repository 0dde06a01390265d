"""Branches share noise, start, steps and step sizes: what they have in common cancels, undivided by nu."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import metaprox as mp
from conftest import LAM, relative_error
from metaprox.losses import choose
from metaprox.losses.noise import Noise
from metaprox.models import mean_squared_error
from metaprox.tasks import Sinusoid
from metaprox.tasks import quadratic as closed_form

NOISE = 0.1


def noisy(own_generator):
    """The support loss has a random linear term: noise of its gradient, from torch's global generator or its own."""
    source = torch.Generator().manual_seed(5) if own_generator else None

    def loss(params, data):
        y = params["y"]
        return closed_form.loss(params, data) + NOISE * (torch.randn(y.shape[-1], generator=source, dtype=y.dtype) @ y)

    return mp.ProximalProblem(loss, closed_form.loss, LAM)


def error(problem, params, tasks, meta):
    # The closed form at the noisy solution: the noise moves y_0, and nothing else.
    out = meta(problem, params, tasks)
    curvature, center = tasks.query
    v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)
    shifted = tasks.support[0] + LAM * torch.eye(8, dtype=torch.float64)
    return relative_error(out.grad["y"], torch.linalg.solve(shifted, LAM * v).mean(0))


@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("scheme", ["symmetric", "central4"])
def test_coupled_noise_is_a_hundred_times_more_accurate_than_independent_noise(quadratic, scheme, perturb):
    _, params, tasks = quadratic
    step = {"nu": 1e-3} if perturb == "loss" else {"eps": 1e-3}
    meta = mp.FOBMAML(mp.GradientDescent(0.9), steps=60, scheme=scheme, perturb=perturb, backend="loop", **step)
    coupled = error(noisy(own_generator=False), params, tasks, meta)
    with pytest.warns(UserWarning, match=r"inner_loss gave .*, then .*: it draws from elsewhere"):
        independent = error(noisy(own_generator=True), params, tasks, meta)
    assert independent > 1  # useless
    assert coupled < independent / 100


def test_vmap_couples_noise_exactly(quadratic):
    """With v fixed, quadratic branches with the same noise differ by the perturbation alone: all noise cancels."""
    _, params, tasks = quadratic
    meta = mp.FOBMAML(mp.GradientDescent(0.9), steps=60, perturb="center", eps=1e-3)
    assert error(noisy(own_generator=False), params, tasks, meta) < 1e-9


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_noise_is_equal_in_branches_and_differs_between_tasks_and_steps(backend):
    """A loss whose gradient is its noise: what a solver sees is then the noise itself."""
    seen = {1: [], 2: []}

    class Recorder:
        def init(self, y):
            return 0

        def step(self, grad, y, state):
            if state in seen:  # the gradient before step 0 is taken from the base
                seen[state].append(grad)
            return y, state + 1

    def loss(params, data):
        return (torch.randn(3) * params["y"]).sum() + 0.0 * data.sum()

    problem = mp.ProximalProblem(loss, lambda p, d: 0.0 * p["y"].sum() + 0.0 * d.sum(), lam=1.0)
    tasks = mp.Task(torch.zeros(2, 1), torch.zeros(2, 1))
    mp.FOBMAML(mp.GradientDescent(1.0), steps=1, branch_solver=Recorder(), branch_steps=3, backend=backend)(
        problem, {"y": torch.zeros(3)}, tasks
    )
    first, second = torch.cat(seen[1]), torch.cat(seen[2])
    assert first.shape == (2, 2, 3)
    assert torch.equal(first[:, 0], first[:, 1])  # branches
    assert (first[0] - first[1]).abs().min() > 0  # tasks
    assert (first - second).abs().min() > 0  # steps


def test_residual_correction_holds_the_branches_at_a_base_that_has_not_converged(quadratic):
    """With v from a plain center difference, the corrected forward scheme is exact however bad the base is."""
    problem, params, tasks = quadratic
    meta = mp.FOBMAML(
        mp.GradientDescent(0.5),
        steps=2,
        scheme="forward",
        residual_correction=True,
        perturb="center",
        eps=1e-2,
        branch_solver=mp.GradientDescent(1.0),
        branch_steps=300,
    )
    out = meta(problem, params, tasks)
    curvature, center = tasks.query
    v = (curvature @ (out.adapted["y"] - center)[..., None]).squeeze(-1)
    shifted = tasks.support[0] + LAM * torch.eye(8, dtype=torch.float64)
    assert out.info.base_residual.min() > 0.05
    assert relative_error(out.grad["y"], torch.linalg.solve(shifted, LAM * v).mean(0)) < 1e-12


def test_correction_saves_the_branch_that_would_cancel_the_residual(quadratic):
    problem, params, tasks = quadratic
    settings = {"steps": 2, "scheme": "forward", "perturb": "center", "eps": 1e-3, "branch_steps": 5}
    plain = mp.FOBMAML(mp.GradientDescent(0.5), **settings)(problem, params, tasks)
    corrected = mp.FOBMAML(mp.GradientDescent(0.5), **settings, residual_correction=True)(problem, params, tasks)
    # On quadratics with fixed steps both are the same linear function of v.
    assert relative_error(corrected.grad["y"], plain.grad["y"]) < 1e-9
    assert plain.info.counts.support_gradients == 5 * (2 + 1 + 2 * 4)
    assert corrected.info.counts.support_gradients == 5 * (2 + 1 + 1 * 4)


def test_noise_depends_on_the_callers_seed_alone(quadratic):
    _, params, tasks = quadratic
    meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=3)

    def run(seed):
        torch.manual_seed(seed)
        return meta(noisy(own_generator=False), params, tasks).grad["y"]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


SOURCES = {
    "rand": lambda x: torch.rand(6, dtype=x.dtype),
    "dropout": lambda x: torch.nn.functional.dropout(torch.ones(40, dtype=x.dtype), 0.5),
    "permutation": lambda x: torch.randperm(40).to(x.dtype),
    "in place": lambda x: torch.empty(6, dtype=x.dtype).normal_(),
}


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_draws_inside_the_losses_repeat_in_the_branches_of_a_step_and_nowhere_else(source, correction):
    """Draws by loss and task, K = 4 base steps, B = 2 branches, J = 3 branch steps of which the first is at y_0."""
    drawn = {(role, task): [] for role in ("support", "query") for task in (0, 1)}

    def recording(role):
        def loss(params, data):
            noise = SOURCES[source](data)
            drawn[role, int(data)].append(tuple(noise.tolist()))
            return noise.mean() * (params["y"] - data).square().sum() / 100

        return loss

    problem = mp.ProximalProblem(recording("support"), recording("query"), LAM)
    meta = mp.FOBMAML(
        mp.GradientDescent(0.5), steps=4, branch_steps=3, nu=0.1, residual_correction=correction, backend="loop"
    )
    tasks = mp.Task(torch.arange(2.0), torch.arange(2.0))
    meta(problem, {"y": torch.zeros(3)}, tasks)  # the first time the losses are looked at as well
    for draws in drawn.values():
        draws.clear()
    for _ in range(2):
        meta(problem, {"y": torch.zeros(3)}, tasks)
    times = {key: sorted(Counter(draws).values()) for key, draws in drawn.items()}
    # The gradients at y_0, and two branches at two more steps; with residual correction all of them at the same noise.
    end = [1 + 2 * 2] if correction else [1, 2, 2]
    for task in (0, 1):
        assert times["support", task] == sorted(2 * ([1] * 4 + end))
        assert times["query", task] == sorted(2 * end)
    distinct = [set(draws) for draws in drawn.values()]
    assert len(set.union(*distinct)) == sum(map(len, distinct))  # nothing is shared between tasks, or the two losses


def diverging(params, data):
    return torch.rand(()) * 1e200 * params["y"].square().sum()


def raising(params, data):
    torch.rand(10)
    raise KeyError("the user's own error")


LOSSES = {
    "success": (noisy(own_generator=False).inner_loss, None),
    "raising": (raising, KeyError),
    "diverging": (diverging, mp.NonFiniteError),
}
CALLS = {
    "fobmaml": mp.FOBMAML(mp.GradientDescent(0.5), steps=3),
    "fobmaml-loop": mp.FOBMAML(mp.GradientDescent(0.5), steps=3, backend="loop"),
    "tangent": mp.Tangent(mp.GradientDescent(0.5), steps=3),
    "maml": mp.MAML(mp.GradientDescent(0.5), steps=3),
    "imaml": mp.IMAML(mp.GradientDescent(0.5), steps=3, backend="loop"),
    "fomaml": mp.FOMAML(mp.GradientDescent(0.5), steps=3, backend="loop"),
    "reptile": mp.Reptile(mp.GradientDescent(0.5), steps=3),
    "adapt": lambda problem, params, tasks: mp.adapt(
        problem, tuple(leaf[0] for leaf in tasks.support), mp.GradientDescent(0.5), steps=3, params=params
    ),
}


@pytest.mark.parametrize("outcome", LOSSES)
@pytest.mark.parametrize("name", CALLS)
def test_the_global_generator_is_left_as_if_one_number_had_been_drawn(quadratic, name, outcome):
    _, params, tasks = quadratic
    loss, error = LOSSES[outcome]
    problem = mp.ProximalProblem(loss, loss, LAM)
    torch.manual_seed(3)
    torch.randint(2**63 - 1, ())
    one_draw = torch.get_rng_state()
    torch.manual_seed(3)
    with pytest.raises(error) if error else nullcontext():
        CALLS[name](problem, params, tasks)
    assert torch.equal(torch.get_rng_state(), one_draw)


def test_the_generator_that_is_seeded_is_the_devices_own(monkeypatch):
    """Of several devices of a kind, whichever is the current one; where a kind has but one, its module seeds it."""
    seeded = []

    class One:
        def __init__(self, index):
            self.manual_seed = lambda value: seeded.append((index, value))

    several = SimpleNamespace(default_generators=(One(0), One(1)), manual_seed=One("current").manual_seed)
    for module, where, device in (
        (several, 1, torch.device("cuda", 1)),
        (SimpleNamespace(manual_seed=One("only").manual_seed), "only", torch.device("mps", 0)),
    ):
        monkeypatch.setattr(torch, "get_device_module", lambda device, module=module: module)
        with torch.random.fork_rng(devices=[]):
            Noise(0, device).set(3)
            assert seeded.pop() == (where, torch.initial_seed())
    assert not seeded


@pytest.mark.parametrize("on", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("method", ["symmetric", "tangent"])
def test_fused_dropout_of_devices_is_the_same_in_base_and_branches(method, on, monkeypatch, as_traced):
    """As nn.Dropout is there, which is another operation under two levels of vmap, and draws other numbers."""
    monkeypatch.setattr(choose, "fuses", lambda look, parameters: look.draws)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), Fused(), nn.Linear(16, 1)).double()
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in Sinusoid().batch(range(4))))
    gd = mp.GradientDescent(0.05)
    meta = mp.Tangent(gd, 5) if method == "tangent" else mp.FOBMAML(gd, 5, perturb="center", eps=1e-6)
    found = []
    for one in (
        replace(meta, backend="vmap", compile=on),
        replace(meta, backend="loop"),
        mp.Tangent(gd, 5, perturb="center"),
    ):
        torch.manual_seed(7)
        out = one(problem, problem.live_parameters(), tasks)
        found.append(torch.cat([g.flatten() for g in out.grad.values()]))
    assert relative_error(found[0], found[1]) < 1e-7
    if method == "symmetric":
        assert relative_error(found[0], found[2]) < 1e-6


class Fused(nn.Module):
    def forward(self, x):
        return torch.native_dropout(x, 0.5, True)[0]
