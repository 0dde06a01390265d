"""What second derivatives trip over: FO-B-MAML beside methods that have them, against F itself.

The reference takes no second derivative: F at x + h d by long inner solves in plain torch, differenced along d.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as fn
from torch.utils.checkpoint import checkpoint

import metaprox as mp
from conftest import relative_error

LAM = 2.0
TASKS = 2
DIRECTIONS = 3
TOLERANCE = 1e-8  # relative to ||grad F||: h^4, and rounding divided by h


class Speech(nn.Module):
    """Frames [N, L, 3] -> log-probabilities [L, N, 4] of a blank and three symbols."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, frames):
        return self.net(frames).log_softmax(-1).transpose(0, 1)


def ctc(model, batch):
    frames, symbols = batch
    return fn.ctc_loss(model(frames), symbols, (6, 5), (2, 3))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def block(self, h):
        return self.b(h).tanh()

    def forward(self, x):
        return self.c(checkpoint(self.block, self.a(x).tanh(), use_reentrant=False))


def squared(model, batch):
    return fn.mse_loss(model(batch[0]), batch[1])


class Adapted(nn.Module):
    """A frozen backbone in bfloat16, and adapters: a linear layer beside its second one, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(3, 8).bfloat16().requires_grad_(False), nn.Linear(8, 8).bfloat16())
        self.second.requires_grad_(False)
        self.side, self.head = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x.bfloat16()).tanh()
        wide = self.head.weight.dtype
        return self.head((self.second(h).to(wide) + self.side(h.to(wide))).tanh())

    def double(self):
        for module in (self.side, self.head):
            module.double()
        return self


def network(width=5):
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))


def slope(model, points):
    (found,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
    return found


def residual(model, batch):
    """Of the wave equation, u_tt = u_xx + f, at points (t, x)."""
    points, force = batch
    points = points.clone().requires_grad_()
    first = slope(model, points)
    second = [torch.autograd.grad(first[:, i].sum(), points, create_graph=True)[0][:, i] for i in (0, 1)]
    return (second[0] - second[1] - force[:, 0]).square().mean() + model(points).square().mean()


def forces(model, batch):
    """Energies and forces of a potential."""
    positions, targets = batch
    positions = positions.clone().requires_grad_()
    return (slope(model, positions) + targets).square().mean()


def penalty(model, batch):
    """A critic of real and false points, with a gradient penalty between them."""
    real, false = batch
    between = (0.3 * real + 0.7 * false).requires_grad_()
    steepness = (slope(model, between).square().sum(1) + 1e-6).sqrt()
    return 0.2 * (model(false).mean() - model(real).mean() + (steepness - 1).square().mean())


def fast_sign(model, batch):
    """Trained on inputs that a step along the sign of its gradient makes worse."""
    inputs, targets = batch
    attacked = inputs.clone().requires_grad_()
    squared(model, (attacked, targets)).backward()
    model.zero_grad()
    return squared(model, (inputs + 0.1 * attacked.grad.sign(), targets))


def projected(model, batch):
    """The same with three projected steps."""
    inputs, targets = batch
    attacked = inputs.clone()
    for _ in range(3):
        attacked.requires_grad_()
        (found,) = torch.autograd.grad(squared(model, (attacked, targets)), attacked)
        attacked = (attacked.detach() + 0.05 * found.sign()).clamp(inputs - 0.1, inputs + 0.1)
    return squared(model, (attacked, targets))


def pairs(inputs: int, outputs: int) -> Callable[[], Any]:
    return lambda: (torch.randn(5, inputs), torch.randn(5, outputs) / 2)


@dataclass(frozen=True)
class Entry:
    """A model, a loss, and data of a task.

    refused: what methods raise. vmapped: the error where vmap may be chosen, if it rounds otherwise than the loop.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    data: Callable[[], Any]
    refused: Mapping[str, str] = field(default_factory=dict)
    vmapped: float = TOLERANCE


ZOO = {
    "ctc": Entry(
        Speech,
        ctc,
        lambda: (torch.randn(2, 6, 3), torch.randint(1, 4, (2, 3))),
        dict.fromkeys(("maml", "imaml", "tangent"), "derivative for aten::_ctc_loss_backward is not implemented"),
    ),
    "checkpointed": Entry(Checkpointed, squared, pairs(3, 1)),
    "bfloat16-backbone": Entry(Adapted, squared, pairs(3, 1), vmapped=2**-8),
    "wave-equation": Entry(network, residual, pairs(2, 1)),
    "forces": Entry(network, forces, pairs(2, 2)),
    "gradient-penalty": Entry(network, penalty, lambda: (torch.randn(5, 2), torch.randn(5, 2))),
    "fast-sign-attack": Entry(network, fast_sign, pairs(2, 1), {"maml": "backward through the graph a second time"}),
    "projected-attack": Entry(network, projected, pairs(2, 1)),
}
CLOSE = {"branch_solver": mp.Anderson(0.2), "scheme": "central4"}
GD = mp.GradientDescent(0.2)
METHODS = {
    "loop": mp.FOBMAML(GD, 60, **CLOSE, nu=7e-4, backend="loop"),
    "auto": mp.FOBMAML(GD, 60, **CLOSE, nu=7e-4),
    "center": mp.FOBMAML(GD, 60, **CLOSE, perturb="center", eps=7e-4),
    "maml": mp.MAML(GD, 60),
    "imaml": mp.IMAML(GD, 60, cg_steps=60),
    "tangent": mp.Tangent(GD, 60, residual_correction=True),
}


