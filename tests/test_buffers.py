"""The policy for a module's state: a snapshot of its buffers for every evaluation, its modes as the user sets them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import metaprox as mp
from conftest import relative_error
from metaprox.models import mean_squared_error

LAM = 1.0
META = mp.FOBMAML(mp.GradientDescent(0.2), steps=6, nu=1e-3)
METHODS = {
    "fobmaml": META,
    "fobmaml-center": mp.FOBMAML(mp.GradientDescent(0.2), steps=6, perturb="center"),
    "maml": mp.MAML(mp.GradientDescent(0.2), steps=6),
    "imaml": mp.IMAML(mp.GradientDescent(0.2), steps=6),
    "fomaml": mp.FOMAML(mp.GradientDescent(0.2), steps=6),
    "reptile": mp.Reptile(mp.GradientDescent(0.2), steps=6),
}
CALLS = {"vmap": 3, "loop": 7}  # of the loss, in a call that then raises: within the inner solve


class Counted(nn.Module):
    """A buffer that is not in the state dict, and grows with every forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.passes += 1
        return x * self.passes


def network():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(2, 4), norm, nn.Tanh(), Counted(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model[4].eval()
    model[4].bias.requires_grad_(False)
    return model


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        return network()


@pytest.fixture
def tasks():
    rng = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randn(2, 3, 6, width, generator=rng) for width in (2, 1))
    return mp.Task(*zip(inputs, targets, strict=True))


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state(model):
    """All that a module holds: values as copies, and which objects hold them."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: t.detach().clone() for name, t in tensors},
        "objects": {name: (id(t), t.data_ptr(), t.requires_grad, t._version) for name, t in tensors},
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": {name: [dict(getattr(m, hooks)) for hooks in HOOKS] for name, m in model.named_modules()},
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
    }


def assert_same(one, other):
    torch.testing.assert_close(one.pop("values"), other.pop("values"), rtol=0, atol=0, equal_nan=True)
    assert one == other


@pytest.fixture(params=["vmap", "loop"])
def backend(request):
    return request.param


@pytest.fixture(params=METHODS)
def meta(request, backend):
    return replace(METHODS[request.param], backend=backend)


def test_a_call_leaves_all_of_the_module_as_it_was_but_the_gradients(meta, model, tasks):
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(len(args)))
    before = state(model)
    meta.backward(mp.ProximalProblem.from_module(model, mean_squared_error, LAM), tasks)
    assert_same(state(model), before)
    assert len(seen) > 6  # the hook was there all the time
    assert model[4].bias.grad is None
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert not any(p.grad.requires_grad for p in model.parameters() if p.requires_grad)


def test_a_call_that_raises_leaves_all_of_the_module_as_it_was(meta, model, tasks, backend):
    calls = 1000  # none fails while the losses are looked at

    def failing(module, batch):
        nonlocal calls
        value = mean_squared_error(module, batch)  # the buffers have been written on when it raises
        calls += 1
        if calls == CALLS[backend]:
            raise KeyError("the user's own error")
        return value

    problem = mp.ProximalProblem.from_module(model, failing, LAM)
    meta(problem, problem.live_parameters(), tasks)
    calls = 0
    before = state(model)
    with pytest.raises(KeyError, match="the user's own error"):
        meta.backward(problem, tasks)
    assert calls == CALLS[backend]
    assert_same(state(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_diverging_solve_leaves_all_of_the_module_as_it_was(meta, model, tasks):
    def steep(module, batch):
        return 1e3 * mean_squared_error(module, batch) + 1e6 * sum(
            p.square().sum() for p in module.parameters() if p.requires_grad
        )

    before = state(model)
    kept = [torch.full_like(p, 3.0) for p in model.parameters()]
    for p, g in zip(model.parameters(), kept, strict=True):
        p.grad = g.clone()
    with pytest.raises(mp.NonFiniteError):
        replace(meta, steps=20).backward(mp.ProximalProblem.from_module(model, steep, LAM), tasks)
    assert_same(state(model), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_nets_keep_no_weights_of_a_solve(kind, backend):
    """They cache their weights in a list, which functional_call leaves behind; a copy or a pass renews it."""

    def loss(module, batch):
        return module(batch)[0].square().mean()

    model = kind(2, 3, batch_first=True).double()
    batch = torch.randn(2, 4, 5, 2, dtype=torch.float64)
    outputs = model(batch[0])[0]
    meta = replace(META, backend=backend)
    meta.backward(mp.ProximalProblem.from_module(model, loss, LAM), mp.Task(batch, batch))
    assert torch.equal(copy.deepcopy(model)(batch[0])[0], outputs)
    assert torch.equal(model(batch[0])[0], outputs)
    assert all(cached is p for cached, p in zip(model._flat_weights, model.parameters(), strict=True))


def test_adapt_and_evaluate_leave_all_of_the_module_as_it_was(model, tasks, backend):
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    before = state(model)
    mp.adapt(problem, tuple(leaf[0] for leaf in tasks.support), mp.GradientDescent(0.2), steps=6)
    mp.evaluate(problem, lambda ids: tasks, range(3), mp.GradientDescent(0.2), steps=6, backend=backend)
    assert_same(state(model), before)


def test_every_evaluation_starts_from_the_same_buffers(model, tasks, backend):
    """The counter is 1 in each forward pass of a call: equal to a model that multiplies by 1."""
    plain = network()
    plain[3] = nn.Identity()
    meta = replace(META, backend=backend)
    for _ in range(2):
        grads = []
        for module in (model, plain):
            module.zero_grad()
            meta.backward(mp.ProximalProblem.from_module(module, mean_squared_error, LAM), tasks)
            grads.append([p.grad for p in module.parameters() if p.requires_grad])
        torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_buffers_are_those_of_the_moment_of_the_call(model, tasks, backend):
    """What the user writes on buffers between two calls counts in the second one."""
    model.eval()
    meta = replace(META, backend=backend)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)

    def gradient():
        return meta(problem, problem.live_parameters(), tasks).grad["0.weight"]

    first = gradient()
    model[1].running_var.mul_(4.0)
    assert relative_error(gradient(), first) > 0.01
    model[1].running_var.div_(4.0)
    assert torch.equal(gradient(), first)


def normalized(params, inputs, statistics=None):
    """BatchNorm1d on a linear layer, and a linear readout; ``statistics`` are of the batch unless given."""
    h = inputs @ params["0.weight"].T + params["0.bias"]
    mean, var = (h.mean(0), h.var(0, correction=0)) if statistics is None else statistics
    h = (h - mean) / (var + 1e-5).sqrt() * params["1.weight"] + params["1.bias"]
    return h.tanh() @ params["3.weight"].T + params["3.bias"]


def test_train_on_the_support_and_eval_on_the_query_are_the_users_choice(tasks, backend):
    """Batch statistics in the inner problem; in the outer one the running ones of the model, which no solve moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    model[1].running_mean.fill_(0.2)
    model[1].running_var.fill_(0.7)
    tasks = mp.Task(*(tuple(leaf.double() / 2 for leaf in part) for part in tasks))
    statistics = model[1].running_mean.clone(), model[1].running_var.clone()

    def support(module, batch):
        return mean_squared_error(module.train(), batch)

    def query(module, batch):
        return mean_squared_error(module.eval(), batch)

    def support_by_hand(params, batch):
        return (normalized(params, batch[0]) - batch[1]).square().mean()

    def query_by_hand(params, batch):
        return (normalized(params, batch[0], statistics) - batch[1]).square().mean()

    problem = mp.ProximalProblem.from_module(model, support, 2.0, query)
    params = problem.live_parameters()
    by_hand = mp.ProximalProblem(support_by_hand, query_by_hand, 2.0)
    meta = mp.FOBMAML(mp.Anderson(0.2), steps=30, scheme="central4", backend=backend)
    out = meta(problem, params, tasks)
    truth = mp.exact_meta_gradient(by_hand, params, tasks)
    for name, grad in truth.grad.items():
        torch.testing.assert_close(out.grad[name], grad, rtol=1e-7, atol=1e-9)
    assert torch.equal(model[1].running_mean, statistics[0])
    assert torch.equal(model[1].running_var, statistics[1])
    assert int(model[1].num_batches_tracked) == 0


def test_statistics_of_a_part_that_tasks_share(model, tasks, backend):
    """The buffers are written on under vmap, though the first of the parameters is the same for all tasks."""
    grads = []
    for name in (backend, "loop"):
        problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM, adapt="6.*")
        grads.append(replace(META, backend=name)(problem, problem.live_parameters(), tasks).grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
