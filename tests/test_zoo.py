"""Kinds of models: FO-B-MAML on each meets lam (H + lam I)^{-1} v of the same model in plain operations, float64.

The reference is Newton's method and a dense solve by plain double backward. It shares no code with the library, and no
kernel with the model where that kernel has no second derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

import metaprox as mp
from conftest import relative_error
from metaprox.models import mean_squared_error

LAM = 2.0
TASKS = 2
TOLERANCE = 1e-9  # nu^4 and rounding / nu, at the default nu of 7e-4: 1e-12; the rest is what the solves leave


class LastStep(nn.Module):
    """A recurrent net and a linear layer on its last output: [N, L, F] -> [N, 1]."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def rnn_cells(p, x, cell, states):
    """The last output of one layer of width 3; ``cell`` maps the gates of x and of h, and the states, to states."""
    state = [x.new_zeros(len(x), 3) for _ in range(states)]
    for t in range(x.shape[1]):
        of_x = x[:, t] @ p["rnn.weight_ih_l0"].T + p["rnn.bias_ih_l0"]
        of_h = state[0] @ p["rnn.weight_hh_l0"].T + p["rnn.bias_hh_l0"]
        state = cell(of_x, of_h, *state)
    return nn.functional.linear(state[0], p["head.weight"], p["head.bias"])


