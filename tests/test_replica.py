"""The model that a loss sees: a replica, whatever the loss does with it; the live one is never written on."""

import functools
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import metaprox as mp
from conftest import relative_error
from metaprox.models import mean_squared_error
from metaprox.modules.replica import Replica

GD = mp.GradientDescent(0.2)
METHODS = {
    "fobmaml": mp.FOBMAML(GD, 8),
    "center": mp.FOBMAML(GD, 8, perturb="center", scheme="forward", residual_correction=True),
    "tangent": mp.Tangent(GD, 8),
    "imaml": mp.IMAML(GD, 8),
    "maml": mp.MAML(GD, 8),
    "fomaml": mp.FOMAML(GD, 8),
    "reptile": mp.Reptile(GD, 8),
}


def flat(tensors):
    return torch.cat([value.flatten() for value in tensors.values()])


def data(*shape, seed=1, tasks=3):
    rng = torch.Generator().manual_seed(seed)
    part = lambda: (  # noqa: E731
        torch.randn(tasks, 6, *shape, generator=rng, dtype=torch.float64),
        torch.randn(tasks, 6, 1, generator=rng, dtype=torch.float64),
    )
    return mp.Task(part(), part())


def gradient(meta, model, tasks, loss=mean_squared_error, **settings):
    problem = mp.ProximalProblem.from_module(model, loss, 0.5, **settings)
    return flat(meta(problem, problem.live_parameters(), tasks).grad)


def assert_untouched(model, before):
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class Checkpointed(nn.Module):
    def __init__(self, **how):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.double()
        self.how = how

    def block(self, h):
        return torch.tanh(self.b(h))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(checkpoint(self.block, h, **self.how) if self.how else self.block(h))


