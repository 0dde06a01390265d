"""The outer optimizers against their formulas, and as the torch optimizers they are."""

import copy
import math

import pytest
import torch

import metaprox as mp

MAKERS = [lambda p: mp.optim.NormalizedSGD(p, lr=0.1), lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=0.05)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (4,), ()]
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def fill(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def test_normalized_sgd_is_its_formula():
    params = parameters()
    optimizer = mp.optim.NormalizedSGD(params, lr=0.3, momentum=0.8)
    x, m = flat(params), torch.zeros(11, dtype=torch.float64)
    for step in range(5):
        fill(params, step)
        m = 0.8 * m + 0.2 * flat([p.grad for p in params])
        x = x - 0.3 * m / m.norm()
        optimizer.step()
        torch.testing.assert_close(flat(params), x)


def test_clipped_sgd_is_its_formula():
    params = parameters()
    optimizer = mp.optim.ClippedSGD(params, lr=0.1, gamma=0.2)
    x = flat(params)
    for step in range(5):
        fill(params, step)
        for p in params:
            p.grad *= 10.0**-step  # long gradients first, short ones later
        g = flat([p.grad for p in params])
        x = x - min(0.1, 0.2 / g.norm().item()) * g
        optimizer.step()
        torch.testing.assert_close(flat(params), x)


@pytest.mark.parametrize(
    "make", [lambda p: mp.optim.NormalizedSGD(p, lr=0.1), lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=0.05)]
)
def test_splitting_into_groups_changes_nothing(make):
    one, split = parameters(), parameters()
    optimizers = make(one), make([{"params": split[:1]}, {"params": split[1:]}])
    for step in range(4):
        for params, optimizer in zip((one, split), optimizers, strict=True):
            fill(params, step)
            optimizer.step()
    assert torch.equal(flat(one), flat(split))


def test_groups_have_their_own_lr():
    params = parameters()
    before = flat(params[:1]), flat(params[1:])
    optimizer = mp.optim.NormalizedSGD([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], lr=0.5)
    fill(params, 0)
    optimizer.step()
    assert torch.equal(flat(params[:1]), before[0])
    g = flat([p.grad for p in params])
    torch.testing.assert_close(flat(params[1:]), before[1] - 0.5 * g[6:] / g.norm())


def test_every_step_has_length_lr_and_schedulers_set_it():
    params = parameters()
    optimizer = mp.optim.NormalizedSGD(params, lr=0.4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 4)
    for step, length in enumerate([0.4, 0.3, 0.2, 0.1, 0.0]):
        fill(params, step)
        before = flat(params)
        optimizer.step()
        schedule.step()
        assert (flat(params) - before).norm().item() == pytest.approx(length, abs=1e-12)


@pytest.mark.parametrize(
    "make", [lambda p: mp.optim.NormalizedSGD(p, lr=0.1), lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=0.05)]
)
def test_state_dict_resumes_bit_for_bit(make):
    straight, stopped = parameters(), parameters()
    first, second = make(straight), make(stopped)
    for step in range(3):
        for params, optimizer in ((straight, first), (stopped, second)):
            fill(params, step)
            optimizer.step()
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in stopped]
    third = make(resumed)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    for step in range(3, 6):
        for params, optimizer in ((straight, first), (resumed, third)):
            fill(params, step)
            optimizer.step()
    assert torch.equal(flat(straight), flat(resumed))


def test_parameters_without_gradients_are_left_alone():
    params = parameters()
    fill(params[:1], 0)
    before = flat(params[1:])
    for optimizer in (mp.optim.NormalizedSGD(params, lr=0.1), mp.optim.ClippedSGD(params, lr=0.1, gamma=1.0)):
        optimizer.step()
    assert torch.equal(flat(params[1:]), before)


@pytest.mark.parametrize(
    "make", [lambda p: mp.optim.NormalizedSGD(p, lr=0.1), lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=1.0)]
)
def test_zero_gradient_moves_nothing_and_gives_no_nan(make):
    params = parameters()
    before = flat(params)
    optimizer = make(params)
    optimizer.step()  # no gradients at all
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(flat(params), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "make", [lambda p: mp.optim.NormalizedSGD(p, lr=0.1), lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=1.0)]
)
def test_non_finite_gradient_changes_neither_parameters_nor_state(make, bad):
    params = parameters()
    optimizer = make(params)
    fill(params, 0)
    optimizer.step()
    before, state = flat(params), copy.deepcopy(optimizer.state_dict())
    params[1].grad[2] = bad
    with pytest.raises(mp.NonFiniteError, match="no parameter was changed"):
        optimizer.step()
    assert torch.equal(flat(params), before)
    after = optimizer.state_dict()["state"]
    for index, slot in state["state"].items():
        assert torch.equal(after[index]["momentum_buffer"], slot["momentum_buffer"])


def test_closure_is_called_with_gradients_on():
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = mp.optim.ClippedSGD([p], lr=0.1, gamma=100.0)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25.0
    torch.testing.assert_close(p.data, torch.tensor([2.4, 3.2]))


def test_sparse_gradients_are_refused_by_name():
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(mp.InputError, match="parameter group 0 has sparse gradients; NormalizedSGD needs dense ones"):
        mp.optim.NormalizedSGD(table.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: mp.optim.NormalizedSGD(p, lr=-1.0), "lr must be a finite number >= 0, got -1.0"),
        (lambda p: mp.optim.NormalizedSGD(p, lr=0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda p: mp.optim.ClippedSGD(p, lr=0.1, gamma=0.0), "gamma must be a finite number > 0, got 0.0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(mp.InputError, match=message):
        make(parameters())
