"""What a loss may return: what is unambiguous is taken, the rest is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import metaprox as mp

GD = mp.GradientDescent(0.1)
BACKENDS = ["auto", "loop"]


def tasks(ways=3):
    part = lambda: (torch.randn(6, 3), torch.randint(0, ways, (6,)))  # noqa: E731
    return [mp.Task(part(), part()) for _ in range(2)]


def evaluated(loss, backend, ways=3):
    problem = mp.ProximalProblem.from_module(nn.Linear(3, ways), loss, 1.0)
    return mp.evaluate(problem, lambda ids: tasks(ways), range(2), GD, 2, backend=backend)


def ce(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def hits(model, batch):
    return (model(batch[0]).argmax(1) == batch[1]).float().mean()


ACCEPTED = {
    "tensor": (lambda m, b: ce(m, b), []),
    "no metrics": (lambda m, b: (ce(m, b), {}), []),
    "tensors": (lambda m, b: (ce(m, b), {"accuracy": hits(m, b)}), ["accuracy"]),
    "floats": (lambda m, b: (ce(m, b), {"accuracy": hits(m, b).item()}), ["accuracy"]),
    "numpy": (lambda m, b: (ce(m, b), {"accuracy": np.float32(hits(m, b).item())}), ["accuracy"]),
    "integers": (lambda m, b: (ce(m, b), {"n": 3, "flag": True, "count": torch.tensor(2)}), ["n", "flag", "count"]),
    "nested": (lambda m, b: (ce(m, b), {"parts": {"ce": ce(m, b), "deep": {"x": 1.0}}}), ["parts.ce", "parts.deep.x"]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_is_unambiguous_is_taken(kind, backend):
    loss, names = ACCEPTED[kind]
    result = evaluated(loss, backend)
    assert list(result.metrics) == names
    assert all(values.shape == (2,) for values in result.values.values())
    if "accuracy" in names:
        assert set((6 * result.values["accuracy"]).round().tolist()) <= set(map(float, range(7)))
        assert 0 <= result.metrics["accuracy"].mean <= 1
    if "parts.ce" in names:
        torch.testing.assert_close(result.values["parts.ce"], result.values["loss"])
    if "count" in names:
        assert [result.metrics[name].mean for name in names] == [3, 1, 2]


REFUSED = {
    "logits": (lambda m, b: (ce(m, b), m(b[0])), r"a torch.float32 tensor of shape \(6, \d\) beside the loss"),
    "none": (lambda m, b: (ce(m, b), {"accuracy": None}), "a NoneType as the metric 'accuracy'"),
    "text": (lambda m, b: (ce(m, b), {"accuracy": "high"}), "a str as the metric 'accuracy'"),
    "vector": (lambda m, b: (ce(m, b), {"all": m(b[0])}), r"tensor of shape \(6, \d\) as the metric 'all'"),
    "three": (lambda m, b: (ce(m, b), {}, 1), "a tuple of 3"),
    "list": (lambda m, b: [ce(m, b)], "must return a scalar tensor, got a list"),
    "object": (lambda m, b: SimpleNamespace(loss=ce(m, b)), "must return a scalar tensor, got a SimpleNamespace"),
    "dictionary": (lambda m, b: {"loss": ce(m, b)}, "must return a scalar tensor, got a dict"),
    "float": (lambda m, b: ce(m, b).item(), "must return a scalar tensor, got a float"),
    "nothing": (lambda m, b: None, "must return a scalar tensor, got a NoneType"),
    "one number in a vector": (lambda m, b: ce(m, b)[None], r"tensor of shape \(1,\); reduce it"),
    "integer": (lambda m, b: hits(m, b).long(), "must return a real floating-point scalar, got one of torch.int64"),
    "complex": (
        lambda m, b: ce(m, b) * (1 + 0j),
        "must return a real floating-point scalar, got one of torch.complex64",
    ),
    "named loss": (
        lambda m, b: (ce(m, b), {"loss": ce(m, b)}),
        "a metric 'loss', which is the name of the loss itself",
    ),
    "numbered": (lambda m, b: (ce(m, b), {0: ce(m, b)}), "a metric 0, which is no name"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_refused_by_name(kind, ways, backend):
    loss, message = REFUSED[kind]
    with pytest.raises(mp.InputError, match=f"inner_loss .*{message}"):
        evaluated(loss, backend, ways)


def test_metrics_that_differ_between_tasks_are_refused():
    calls = iter(range(1000))
    loss = lambda m, b: (ce(m, b), {f"metric {next(calls) // 50}": 1.0})  # noqa: E731
    some = [*tasks(), *(mp.Task(*(tuple(leaf[:5] for leaf in half) for half in task)) for task in tasks())]
    problem = mp.ProximalProblem.from_module(nn.Linear(3, 3), ce, 1.0, loss)
    with pytest.raises(mp.InputError, match="a loss reports other metrics in one task than in another: "):
        mp.evaluate(problem, lambda ids: some * 20, range(80), GD, 1, backend="loop", batch_size=80)
