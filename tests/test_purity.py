"""Nothing of the user's is written on: parameters, gradients, data, modules, generators; also when a loss raises."""

import gc

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid


def snapshot(model, tasks):
    return [t.clone() for t in (*model.state_dict().values(), *tasks.support, *tasks.query)]


def equal(model, tasks, before):
    return all(
        torch.equal(a, b)
        for a, b in zip(before, (*model.state_dict().values(), *tasks.support, *tasks.query), strict=True)
    )


@pytest.fixture
def case():
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, Sinusoid().batch(range(3))


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_pure_call_changes_nothing(case, backend):
    model, tasks = case
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    before = snapshot(model, tasks)
    mp.FOBMAML(mp.GradientDescent(0.01), steps=3, backend=backend)(problem, dict(model.named_parameters()), tasks)
    assert equal(model, tasks, before)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("at_call", [1, 4, 9, 14])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_loss_that_raises_half_way_leaves_everything_as_it_was(case, backend, at_call):
    model, tasks = case
    calls = 1000  # none fails while the losses are looked at

    def failing(module, batch):
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise KeyError("the user's own error")
        return mean_squared_error(module, batch)

    problem = mp.ProximalProblem.from_module(model, failing, lam=0.5)
    mp.FOBMAML(mp.GradientDescent(0.01), steps=5, perturb="loss", backend=backend)(
        problem, problem.live_parameters(), tasks
    )
    calls = 0
    before = snapshot(model, tasks)
    generator = torch.get_rng_state()
    kept = [torch.full_like(p, 3.0) for p in model.parameters()]
    for p, g in zip(model.parameters(), kept, strict=True):
        p.grad = g.clone()
    with pytest.raises(KeyError, match="the user's own error"):
        mp.FOBMAML(mp.GradientDescent(0.01), steps=5, perturb="loss", backend=backend).backward(problem, tasks)
    assert calls == at_call
    assert equal(model, tasks, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True))
    torch.set_rng_state(generator)
    torch.randint(2**63 - 1, ())
    one_draw = torch.get_rng_state()
    torch.set_rng_state(generator)
    calls = at_call - 1
    with pytest.raises(KeyError):
        mp.FOBMAML(mp.GradientDescent(0.01), steps=5, perturb="loss", backend=backend).backward(problem, tasks)
    assert torch.equal(torch.get_rng_state(), one_draw)


def test_backward_accumulates_into_grad():
    model = mlp([1, 8, 1])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    tasks = Sinusoid().batch(range(3))
    meta = mp.FOBMAML(mp.GradientDescent(0.01), steps=3)
    pure = meta(problem, dict(model.named_parameters()), tasks).grad
    out = meta.backward(problem, tasks)
    assert out.adapted is None
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, pure[name])
    first = {name: p.grad for name, p in model.named_parameters()}
    meta.backward(problem, tasks)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 2 * pure[name])
        assert p.grad.data_ptr() != pure[name].data_ptr()
        assert first[name] is not None


def test_results_do_not_share_memory_with_the_parameters():
    w = torch.zeros(2)
    loss = lambda params, data: ((params["w"] - data) ** 2).sum()  # noqa: E731
    out = mp.FOBMAML(mp.GradientDescent(0.1), steps=2)(
        mp.ProximalProblem(loss, loss, 1.0), {"w": w}, mp.Task(torch.ones(1, 2), torch.ones(1, 2))
    )
    out.grad["w"].fill_(9.0)
    out.adapted["w"].fill_(9.0)
    assert torch.equal(w, torch.zeros(2))


def test_no_graph_is_kept():
    model = mlp([1, 8, 1])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    for backend in ("vmap", "loop"):
        out = mp.FOBMAML(mp.GradientDescent(0.01), steps=3, backend=backend)(
            problem, dict(model.named_parameters()), Sinusoid().batch(range(2))
        )
        tensors = [*out.grad.values(), *out.adapted.values(), out.query_loss, out.info.base_residual]
        assert not any(t.requires_grad for t in tensors)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("method", [mp.FOBMAML, mp.MAML, mp.IMAML])
def test_no_tensor_waits_for_the_garbage_collector(method, backend):
    """What a call made is freed when it ends: nothing of it lies in a reference cycle."""
    model, tasks = mlp([1, 8, 1]), Sinusoid().batch(range(3))
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    meta = method(mp.GradientDescent(0.01), steps=3, backend=backend)
    meta.backward(problem, tasks)
    mp.Monitor.anew(problem)

    def tensors():
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        meta.backward(problem, tasks)
        mp.Monitor.anew(problem)  # which keeps a few numbers a task until it has looked at them
        assert tensors() == before
    finally:
        gc.enable()