@pytest.mark.parametrize("backend", ["auto", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_recomputed_activations_see_the_weights_of_their_forward_pass(name, backend):
    meta = replace(METHODS[name], backend=backend)
    plain = gradient(meta, Checkpointed(), data(3))
    assert torch.equal(gradient(meta, Checkpointed(use_reentrant=False), data(3)), plain) or (
        relative_error(gradient(meta, Checkpointed(use_reentrant=False), data(3)), plain) < 1e-12
    )


def test_adapt_and_evaluate_recompute_activations_rightly():
    tasks = data(3)
    results = []
    for how in ({}, {"use_reentrant": False}):
        problem = mp.ProximalProblem.from_module(Checkpointed(**how), mean_squared_error, 0.5)
        adapted = mp.adapt(problem, tuple(leaf[0] for leaf in tasks.support), GD, 5)
        loss = mp.evaluate(problem, lambda ids: tasks, range(3), GD, 5).values["loss"]
        results.append(torch.cat([flat(adapted), loss]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_reentrant_checkpoints_are_refused_with_the_remedy(name):
    with pytest.raises(mp.InputError, match=r"use_reentrant=True.*give use_reentrant=False"):
        gradient(METHODS[name], Checkpointed(use_reentrant=True), data(3))


def attack(zero):
    def loss(model, batch):
        x, y = batch
        adversarial = x.clone().requires_grad_(True)
        mean_squared_error(model, (adversarial, y)).backward()
        if zero:
            model.zero_grad()
        return mean_squared_error(model, (x + 0.5 * adversarial.grad.sign(), y))

    return loss


def attack_by_autograd(model, batch):
    x, y = batch
    adversarial = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(mean_squared_error(model, (adversarial, y)), adversarial)
    return mean_squared_error(model, (x + 0.5 * slope.sign(), y))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["fobmaml", "center", "fomaml", "reptile"])
def test_backward_and_zero_grad_inside_a_loss_change_nothing(name, zero):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    ours = gradient(METHODS[name], model, data(3), attack(zero))
    assert relative_error(ours, gradient(METHODS[name], model, data(3), attack_by_autograd)) < 1e-12
    assert all(bool((p.grad == 7).all()) for p in model.parameters())


class MaxNorm(nn.Module):
    def __init__(self, freeze=False):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.h = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 1)
        self.e.weight.requires_grad_(not freeze)

    def forward(self, i):
        size = self.h.weight.square().sum()  # autograd has saved a weight by the time that another is written on
        return self.h(self.e(i).mean(1)) + size


class Clamped(nn.Module):
    """Many parameters, of which x is not copied, or few, of which it is."""

    def __init__(self, size):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, x):
        self.w.data.clamp_(min=0)
        return x @ self.w[:3, None]


@pytest.mark.parametrize("adapt", [None, "e.*", "h.*"])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_forward_that_writes_on_its_weights_writes_on_a_copy(name, freeze, adapt):
    if (freeze and adapt == "e.*") or (name == "reptile" and adapt):
        pytest.skip("nothing adapts")
    model = MaxNorm(freeze).double()
    before = snapshot(model)
    rng = torch.Generator().manual_seed(3)
    part = lambda low, high: (  # noqa: E731
        torch.randint(low, high, (6, 3), generator=rng),
        torch.randn(6, 1, generator=rng, dtype=torch.float64),
    )
    tasks = [mp.Task(part(0, 4), part(0, 4)), mp.Task(part(4, 7), part(0, 7))]
    one, other = (gradient(METHODS[name], model, order, adapt=adapt) for order in (tasks, tasks[::-1]))
    alone = sum(gradient(METHODS[name], model, [task], adapt=adapt) for task in tasks) / 2
    assert relative_error(other, one) < 1e-12
    assert relative_error(alone, one) < 1e-12
    assert_untouched(model, before)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("backend", ["loop", "auto", "vmap"])
@pytest.mark.parametrize("size", [3, 300_000])
def test_clamping_in_the_forward_pass_stays_in_it(size, backend):
    class Function(Clamped):
        def forward(self, x):
            return x @ self.w.detach().clamp(min=0).sub(self.w.detach()).add(self.w)[:3, None]

    clamped, function = Clamped(size), Function(size)
    before = snapshot(clamped)
    meta = mp.FOBMAML(GD, 5, backend=backend)
    assert relative_error(gradient(meta, clamped, data(3)), gradient(meta, function, data(3))) < 1e-9
    adapted = mp.adapt(
        mp.ProximalProblem.from_module(clamped, mean_squared_error, 0.5), tuple(t[0] for t in data(3).support), GD, 2
    )
    assert_untouched(clamped, before)
    assert adapted["w"].data_ptr() != clamped.w.data_ptr()


class Keeps(nn.Module):
    """Keeps tensors, counts, and caches what it computed first."""

    def __init__(self, keeps):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
        self.keeps, self.hidden, self.cached, self.passes, self.seen = keeps, None, None, 0, []
        self.layers = {"plain": [self.a], "method": self.first, "partial": functools.partial(Keeps.first, self)}

    def first(self, x):
        return torch.tanh(self.layers["plain"][0](x))

    def forward(self, x):
        h = self.layers["partial"](x) + self.layers["method"](x)
        if self.keeps:
            self.hidden = h
            self.passes += 1
            self.seen.append(h)
            if self.cached is None:
                self.cached = h
            assert self.passes == len(self.seen) == 1
            return self.b(self.cached)
        return self.b(h)


def with_penalty(model, batch):
    value = mean_squared_error(model, batch)
    hidden = 2 * torch.tanh(model.a(batch[0])) if model.hidden is None else model.hidden
    return value + 0.1 * hidden.square().mean()


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_what_a_forward_pass_keeps_on_the_module_is_of_that_pass(name, backend):
    meta = replace(METHODS[name], backend=backend)
    model = Keeps(keeps=True)
    assert (
        relative_error(
            gradient(meta, model, data(3), with_penalty), gradient(meta, Keeps(keeps=False), data(3), with_penalty)
        )
        < 1e-12
    )
    assert model.hidden is None
    assert model.cached is None
    assert model.passes == 0
    assert model.seen == []


def penalized(model, batch):
    return mean_squared_error(model, batch) + sum(p.square().sum() for p in model.parameters() if p.requires_grad)


def penalized_by_name(model, batch):
    return mean_squared_error(model, batch) + sum(
        p.square().sum() for n, p in model.named_parameters() if n != "2.bias"
    )


@pytest.mark.parametrize("backend", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_requires_grad_in_a_loss_is_that_of_the_model(name, backend):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model[2].bias.requires_grad_(False)
    meta = replace(METHODS[name], backend=backend)
    assert (
        relative_error(gradient(meta, model, data(3), penalized), gradient(meta, model, data(3), penalized_by_name))
        < 1e-9
    )
    values = [
        mp.evaluate(
            mp.ProximalProblem.from_module(model, loss, 0.5), lambda ids: data(3), range(3), GD, 3, backend=backend
        ).values["loss"]
        for loss in (penalized, penalized_by_name)
    ]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


def test_a_buffer_that_is_only_read_is_not_copied():
    seen = set()

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(50, dtype=torch.float64))
            self.norm, self.head = nn.BatchNorm1d(3).double(), nn.Linear(3, 1).double()

        def forward(self, x):
            seen.add((self.table.data_ptr(), self.norm.running_mean.data_ptr()))
            return self.head(self.norm(x)) * self.table[0]

    model = Table()
    meta = mp.FOBMAML(GD, 3, backend="loop")
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    meta(problem, problem.live_parameters(), data(3))
    seen.clear()
    meta(problem, problem.live_parameters(), data(3))
    assert {table for table, _ in seen} == {model.table.data_ptr()}
    assert model.norm.running_mean.data_ptr() not in {mean for _, mean in seen}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14 reads it
def test_compiled_scripted_and_traced_modules_are_given_other_weights():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    in_place = network()
    in_place.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        kinds = {
            "compiled": torch.compile(network(), backend="eager"),
            "in place": in_place,
            "scripted": torch.jit.script(network()),
            "traced": torch.jit.trace(network(), torch.zeros(6, 3, dtype=torch.float64)),
            "inside": nn.Sequential(torch.jit.script(network()), nn.Identity()),
        }
    for name in ("fobmaml", "imaml", "maml", "tangent"):
        plain = gradient(METHODS[name], network(), data(3))
        for kind, model in kinds.items():
            before = snapshot(model)
            for _ in range(3):  # TorchScript changes what it runs from the second time on
                assert relative_error(gradient(METHODS[name], model, data(3)), plain) < 1e-9, (name, kind)
            assert_untouched(model, before)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("kind", ["script", "function"])
@pytest.mark.parametrize("name", ["imaml", "maml", "tangent"])
def test_vmapped_second_derivatives_of_torchscript_are_refused(name, kind, noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        act = torch.jit.script(lambda_free_swish)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Linear(3, 5).double(), nn.Linear(5, 1).double()

            def forward(self, x):
                return self.b(act(self.a(x)))

        model = Net() if kind == "function" else torch.jit.script(nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double())

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean() + (1e-9 * torch.rand(()) if noise else 0)

    with pytest.raises(mp.InputError, match=r"second derivative differs from that of the loop.*use backend='loop'"):
        gradient(replace(METHODS[name], backend="vmap"), model, data(3), loss)


def lambda_free_swish(h: torch.Tensor):
    return torch.tanh(h) * h


def test_old_style_norms_that_set_attributes_are_right():
    def by_hand(model, batch):
        v, g = model.weight_v, model.weight_g
        return (
            (nn.functional.linear(batch[0], g * v / v.norm(dim=1, keepdim=True), model.bias) - batch[1]).square().mean()
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.utils.weight_norm(nn.Linear(3, 1).double())
    before = vars(model)["weight"]
    assert (
        relative_error(
            gradient(METHODS["fobmaml"], model, data(3)), gradient(METHODS["fobmaml"], model, data(3), by_hand)
        )
        < 1e-12
    )
    assert vars(model)["weight"] is before


def test_modules_that_cannot_be_given_other_weights_are_refused_by_name():
    with pytest.raises(mp.InputError, match=r"a DataParallel: it replicates its own weights.*model\.module"):
        mp.ProximalProblem.from_module(nn.DataParallel(nn.Linear(3, 1)), mean_squared_error, 0.5)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(mp.InputError, match=r"a DistributedDataParallel: .* model.module, .* reduce=mp"):
                mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    finally:
        torch.distributed.destroy_process_group()


def test_a_replica_shares_no_module_and_no_container():
    model = Keeps(keeps=True)
    model.again = model.a  # one module under two names
    model.register_forward_hook(model.first)
    replica = Replica(model).module
    assert replica.again is replica.a is replica.layers["plain"][0]
    assert replica.a is not model.a
    assert replica.layers["method"].__self__ is replica
    assert replica.layers["partial"].args == (replica,)
    assert next(iter(replica._forward_hooks.values())).__self__ is replica
    assert replica.seen is not model.seen
    assert set(map(id, replica.modules())).isdisjoint(map(id, model.modules()))
