"""What a solve in the loop writes on: the numbers of new tensors at every step, and no memory that a step makes."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import metaprox as mp
from conftest import launch_everything
from metaprox.comparison.cost import allocations
from metaprox.losses.memory import Memory
from metaprox.models import mean_squared_error, mlp
from metaprox.vectors.layout import Layout

LAM, LR = 0.5, 0.05
LOOP = {"backend": "loop"}


@pytest.fixture(params=["few parameters", "many", "launched"])
def size(request, monkeypatch):
    """All ways of a step: a vector of the gradient; parameter by parameter, in several blocks; as on a device."""
    if request.param == "many":
        monkeypatch.setattr("metaprox.losses.descent.SMALL", 0)
        monkeypatch.setattr("metaprox.vectors.terms.BLOCK", 7)
    if request.param == "launched":
        launch_everything(monkeypatch)
    return request.param


def data(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    part = lambda: (torch.randn(1, 6, *shape, generator=rng), torch.randn(1, 6, 1, generator=rng))  # noqa: E731
    return mp.Task(part(), part())


def model_of(*widths):
    torch.manual_seed(0)
    return mlp(widths)


class ByHand:
    """A model in plain torch: x, and gradients of the loss on one task's data as vectors."""

    def __init__(self, model, loss, tasks):
        self.model, self.loss = model, loss
        self.support, self.query = (tuple(leaf[0] for leaf in half) for half in tasks)
        self.x = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def gradient(self, y, batch):
        places = dict(zip([n for n, _ in self.model.named_parameters()], self.split(y), strict=True))
        leaves = {name: part.clone().requires_grad_() for name, part in places.items()}
        value = self.loss(lambda x: torch.func.functional_call(self.model, leaves, (x,)), batch)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(leaves.values()))])

    def split(self, y):
        own = list(self.model.parameters())
        return [part.view(p.shape) for part, p in zip(y.split([p.numel() for p in own]), own, strict=True)]

    def proximal(self, y):
        return (y - self.x).mul_(LAM).add_(self.gradient(y, self.support))

    def solved(self, steps):
        y = self.x
        for _ in range(steps):
            y = y.add(self.proximal(y), alpha=-LR)
        return y

    def symmetric(self, steps, nu):
        """Equation (2) from y_0: both branches on f, all steps in the order of the formula."""
        y0, ends = self.solved(steps), []
        residual, v = self.proximal(y0), self.gradient(y0, self.query)
        for tilt in (torch.tensor([-1.0]) * nu, torch.tensor([1.0]) * nu):
            y = y0.add(torch.addcmul(residual, tilt, v), alpha=-LR)
            for _ in range(steps - 1):
                y = y.add(self.proximal(y).addcmul_(self.gradient(y, self.query), tilt[0]), alpha=-LR)
            ends.append(y)
        return ((ends[1] - ends[0]) * 0.5).mul_(-LAM) / torch.tensor(nu)


def test_steps_are_to_the_last_bit_those_of_plain_torch(size):
    model, tasks = model_of(3, 9, 8, 1), data(1, 3)
    by_hand = ByHand(model, mean_squared_error, tasks)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    adapted = mp.adapt(problem, by_hand.support, mp.GradientDescent(LR), 7)
    assert torch.equal(torch.cat([value.reshape(-1) for value in adapted.values()]), by_hand.solved(7))
    for estimate in (True, False):
        meta = mp.FOBMAML(mp.GradientDescent(LR), 7, nu=0.1, estimate_error=estimate, **LOOP)
        found = meta(problem, problem.live_parameters(), tasks).grad
        assert torch.equal(torch.cat([g.reshape(-1) for g in found.values()]), by_hand.symmetric(7, 0.1))


@dataclass(frozen=True)
class ByItself:
    """Gradient descent without a promise: new tensors at every step."""

    lr: float = LR

    def init(self, y):
        return None

    def step(self, grad, y, state):
        return y.add(grad, alpha=-self.lr), None


