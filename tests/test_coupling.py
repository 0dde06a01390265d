"""Branches share noise, start, steps and step sizes: what they have in common cancels, undivided by nu."""

import pytest
import torch

import metaprox as mp
from conftest import LAM, relative_error
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


def test_generators_advance_by_one_draw(quadratic):
    _, params, tasks = quadratic
    meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=3)
    torch.manual_seed(7)
    meta(noisy(own_generator=False), params, tasks)
    after = torch.rand(4)
    torch.manual_seed(7)
    torch.randint(2**63 - 1, ())
    assert torch.equal(after, torch.rand(4))


def test_noise_depends_on_the_callers_seed_alone(quadratic):
    _, params, tasks = quadratic
    meta = mp.FOBMAML(mp.GradientDescent(0.5), steps=3)

    def run(seed):
        torch.manual_seed(seed)
        return meta(noisy(own_generator=False), params, tasks).grad["y"]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
