"""Problems from modules: what adapts, what stays, what is shared, what leaks."""

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

META = mp.FOBMAML(mp.GradientDescent(0.02), steps=4, nu=1e-3)


def tasks(count=3):
    return mp.Task(*(tuple(leaf.double() for leaf in part) for part in Sinusoid().batch(range(count))))


def gradients(model, meta=META, loss=mean_squared_error):
    problem = mp.ProximalProblem.from_module(model.double(), loss, lam=0.5)
    meta.backward(problem, tasks())
    return {name: p.grad for name, p in model.named_parameters()}


def test_frozen_parameters_stay_out():
    model = mlp([1, 8, 8, 1])
    model[0].weight.requires_grad_(False)
    grads = gradients(model)
    assert grads.pop("0.weight") is None
    assert all(g.abs().max() > 0 for g in grads.values())


def test_frozen_equals_plain_losses_that_close_over_the_frozen_tensors():
    model = mlp([1, 8, 1]).double()
    model[0].requires_grad_(False)
    grads = gradients(model)

    def loss(params, batch):
        inputs, targets = batch
        return ((model[0](inputs).relu() @ params["w"].T + params["b"] - targets) ** 2).mean()

    params = {"w": model[2].weight.detach(), "b": model[2].bias.detach()}
    plain = META(mp.ProximalProblem(loss, loss, 0.5), params, tasks()).grad
    torch.testing.assert_close(grads["2.weight"], plain["w"])
    torch.testing.assert_close(grads["2.bias"], plain["b"])


def test_tied_weights_adapt_as_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 8)
            self.one = nn.Linear(8, 8)
            self.two = nn.Linear(8, 8)
            self.two.weight = self.one.weight
            self.out = nn.Linear(8, 1)

        def forward(self, x):
            return self.out(self.two(self.one(self.inner(x).tanh()).tanh()).tanh())

    torch.manual_seed(0)
    model = Tied().double()
    grads = gradients(model)
    assert "two.weight" not in grads
    weight = model.one.weight.detach().clone()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(params, batch):
        p = {**params}
        inputs, targets = batch
        h = (inputs @ p["inner.weight"].T + p["inner.bias"]).tanh()
        h = (h @ p["one.weight"].T + p["one.bias"]).tanh()
        h = (h @ p["one.weight"].T + p["two.bias"]).tanh()
        return ((h @ p["out.weight"].T + p["out.bias"] - targets) ** 2).mean()

    by_hand = META(mp.ProximalProblem(loss, loss, 0.5), state, tasks()).grad
    torch.testing.assert_close(grads["one.weight"], by_hand["one.weight"])
    assert torch.equal(model.one.weight, weight)


@pytest.mark.parametrize("settings", [{"backend": "loop"}, {"backend": "vmap"}, {"compile": True}], ids=str)
def test_a_parameter_that_the_model_does_not_have_is_refused(settings):
    model = mlp([1, 8, 1]).double()
    before = dict(model.named_parameters())
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    meta = mp.FOBMAML(mp.GradientDescent(0.1), steps=2, **settings)
    with pytest.raises(mp.InputError, match="the model has no parameter 'wieght'"):
        meta(problem, before | {"wieght": torch.ones(2)}, tasks())
    assert all(p is before[name] for name, p in model.named_parameters())


def test_unused_parameters_get_a_zero_gradient():
    model = nn.Sequential(*mlp([1, 8, 1]))
    model.unused = nn.Parameter(torch.ones(3))
    for backend in ("vmap", "loop"):
        model.zero_grad()
        grads = gradients(model, mp.FOBMAML(mp.GradientDescent(0.02), steps=4, nu=1e-3, backend=backend))
        assert grads["unused"].abs().max() == 0
        assert grads["0.weight"].abs().max() > 0


def test_batch_norm_in_training_mode_agrees_between_backends_and_leaks_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    results = []
    for backend in ("vmap", "loop"):
        model.zero_grad()
        grads = gradients(model, mp.FOBMAML(mp.GradientDescent(0.02), steps=4, nu=1e-3, backend=backend))
        results.append(torch.cat([g.flatten() for g in grads.values()]))
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-10)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_dropout_is_coupled_so_that_the_gradient_stays_accurate():
    """With dropout the branches see the same masks: halving nu changes the answer by O(nu), not by 1/nu."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).double()
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)

    def gradient(nu):
        torch.manual_seed(1)
        meta = mp.FOBMAML(mp.GradientDescent(0.05), steps=5, nu=nu)
        grad = meta(problem, dict(model.named_parameters()), tasks()).grad
        return torch.cat([g.flatten() for g in grad.values()])

    assert (gradient(1e-4) - gradient(5e-5)).norm() < 1e-5 * gradient(1e-4).norm()


def test_a_separate_outer_loss_is_used_on_the_query():
    model = mlp([1, 8, 1])
    scaled = lambda module, batch: 3.0 * mean_squared_error(module, batch)  # noqa: E731
    one = mp.ProximalProblem.from_module(model.double(), mean_squared_error, lam=0.5)
    three = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5, outer_loss=scaled)
    params = dict(model.named_parameters())
    meta = mp.FOBMAML(mp.GradientDescent(0.02), steps=4, perturb="center")
    a, b = meta(one, params, tasks()), meta(three, params, tasks())
    torch.testing.assert_close(b.query_loss, 3 * a.query_loss)
    torch.testing.assert_close(b.grad["0.weight"], 3 * a.grad["0.weight"], rtol=1e-6, atol=1e-9)


def test_metrics_of_the_outer_loss_are_reported_per_task():
    loss = lambda p, d: ((p["w"] - d) ** 2).sum()  # noqa: E731
    with_metrics = lambda p, d: (loss(p, d), {"distance": (p["w"] - d).abs().sum()})  # noqa: E731
    data = mp.Task(torch.ones(3, 2), torch.ones(3, 2))
    for backend in ("vmap", "loop"):
        out = mp.FOBMAML(mp.GradientDescent(0.1), steps=5, backend=backend)(
            mp.ProximalProblem(loss, with_metrics, 1.0), {"w": torch.zeros(2)}, data
        )
        torch.testing.assert_close(out.metrics["distance"] ** 2 / 2, out.query_loss)


def test_mixed_dtypes_keep_theirs_and_solve_in_the_widest():
    params = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)}
    loss = lambda p, d: ((p["a"].double() + p["b"] - d) ** 2).sum()  # noqa: E731
    out = mp.FOBMAML(mp.GradientDescent(0.1), steps=50)(
        mp.ProximalProblem(loss, loss, 1.0), params, mp.Task(torch.ones(1, 2).double(), torch.ones(1, 2).double())
    )
    assert {name: g.dtype for name, g in out.grad.items()} == {"a": torch.float32, "b": torch.float64}
    assert out.info.base_residual.dtype == torch.float64


@pytest.mark.parametrize(
    ("norm", "training", "expected"),
    [(nn.BatchNorm1d(4), True, True), (nn.BatchNorm1d(4), False, False), (nn.LayerNorm(4), True, False)],
)
def test_transductive_where_query_examples_share_statistics(norm, training, expected):
    model = nn.Sequential(nn.Linear(1, 4), norm).train(training)
    assert mp.ProximalProblem.from_module(model, mean_squared_error, 0.5).transductive() is expected