def case(entry):
    """(model, tasks)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = entry.build().double()
        halves = [[entry.data() for _ in range(TASKS)] for _ in range(2)]
    double = lambda data: tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in data)  # noqa: E731
    return model, [mp.Task(double(support), double(query)) for support, query in zip(*halves, strict=True)]


class Plain:
    """F by plain torch."""

    def __init__(self, entry):
        self.loss = entry.loss
        self.model, self.tasks = case(entry)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.x = torch.cat([p.detach().flatten() for p in self.params])

    def value_and_slope(self, y, data):
        with torch.no_grad():
            for p, part in zip(self.params, y.split([p.numel() for p in self.params]), strict=True):
                p.copy_(part.view_as(p))
        value = self.loss(self.model, data)
        slopes = torch.autograd.grad(value, self.params, allow_unused=True)
        joined = [torch.zeros_like(p) if s is None else s for s, p in zip(slopes, self.params, strict=True)]
        return value.item(), torch.cat([s.flatten() for s in joined])

    def objective(self, x):
        """F(x), by gradient descent to rounding."""
        total = 0.0
        for task in self.tasks:
            y = x.clone()
            for _ in range(500):
                change = 0.2 * (self.value_and_slope(y, task.support)[1] + LAM * (y - x))
                y -= change
                if change.norm() < 1e-14:
                    break
            assert change.norm() < 1e-12
            total += self.value_and_slope(y, task.query)[0]
        return total / TASKS

    def along(self, d, h=2e-3):
        """The derivative of F along d, by a difference of order 4."""
        values = {k: self.objective(self.x + k * h * d) for k in (-2, -1, 1, 2)}
        return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)


@pytest.fixture(scope="module", params=ZOO)
def entry(request):
    """(entry, directions [D, P], derivatives of F along them [D])."""
    plain = Plain(ZOO[request.param])
    d = torch.randn(DIRECTIONS, len(plain.x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d /= d.norm(dim=1, keepdim=True)
    return ZOO[request.param], d, torch.tensor([plain.along(one) for one in d], dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # zero_grad() in MAML's graph
def test_meta_gradient_is_the_derivative_of_the_objective_or_refused(entry, method):
    row, directions, truth = entry
    model, tasks = case(row)
    problem = mp.ProximalProblem.from_module(model, row.loss, LAM)
    call = lambda: METHODS[method](problem, problem.live_parameters(), tasks)  # noqa: E731
    if method in row.refused:
        with pytest.raises(RuntimeError, match=row.refused[method]) as caught:
            call()
        assert any("FOBMAML, FOMAML and Reptile never do that" in note for note in caught.value.__notes__)
        return
    grad = torch.cat([g.flatten() for g in call().grad.values()])
    tolerance = TOLERANCE if method == "loop" else row.vmapped
    assert float((directions @ grad - truth).abs().max() / grad.norm()) < tolerance


class Within(nn.Module):
    """LoRA in a frozen backbone of a dtype of its own, so that what adapts is rounded on the way."""

    def __init__(self, frozen, adapting):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(3, 4), nn.Linear(4, 16), nn.Linear(16, 1)]
        self.first, self.second = (layer.bfloat16().to(frozen).requires_grad_(False) for layer in layers[:2])
        self.down, self.up, self.head = (layer.to(adapting) for layer in layers[2:])
        self.frozen, self.adapting = frozen, adapting

    def forward(self, x):
        h = self.first(x.to(self.frozen)) + self.up(self.down(x.to(self.adapting))).to(self.frozen)
        return self.head(self.second(h.tanh()).tanh().to(self.adapting)).double()


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_adapters_within_a_bfloat16_backbone_want_the_step_of_bfloat16(backend):
    _, tasks = case(ZOO["checkpointed"])
    truth, narrow = (
        flat_gradient(mp.FOBMAML(GD, 60, **how), Within(*dtypes), tasks)
        for how, dtypes in (
            (CLOSE | {"nu": 7e-4}, (torch.float64, torch.float64)),
            ({"perturb": "center", "eps": 0.2, "backend": backend}, (torch.bfloat16, torch.float32)),
        )
    )
    assert relative_error(narrow, truth) < 0.03


def flat_gradient(meta, model, tasks):
    problem = mp.ProximalProblem.from_module(model, squared, LAM)
    return torch.cat([g.double().flatten() for g in meta(problem, problem.live_parameters(), tasks).grad.values()])