SETTINGS = [
    {"scheme": "forward"},
    {"scheme": "forward", "perturb": "center"},
    {"scheme": "forward", "perturb": "center", "residual_correction": True},
    {"scheme": "central4", "perturb": "center", "start": "predictor"},
    {"on_nonfinite": "skip"},
    {"rtol": 0.05},
    {"estimate_truncation": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_solver_without_promises_comes_to_the_same(size, settings):
    model, tasks = model_of(3, 9, 8, 1), data(1, 3)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    found = [
        mp.FOBMAML(solver, 7, **settings, **LOOP)(problem, problem.live_parameters(), tasks)
        for solver in (mp.GradientDescent(LR), ByItself())
    ]
    for name in found[0].grad:
        torch.testing.assert_close(found[0].grad[name], found[1].grad[name], rtol=1e-3, atol=1e-4)
    assert found[0].info.counts == found[1].info.counts


class Unusual(nn.Module):
    """Sparse gradients, a parameter that nobody uses, one that the loss freezes, and a tied one."""

    def __init__(self, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(11, 4, sparse=sparse), nn.Linear(4, 1)
        self.idle, self.frozen = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(1))
        self.again = self.head

    def forward(self, i):
        self.frozen.requires_grad_(False)
        return self.again(self.words(i).mean(1)) * self.frozen + self.head.weight.sum()


def test_sparse_idle_frozen_and_tied_parameters(size):
    rng = torch.Generator().manual_seed(0)
    part = lambda: (torch.randint(0, 9, (1, 6, 3), generator=rng), torch.randn(1, 6, 1, generator=rng))  # noqa: E731
    tasks, found = mp.Task(part(), part()), []
    for sparse in (True, False):
        problem = mp.ProximalProblem.from_module(Unusual(sparse=sparse), mean_squared_error, LAM)
        meta = mp.FOBMAML(mp.GradientDescent(LR), 5, nu=0.1, **LOOP)
        found.append(meta(problem, problem.live_parameters(), tasks).grad)
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)
    assert found[0]["words.weight"].norm() > 0


def test_what_a_loss_keeps_is_not_written_on(size):
    """Parameters, and a graph that holds them: the solve goes on in other memory."""
    kept = []

    def keeping(params, batch):
        value = ((params["w"] - batch) ** 2).sum()
        kept.append((params["w"].detach(), value, params["w"].detach().clone()))
        return value

    plain = lambda params, batch: ((params["w"] - batch) ** 2).sum()  # noqa: E731
    x, target = {"w": torch.zeros(20)}, torch.linspace(-1, 1, 20)
    found = [
        mp.adapt(mp.ProximalProblem(loss, loss, LAM), target, mp.GradientDescent(LR), 6, params=x)["w"]
        for loss in (keeping, plain)
    ]
    assert torch.equal(*found)
    assert all(torch.equal(now, then) for now, _, then in kept)
    assert len({float(then.square().sum()) for *_, then in kept}) >= 6


def test_a_write_that_the_first_look_did_not_see_is_dropped_all_the_same(size):
    """At x nothing is clipped; after some steps there is."""

    def clipping(params, batch):
        params["w"].data.clamp_(max=0.3)
        return ((params["w"] - batch) ** 2).sum()

    def functional(params, batch):
        w = params["w"]
        return ((w + (w.detach().clamp(max=0.3) - w.detach()) - batch) ** 2).sum()

    x, target = {"w": torch.zeros(20)}, torch.linspace(-1, 1, 20)
    found = [
        mp.adapt(mp.ProximalProblem(loss, loss, LAM), target, mp.GradientDescent(LR), 9, params=x)["w"]
        for loss in (clipping, functional)
    ]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)
    assert found[0].max() > 0.31
    assert torch.equal(x["w"], torch.zeros(20))


class Keeping:
    """Gradient descent that keeps the gradients that it was given."""

    def __init__(self):
        self.seen = []

    def init(self, y):
        return None

    def step(self, grad, y, state):
        self.seen.append((grad, grad.clone()))
        return y - LR * grad, None


class Promising(Keeping):
    keeps_gradients = False

    def step(self, grad, y, state):
        return super().step(grad, y, state)


class Inheriting(Promising):
    pass


@pytest.mark.parametrize("kind", [Keeping, Inheriting])
def test_a_solver_that_keeps_gradients_finds_them_as_they_were(kind):
    problem = mp.ProximalProblem.from_module(model_of(3, 9, 8, 1), mean_squared_error, LAM)
    solver = kind()
    mp.FOBMAML(solver, 6, **LOOP)(problem, problem.live_parameters(), data(1, 3))
    assert len(solver.seen) == 6 + 6  # both branches at once
    assert all(torch.equal(now, then) for now, then in solver.seen)


