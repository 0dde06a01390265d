"""What losses are told apart by before torch's guards tell the rest."""

import functools
import gc
import re
import weakref

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.origin import describe, origin
from metaprox.models import mean_squared_error, mlp


class Weighted:
    def __init__(self, inner):
        self.inner, self.itself = inner, self

    def __call__(self, params, batch):
        return self.inner(params, batch)

    def method(self, params, batch):
        return self.inner(params, batch)


def plain(params, batch):
    return params["w"].sum()


def of_module(model, loss):
    return CheckedLoss(mp.ProximalProblem.from_module(model, loss, lam=1.0).inner_loss, "inner_loss")


MADE_BY_THE_SAME_LINES = {
    "lambda": lambda: lambda params, batch: plain(params, batch),
    "closure": lambda: (lambda weight: lambda params, batch: weight * plain(params, batch))(torch.rand(()).item()),
    "partial": lambda: functools.partial(plain, batch=torch.rand(3)),
    "object": lambda: Weighted(plain),
    "method": lambda: Weighted(plain).method,
    "checked": lambda: CheckedLoss(plain, "inner_loss"),
    "module": lambda: of_module(mlp([1, 4, 1]), mean_squared_error),
    "module and lambda": lambda: of_module(mlp([1, 4, 1]), lambda model, batch: model(batch).mean()),
    "module and another lambda": lambda: of_module(mlp([1, 4, 1]), lambda model, batch: model(batch).sum()),
    "another module": lambda: of_module(nn.Linear(1, 1), mean_squared_error),
    "object around another": lambda: Weighted(Weighted(plain)),
    "built in": lambda: torch.add,
}


@pytest.mark.parametrize("make", MADE_BY_THE_SAME_LINES.values(), ids=MADE_BY_THE_SAME_LINES)
def test_the_same_lines_make_the_same(make):
    assert origin(make()) == origin(make())
    assert hash(origin(make())) == hash(origin(make()))


def test_other_lines_make_another():
    assert len({origin(make()) for make in MADE_BY_THE_SAME_LINES.values()}) == len(MADE_BY_THE_SAME_LINES)


def test_it_holds_no_object():
    def make():
        inner, model = Weighted(plain), mlp([1, 4, 1])
        losses = inner.method, of_module(model, lambda model, batch: inner(model, batch))
        return [origin(loss) for loss in losses], [weakref.ref(inner), weakref.ref(model)]

    kept, refs = make()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    assert all(kept)


def test_a_loss_is_called_by_the_name_that_its_user_knows():
    lambda_loss = lambda model, batch: model(batch).mean()  # noqa: E731
    for loss, name in (
        (of_module(mlp([1, 4, 1]), mean_squared_error), r"mean_squared_error \(.*models\.py:\d+\)"),
        (of_module(mlp([1, 4, 1]), lambda_loss), rf".*<lambda> \({__file__}:\d+\)"),
        (CheckedLoss(plain, "inner_loss"), rf"plain \({__file__}:\d+\)"),
        (CheckedLoss(Weighted(plain).method, "inner_loss"), rf"Weighted\.method \({__file__}:\d+\)"),
        (CheckedLoss(Weighted(torch.add), "inner_loss"), "Weighted"),
    ):
        assert re.fullmatch(name, describe(loss)), describe(loss)