def lstm_cell(of_x, of_h, h, c):
    i, f, g, o = (of_x + of_h).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(of_x, of_h, h):
    (xr, xz, xn), (hr, hz, hn) = of_x.chunk(3, dim=-1), of_h.chunk(3, dim=-1)
    z = (xz + hz).sigmoid()
    return [(1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h]


def softmax_attention(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


class Attention(nn.Module):
    """One head of width 4 by torch's own kernel: [N, L, 4] -> [N, 1]."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)).mean(1))


def attention(model, p, x):
    q, k, v = nn.functional.linear(x, p["qkv.weight"], p["qkv.bias"]).chunk(3, dim=-1)
    return softmax_attention(q, k, v).mean(1) @ p["head.weight"].T + p["head.bias"]


class MultiHead(nn.Module):
    """Two heads of width 2: [N, L, 4] -> [N, 4]."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        nn.init.normal_(self.attend.in_proj_bias)

    def forward(self, x):
        return self.attend(x, x, x)[0].mean(1)


def multi_head(model, p, x):
    qkv = nn.functional.linear(x, p["attend.in_proj_weight"], p["attend.in_proj_bias"]).chunk(3, dim=-1)
    heads = softmax_attention(*(part.unflatten(-1, (2, 2)).transpose(1, 2) for part in qkv))
    out = heads.transpose(1, 2).flatten(2)
    return (out @ p["attend.out_proj.weight"].T + p["attend.out_proj.bias"]).mean(1)


def conv_batch_norm(training):
    def build():
        norm = nn.BatchNorm2d(2)
        norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
        norm.running_var.copy_(torch.tensor([0.5, 2.0]))
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Tanh(), pool, nn.Flatten(), nn.Linear(2, 1)).train(training)

    return build


def conv_batch_norm_by_hand(model, p, x):
    h = nn.functional.conv2d(x, p["0.weight"], p["0.bias"])
    mean, var = model[1].running_mean, model[1].running_var
    if model[1].training:
        mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
    h = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    h = h * p["1.weight"][:, None, None] + p["1.bias"][:, None, None]
    return h.tanh().mean((2, 3)) @ p["5.weight"].T + p["5.bias"]


class Mean(nn.Module):
    """Over the last dimension."""

    def forward(self, x):
        return x.mean(-1)


class Tied(nn.Module):
    """The same matrix, transposed, in and out: an autoencoder's [N, 3] -> [N, 3]."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).tanh())


def tied(model, p, x):
    h = (x @ p["encode.weight"].T + p["encode.bias"]).tanh()
    return h @ p["encode.weight"].T + p["decode.bias"]


def frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


def with_unused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model.unused = nn.Parameter(torch.ones(3))
    return model


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def parametrized():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 1))


def parametrized_by_hand(model, p, x):
    weight = p["0.parametrizations.weight.original"]
    h = (x @ (weight.triu() + weight.triu(1).mT).T + p["0.bias"]).tanh()
    return h @ p["2.weight"].T + p["2.bias"]


def weight_norm_by_hand(model, p, x):
    length, direction = p["0.parametrizations.weight.original0"], p["0.parametrizations.weight.original1"]
    weight = length * direction / direction.norm(dim=1, keepdim=True)
    return (x @ weight.T + p["0.bias"]).tanh() @ p["2.weight"].T + p["2.bias"]


class Sine(torch.autograd.Function):
    """sin with a hand-written gradient that can't be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class SineNet(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 1))

    def forward(self, x):
        return self[1](Sine.apply(self[0](x)))


def sine_by_hand(model, p, x):
    return (x @ p["0.weight"].T + p["0.bias"]).sin() @ p["1.weight"].T + p["1.bias"]


class Branching(nn.Sequential):
    """Takes another branch of Python where the inputs say so."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 1))

    def forward(self, x):
        h = self[0](x)
        return self[1](h.tanh() if x.mean().item() > 0 else h.sigmoid())


def branching_by_hand(model, p, x):
    h = x @ p["0.weight"].T + p["0.bias"]
    h = torch.where(x.mean() > 0, h.tanh(), h.sigmoid())
    return h @ p["1.weight"].T + p["1.bias"]


def compiled():
    torch.compiler.reset()
    return torch.compile(nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)), backend="aot_eager", dynamic=False)


def compiled_by_hand(model, p, x):
    h = nn.functional.silu(x @ p["_orig_mod.0.weight"].T + p["_orig_mod.0.bias"])
    return h @ p["_orig_mod.2.weight"].T + p["_orig_mod.2.bias"]


@dataclass(frozen=True)
class Entry:
    """A model, its inputs [N, *shape], the same as a function (model, params, inputs), and where it runs."""

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    by_hand: Callable = lambda model, p, x: functional_call(model, p, (x,))
    vmap: bool = True


ZOO = {
    "mlp": Entry(lambda: nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 1)), (3,)),
    "conv-batch-norm-train": Entry(conv_batch_norm(True), (1, 4, 4), conv_batch_norm_by_hand),
    "conv-batch-norm-eval": Entry(conv_batch_norm(False), (1, 4, 4), conv_batch_norm_by_hand),
    "conv-group-norm": Entry(
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), Mean(), nn.Linear(4, 1)), (2, 5)
    ),
    "lstm": Entry(
        lambda: LastStep(nn.LSTM(2, 3, batch_first=True)), (4, 2), lambda m, p, x: rnn_cells(p, x, lstm_cell, 2)
    ),
    "gru": Entry(
        lambda: LastStep(nn.GRU(2, 3, batch_first=True)), (4, 2), lambda m, p, x: rnn_cells(p, x, gru_cell, 1)
    ),
    "multihead-attention": Entry(MultiHead, (3, 4), multi_head),
    "scaled-dot-product-attention": Entry(Attention, (3, 4), attention),
    "tied": Entry(Tied, (3,), tied),
    "frozen": Entry(frozen, (3,)),
    "unused": Entry(with_unused, (3,)),
    "dropout-eval": Entry(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)).eval(), (3,)
    ),
    "weight-norm": Entry(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)),
        (3,),
        weight_norm_by_hand,
    ),
    "parametrized": Entry(parametrized, (3,), parametrized_by_hand),
    "first-derivatives-only": Entry(SineNet, (3,), sine_by_hand, vmap=False),
    "data-dependent": Entry(Branching, (3,), branching_by_hand, vmap=False),
    "compiled": Entry(compiled, (3,), compiled_by_hand),
}
CASES = [(name, backend) for name, entry in ZOO.items() for backend in ("loop", "vmap")[: 1 + entry.vmap]]


META = {
    backend: mp.FOBMAML(mp.Anderson(0.2), steps=50, scheme="central4", nu=7e-4, backend=backend)
    for backend in ("loop", "vmap")
}


def case(entry):
    """(model, tasks) in float64, a function of nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = entry.build().double()
        inputs = torch.randn(2, TASKS, 5, *entry.inputs, dtype=torch.float64) / 2
        with torch.no_grad():
            targets = torch.randn(2, TASKS, *model(inputs[0, 0]).shape, dtype=torch.float64) / 2
    return model, mp.Task(*zip(inputs, targets, strict=True))


def dense(loss, x, near, task):
    """lam (H + lam I)^{-1} v at the stationary point of loss(y, support) + (lam/2) ||y - x||^2 next to ``near``."""
    y = near.clone()
    for _ in range(5):
        y = y.detach().requires_grad_()
        objective = loss(y, task.support) + 0.5 * LAM * (y - x).square().sum()
        (slope,) = torch.autograd.grad(objective, y, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(part, y, retain_graph=True)[0] for part in slope])
        if slope.norm() < 1e-12:
            (v,) = torch.autograd.grad(loss(y, task.query), y)
            return LAM * torch.linalg.solve(hessian, v), y.detach()
        y = y - torch.linalg.solve(hessian, slope)
    raise AssertionError(f"Newton's method ended at gradient norm {slope.norm():.1e}")


