"""Calls from several threads on one model: each is as it is alone, the model and the generators as after all."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.losses.noise import coupled_noise
from metaprox.models import mean_squared_error

GD = mp.GradientDescent(0.1)


def network(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Linear(3, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
    return nn.Sequential(*layers).double()


def batch(seed, tasks=2):
    rng = torch.Generator().manual_seed(seed)
    part = lambda: tuple(torch.randn(tasks, 8, n, generator=rng, dtype=torch.float64) for n in (3, 1))  # noqa: E731
    return mp.Task(part(), part())


def support(seed):
    return tuple(leaf[0] for leaf in batch(seed).support)


WORK = {
    "adapt": lambda problem, seed: mp.adapt(problem, support(seed), GD, 10),
    "loop": lambda problem, seed: (
        mp.FOBMAML(GD, 5, backend="loop")(problem, problem.live_parameters(), batch(seed)).grad
    ),
    "vmap": lambda problem, seed: (
        mp.FOBMAML(GD, 5, backend="vmap")(problem, problem.live_parameters(), batch(seed)).grad
    ),
    "maml": lambda problem, seed: mp.MAML(GD, 5)(problem, problem.live_parameters(), batch(seed)).grad,
    "evaluate": lambda problem, seed: mp.evaluate(problem, lambda ids: batch(seed), range(2), GD, 5).values,
}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("work", WORK)
def test_calls_in_threads_are_as_they_are_alone_and_the_model_serves_meanwhile(work):
    model = network()
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(5, 3, dtype=torch.float64)
    predicted = model(inputs)
    alone = [WORK[work](problem, seed) for seed in range(3)]
    done = threading.Event()

    def predict():
        while not done.is_set():
            assert torch.equal(model(inputs), predicted)
        return True

    with ThreadPoolExecutor(4) as pool:
        serving = pool.submit(predict)
        found = [pool.submit(lambda seed=seed: [WORK[work](problem, seed) for _ in range(6)]) for seed in range(3)]
        results = [future.result() for future in found]
        done.set()
        assert serving.result()
    for seed, several in enumerate(results):
        assert all(equal(one, alone[seed]) for one in several)
    assert equal(model.state_dict(), before)


def test_noise_is_coupled_in_every_thread_and_the_generator_is_as_after_as_many_draws():
    """With noise of other threads between, the difference of branches would be that noise divided by nu = 1e-6."""
    problem = mp.ProximalProblem.from_module(network(dropout=0.5), mean_squared_error, 0.5)
    meta = mp.FOBMAML(GD, 5, nu=1e-6, backend="loop")
    bound = 10 * mp.FOMAML(GD, 5, backend="loop")(problem, problem.live_parameters(), batch(0)).grad["0.weight"].norm()
    torch.manual_seed(1)
    for _ in range(2 * 5):
        torch.randint(2**63 - 1, ())
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with ThreadPoolExecutor(2) as pool:
        work = lambda seed: [meta(problem, problem.live_parameters(), batch(seed)).grad for _ in range(5)]  # noqa: E731
        grads = [grad for several in pool.map(work, range(2)) for grad in several]
    assert torch.equal(torch.get_rng_state(), after)
    assert all(grad["0.weight"].norm() < bound for grad in grads)


def test_a_call_within_a_loss_is_coupled_and_leaves_the_evaluations_noise_as_after_one_draw():
    draws = []

    def loss(params, data):
        before = torch.get_rng_state()
        with coupled_noise(torch.device("cpu")) as noise, noise.of(3):
            draws.append((noise.seed, float(torch.rand(()))))
        expected = torch.get_rng_state()
        torch.set_rng_state(before)
        torch.randint(2**63 - 1, ())
        assert torch.equal(torch.get_rng_state(), expected)
        return (params["w"] - data).square().sum()

    problem = mp.ProximalProblem(loss, loss, 1.0)
    tasks = mp.Task(torch.ones(1, 2), torch.ones(1, 2))
    meta = mp.FOBMAML(GD, 1, branch_steps=2, perturb="center", backend="loop")
    meta(problem, {"w": torch.zeros(2)}, tasks)
    draws.clear()
    meta(problem, {"w": torch.zeros(2)}, tasks)
    assert len(draws) == 5  # a base step, both gradients at y_0, and two branches at a step, which see the same
    assert len(set(draws)) == 4
