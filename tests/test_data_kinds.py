"""Data of all kinds: what the loop takes, "auto" takes, and both give what plain tensors give."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import metaprox as mp
from conftest import relative_error
from metaprox.models import mean_squared_error

GD = mp.GradientDescent(0.1)
BACKENDS = ["auto", "loop"]


def gradient(model, loss, tasks, backend):
    problem = mp.ProximalProblem.from_module(model, loss, 1.0)
    grad = mp.FOBMAML(GD, 4, backend=backend)(problem, problem.live_parameters(), tasks).grad
    found = mp.evaluate(problem, lambda ids: tasks, range(2), GD, 4, backend=backend).values["loss"]
    mp.adapt(problem, tasks[0].support, GD, 4)
    return torch.cat([*(g.flatten() for g in grad.values()), found])


def two(part):
    torch.manual_seed(1)
    return [mp.Task(part(), part()) for _ in range(2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences(backend):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.GRU(2, 3).double(), nn.Linear(3, 1).double()

        def forward(self, series):
            if isinstance(series, list):  # by hand, one after another
                return torch.stack([self.head(self.rnn(one[:, None])[1][0])[0] for one in series])
            return self.head(self.rnn(series)[1][0])

    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    series = lambda: [torch.randn(n, 2, dtype=torch.float64) for n in (1, 4, 3)]  # noqa: E731
    plain = two(lambda: (series(), torch.randn(3, 1, dtype=torch.float64)))
    pack = lambda half: (pack_sequence(half[0], enforce_sorted=False), half[1])  # noqa: E731
    packed = [mp.Task(pack(task.support), pack(task.query)) for task in plain]
    assert relative_error(gradient(Net(), loss, packed, backend), gradient(Net(), loss, plain, "loop")) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_tensors(layout, backend):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(7, 1, dtype=torch.float64))

        def forward(self, x):
            return x @ self.w

    dense = two(lambda: (torch.randn(6, 7, dtype=torch.float64).relu(), torch.randn(6, 1, dtype=torch.float64)))
    sparse = [mp.Task(*((getattr(half[0], layout)(), half[1]) for half in task)) for task in dense]
    ours = gradient(Net(), mean_squared_error, sparse, backend)
    assert relative_error(ours, gradient(Net(), mean_squared_error, dense, "loop")) < 1e-9
    spoiled = [mp.Task(half, half) for half in [((sparse[0].support[0] * torch.inf), sparse[0].support[1])]]
    problem = mp.ProximalProblem.from_module(Net(), mean_squared_error, 1.0)
    with pytest.raises(mp.NonFiniteError, match=r"non-finite values, in \.support\[0\], \.query\[0\]"):
        mp.FOBMAML(GD, 4, backend=backend).backward(problem, spoiled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_nans_that_are_meant(backend):
    """Missing targets by NaN, against the examples that are there; a causal mask of -inf, against a boolean one."""

    def known(model, batch):
        there = ~batch[1].isnan()
        return ((model(batch[0]) - batch[1].nan_to_num()) * there).square().sum() / there.sum()

    def part():
        x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        y[torch.randint(6, (2,))] = torch.nan
        return x, y

    torch.manual_seed(0)
    model, gaps = nn.Linear(3, 1).double(), two(part)
    rows = [mp.Task(*((x[~y[:, 0].isnan()], y[~y[:, 0].isnan()]) for x, y in task)) for task in gaps]
    assert (
        relative_error(gradient(model, known, gaps, backend), gradient(model, mean_squared_error, rows, "loop")) < 1e-9
    )

    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()

    def masked(model, batch):
        x, y, mask = batch
        return (model(x, x, x, attn_mask=mask, need_weights=False)[0] - y).square().mean()

    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    shape = 2, 5, 4
    by_bool = two(lambda: (torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64), causal))
    mask = torch.zeros(5, 5, dtype=torch.float64).masked_fill(causal, -torch.inf)
    by_inf = [mp.Task(*((x, y, mask) for x, y, _ in task)) for task in by_bool]
    assert (
        relative_error(gradient(attention, masked, by_inf, backend), gradient(attention, masked, by_bool, "loop"))
        < 1e-9
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_that_are_built_differently(backend):
    """Dictionaries with and without an optional entry, sizes that differ, leaves that are no tensors."""

    def loss(model, batch):
        scale = batch.get("scale", 1.0)
        assert batch["name"] in {"a", "b"}
        return scale * mean_squared_error(model, (batch["x"], batch["y"]))

    def half(n, **more):
        return {"x": torch.randn(n, 3, dtype=torch.float64), "y": torch.randn(n, 1, dtype=torch.float64), **more}

    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    tasks = [
        mp.Task(half(4, name="a"), half(3, name="b", scale=2.0)),
        mp.Task(half(5, name="b", scale=torch.tensor(3.0, dtype=torch.float64)), half(3, name="a")),
    ]
    plain = lambda model, batch: batch[2] * mean_squared_error(model, batch[:2])  # noqa: E731
    same = [mp.Task(*((b["x"], b["y"], float(b.get("scale", 1.0))) for b in task)) for task in tasks]
    assert relative_error(gradient(model, loss, tasks, backend), gradient(model, plain, same, "loop")) < 1e-12