def reference(entry, model, params, tasks, near):
    """(meta-gradient [P], solutions [T, P] next to ``near``) of the model written by hand."""
    sizes = [p.numel() for p in params.values()]

    def loss(y, data):
        inputs, targets = data
        p = {name: part.view_as(params[name]) for name, part in zip(params, y.split(sizes), strict=True)}
        return (entry.by_hand(model, p, inputs) - targets).square().mean()

    results = []
    for i in range(TASKS):
        task = mp.Task(*(tuple(leaf[i] for leaf in part) for part in tasks))
        results.append(dense(loss, flat(params), near[i], task))
    gradients, solutions = zip(*results, strict=True)
    return torch.stack(gradients).mean(0), torch.stack(solutions)


def flat(params):
    return torch.cat([p.detach().flatten() for p in params.values()])


def flat_rows(params):
    return torch.cat([p.flatten(1) for p in params.values()], 1)


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's note on weight_norm under vmap
def test_meta_gradient_is_that_of_the_model_written_by_hand(name, backend):
    entry = ZOO[name]
    model, tasks = case(entry)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    params = problem.live_parameters()
    out = META[backend](problem, params, tasks)
    truth, solutions = reference(entry, model, params, tasks, flat_rows(out.adapted))
    torch.testing.assert_close(flat_rows(out.adapted), solutions, rtol=0, atol=1e-9)
    assert relative_error(flat(out.grad), truth) < TOLERANCE


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if not entry.vmap])
def test_where_vmap_cannot_it_says_what_can(name):
    model, tasks = case(ZOO[name])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    with pytest.raises(RuntimeError) as caught:
        META["vmap"](problem, problem.live_parameters(), tasks)
    assert any("backend='loop'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("method", [mp.MAML, mp.IMAML, mp.Tangent])
def test_methods_with_second_derivatives_say_where_there_are_none(method):
    """torch.autograd.grad skips the node that would raise, and would leave a term of the second derivative out."""
    model, tasks = case(ZOO["first-derivatives-only"])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    with pytest.raises(RuntimeError, match="once_differentiable") as caught:
        method(mp.GradientDescent(0.2), steps=4, backend="loop")(problem, problem.live_parameters(), tasks)
    assert any("FOBMAML, FOMAML and Reptile never do that" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_dropout_in_training_mode_meets_the_derivative_of_the_same_noisy_solve(perturb):
    """With the masks of each step and task fixed, y_nu is a smooth function of nu, and Tangent its derivative at 0."""
    model, tasks = case(replace(ZOO["dropout-eval"], build=lambda: ZOO["dropout-eval"].build().train()))
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    params = problem.live_parameters()
    settings = {"solver": mp.GradientDescent(0.2), "steps": 10, "perturb": perturb, "backend": "loop"}
    gradients = []
    step = {"nu" if perturb == "loss" else "eps": 7e-4}
    for meta in (mp.FOBMAML(**settings, scheme="central4", **step), mp.Tangent(**settings)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            gradients.append(flat(meta(problem, params, tasks).grad))
    assert relative_error(*gradients) < 1e-10
    without = flat(
        mp.Tangent(**settings)(
            mp.ProximalProblem.from_module(model.eval(), mean_squared_error, LAM), params, tasks
        ).grad
    )
    assert relative_error(gradients[0], without) > 0.01