def test_one_that_promises_not_to_gets_the_same_memory_again():
    problem = mp.ProximalProblem.from_module(model_of(3, 9, 8, 1), mean_squared_error, LAM)
    solver = Promising()
    mp.adapt(problem, tuple(leaf[0] for leaf in data(1, 3).support), solver, 6)
    assert len({grad.data_ptr() for grad, _ in solver.seen}) == 1


METHODS = [mp.FOMAML, mp.FOBMAML, partial(mp.FOBMAML, scheme="forward", perturb="center")]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("meta", METHODS)
def test_no_step_makes_a_vector(meta, on_device, monkeypatch):
    """As many allocations of the size of all parameters, whatever the number of steps."""
    if on_device:
        launch_everything(monkeypatch)
    model = model_of(16, *[256] * 8, 1)
    problem, tasks = mp.ProximalProblem.from_module(model, mean_squared_error, LAM), data(1, 16)
    bytes_of_all = 4 * sum(p.numel() for p in model.parameters())

    def vectors(steps):
        model.zero_grad()
        made = allocations(lambda: meta(mp.GradientDescent(0.01), steps, **LOOP).backward(problem, tasks))
        return sum(size >= bytes_of_all for size in made)

    vectors(3)  # which looks at the losses
    assert vectors(4) == vectors(30)


class Counting(TorchDispatchMode):
    """Counts operations but for views, of which no device is told."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


def operations(work):
    with Counting() as counting:
        work()
    return counting.count


@pytest.mark.parametrize("meta", METHODS)
def test_where_operations_are_launched_a_step_has_few_more_than_a_plain_gradient(meta, monkeypatch):
    """However many parameters there are; elsewhere it has several for each."""
    for module in ("call", "losses.descent"):
        monkeypatch.setattr(f"metaprox.{module}.SMALL", 0)
    model, live, tasks = model_of(16, *[8] * 50, 1), model_of(16, *[8] * 50, 1), data(1, 16)
    problem, batch = mp.ProximalProblem.from_module(model, mean_squared_error, LAM), [leaf[0] for leaf in tasks.support]
    plain = lambda: mean_squared_error(live, batch).backward()  # noqa: E731
    plain()  # later ones add to .grad
    own = operations(plain)

    def further():
        """Of a step, and of a whole call for each of its gradients."""
        found, counts = [], []
        for steps in (4, 12):
            estimator = meta(mp.GradientDescent(0.01), steps, **LOOP)
            counts.append(estimator.backward(problem, tasks).info.counts)
            found.append(operations(lambda meta=estimator: meta.backward(problem, tasks)))
        gradients = [one.support_gradients + one.query_gradients for one in counts]
        return (found[1] - found[0]) / (gradients[1] - gradients[0]) - own, found[0] / gradients[0] - own

    of_blocks = further()
    launch_everything(monkeypatch)
    of_vectors = further()
    assert own > 400
    assert of_blocks[0] > 300
    assert of_vectors[0] < 15
    assert of_vectors[1] < 60


def test_a_point_is_left_where_somebody_else_has_a_tensor_in_it():
    params = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    memory = Memory(Layout.of(params), 0.5, reusable=True)
    y = memory.own(torch.zeros(1, 1, 7), 0)
    assert memory.step(y, torch.ones(1, 1, 7), 0) is y
    view = y[0, 0, :2]
    other = memory.step(y, torch.ones(1, 1, 7), 0)
    assert other is not y
    assert view.tolist() == [-0.5, -0.5]
    assert other.unique().tolist() == [-1.0]
    assert memory.point(y) is None


def test_a_gradient_that_somebody_holds_is_not_filled_anew():
    memory = Memory(Layout.of({"a": torch.zeros(7)}), None, reusable=True)
    like, held = torch.zeros(1, 1, 7), []
    for keeps in (False, True, False):
        taken = memory.take(like)
        if keeps:
            held.append((taken[0, 0, 2:], taken))
        memory.give_back(taken)
    assert memory.left() is not held[0][1]
    assert memory.left() is None
