"""The outer optimizers against their formulas, and as the torch optimizers they are."""

import copy
import math

import pytest
import torch

import metaprox as mp
from metaprox.vectors.norms import joint_norm, norm

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


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-22, 1e-12, 1e12, 1e20, 1e37])
def test_steps_have_their_length_whatever_the_units_of_the_gradient(size):
    """Squares of such numbers vanish or overflow in float32."""
    unit = torch.tensor([0.0, 3.0, -4.0, 0.0]) / 5
    clipped = [lambda p: mp.optim.ClippedSGD(p, lr=3e38, gamma=0.5)] if size > 1e-38 else []  # else it is shorter
    for make in (lambda p: mp.optim.NormalizedSGD(p, lr=0.5), *clipped):
        params = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))]
        optimizer = make(params)
        params[0].grad, params[1].grad = (unit * 5 * size).split(2)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        largest_error = 0.2 if size < 1e-40 else 1e-6  # subnormal numbers have few digits
        torch.testing.assert_close(flat(params), -0.5 * unit, rtol=0, atol=largest_error)
        assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True))


def test_a_short_gradient_is_not_clipped_in_any_units():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3e-22, -4e-22])
    mp.optim.ClippedSGD([p], lr=1e21, gamma=1.0).step()
    torch.testing.assert_close(p.data, torch.tensor([-0.3, 0.4]))


def test_norms_neither_overflow_nor_vanish():
    for dtype, sizes in ((torch.float32, (1e-30, 1.0, 1e30)), (torch.float64, (1e-250, 1.0, 1e250))):
        for size in sizes:
            vectors = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype) * size
            torch.testing.assert_close(norm(vectors), torch.tensor([[5.0 * size], [0.0]], dtype=dtype))
            scale, value = joint_norm([vectors, vectors.new_full((1,), 12 * size), vectors.new_empty(0)])
            assert scale * value == pytest.approx(13 * size, rel=1e-6)
    assert norm(torch.tensor([[1.0, math.nan], [math.inf, 1.0]])).tolist()[1] == [math.inf]
    assert norm(torch.tensor([[1.0, math.nan], [math.inf, 1.0]]))[0].isnan()
    assert joint_norm([]) == (1.0, 0.0)


def test_norms_of_long_vectors_are_taken_a_block_at_a_time(monkeypatch):
    vectors = torch.randn(3, 2, 1000, dtype=torch.float64)
    whole = norm(vectors)
    monkeypatch.setattr("metaprox.vectors.norms.BLOCK", 64)
    torch.testing.assert_close(norm(vectors), whole)
    torch.testing.assert_close(whole, vectors.norm(dim=-1, keepdim=True))


def test_a_bad_momentum_buffer_is_named_and_changes_nothing():
    params = parameters()
    optimizer = mp.optim.NormalizedSGD(params, lr=0.1)
    fill(params, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][1]["momentum_buffer"][0] = math.nan
    optimizer.load_state_dict(saved)
    before, state = flat(params), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(mp.NonFiniteError, match="the momentum buffer of parameter 1 of group 0 has an entry of nan"):
        optimizer.step()
    assert torch.equal(flat(params), before)
    for index, slot in optimizer.state_dict()["state"].items():
        torch.testing.assert_close(slot["momentum_buffer"], state[index]["momentum_buffer"], equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "settings", "bad", "message"),
    [
        (mp.optim.NormalizedSGD, {}, {"lr": -1.0}, "lr of parameter group 1 must be a finite number >= 0, got -1.0"),
        (mp.optim.NormalizedSGD, {}, {"momentum": 2.0}, r"momentum of parameter group 1 must lie in \[0, 1\), got 2.0"),
        (mp.optim.NormalizedSGD, {}, {"lr": math.nan}, "lr of parameter group 1 must be a finite number"),
        (mp.optim.ClippedSGD, {"gamma": 1.0}, {"lr": -1.0}, "lr of parameter group 1 must be"),
        (mp.optim.ClippedSGD, {"gamma": 1.0}, {"gamma": 0.0}, "gamma of parameter group 1 must be"),
    ],
)
def test_settings_of_groups_are_checked_when_made_and_at_every_step(kind, settings, bad, message):
    params = parameters()
    with pytest.raises(mp.InputError, match=message):
        kind([{"params": params[:1]}, {"params": params[1:], **bad}], lr=0.1, **settings)
    optimizer = kind([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, **settings)
    optimizer.param_groups[1].update(bad)
    fill(params, 0)
    before = flat(params)
    with pytest.raises(mp.InputError, match=message):
        optimizer.step()
    assert torch.equal(flat(params), before)
    assert not optimizer.state


def test_a_learning_rate_may_be_a_tensor():
    one, other = parameters(), parameters()
    for params, lr in ((one, 0.1), (other, torch.tensor(0.1, dtype=torch.float64))):
        fill(params, 0)
        mp.optim.NormalizedSGD(params, lr=lr).step()
    assert torch.equal(flat(one), flat(other))
