"""Frozen parameters: a large backbone is not copied, not even to find out that nothing writes on it; what does, may."""

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.comparison import peak_memory
from metaprox.models import mean_squared_error

GD = mp.GradientDescent(0.1)
DATA = (torch.randn(2, 6, 8), torch.randn(2, 6, 3))


class Adapted(nn.Module):
    """A frozen backbone under a head, with what a forward pass does to the backbone first."""

    def __init__(self, width, before=lambda weight: None):
        super().__init__()
        self.backbone = nn.Linear(8, width)
        self.head = nn.Linear(width, 3)
        self.before = before
        self.backbone.requires_grad_(False)

    def forward(self, inputs):
        self.before(self.backbone.weight)
        return self.head(torch.tanh(self.backbone(inputs)))


def call(model, method=mp.FOBMAML, **settings):
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    return method(GD, 3, backend="loop", **settings)(problem, problem.live_parameters(), mp.Task(DATA, DATA))


class Cut(Adapted):
    """Of which only ten rows of the backbone are used."""

    def __init__(self, width):
        super().__init__(width)
        self.head = nn.Linear(10, 3)

    def forward(self, inputs):
        features = nn.functional.linear(inputs, self.backbone.weight[:10], self.backbone.bias[:10])
        return self.head(torch.tanh(features))


def test_the_first_call_takes_no_copy_of_a_large_backbone():
    small, large = Cut(10), Cut(10_010)
    frozen = 4 * sum(p.numel() for p in large.backbone.parameters())
    peaks = [peak_memory(lambda model=model: call(model), torch.device("cpu")) for model in (small, large)]
    assert peaks[1] - peaks[0] < 0.1 * frozen


def clamp(weight):
    with torch.no_grad():
        weight.clamp_(-0.1, 0.1)


def through_a_view(weight):
    with torch.no_grad():
        weight[2:].mul_(0.5)


def through_data(weight):
    weight.data.zero_()


@pytest.mark.parametrize("before", [clamp, through_a_view, through_data])
@pytest.mark.parametrize("method", [mp.FOBMAML, mp.MAML, mp.FOMAML])
def test_what_is_written_on_frozen_parameters_is_dropped(method, before):
    torch.manual_seed(0)
    model = Adapted(10, before)
    weight = model.backbone.weight.detach().clone()
    found = call(model, method)
    assert torch.equal(model.backbone.weight, weight)
    written = weight.clone()
    before(written)
    torch.manual_seed(0)
    plain = Adapted(10)
    with torch.no_grad():
        plain.backbone.weight.copy_(written)
    expected = call(plain, method)
    for name, grad in expected.grad.items():
        torch.testing.assert_close(found.grad[name], grad)


def test_a_frozen_embedding_that_renormalizes_its_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8, max_norm=0.5), nn.Flatten(), nn.Linear(32, 3))
    model[0].requires_grad_(False)
    rows = model[0].weight.detach().clone()
    data = (torch.randint(20, (2, 6, 4)), torch.randn(2, 6, 3))
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    found = mp.FOMAML(GD, 3, backend="loop")(problem, problem.live_parameters(), mp.Task(data, data))
    assert torch.equal(model[0].weight, rows)
    short = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), model[2])
    short[0].requires_grad_(False)
    with torch.no_grad():
        short[0].weight.copy_(torch.renorm(rows, 2, 0, 0.5))
    problem = mp.ProximalProblem.from_module(short, mean_squared_error, lam=0.5)
    expected = mp.FOMAML(GD, 3, backend="loop")(problem, problem.live_parameters(), mp.Task(data, data))
    for name, grad in expected.grad.items():
        torch.testing.assert_close(found.grad[name], grad, rtol=1e-5, atol=1e-6)
