"""A function and its graphs: which of them are C++ throughout."""

import pytest
import torch
from torch._inductor.graph import GraphLowering

from metaprox.losses import compiling
from test_compiled import needs_compiler

pytestmark = [
    needs_compiler,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself
]
X = torch.tensor([0.0, 1.0, 2.0])


def squares(x):
    compiling.only_compiled()
    return x * x + 1


@pytest.fixture
def asked(monkeypatch):
    """The graphs that torch was to make C++ of throughout, one after another; ``asked.fails``: which it can't."""

    class Asked(list):
        fails = False

    found, lower = Asked(), GraphLowering.codegen_with_cpp_wrapper

    def noted(self):
        found.append(self)
        if found.fails:
            raise NotImplementedError("no C++ for this")
        return lower(self)

    monkeypatch.setattr(GraphLowering, "codegen_with_cpp_wrapper", noted)
    # Nothing of what it made before.
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield found


def test_a_small_graph_that_draws_nothing_is_cpp_throughout(asked):
    function = compiling.CompiledFunction(squares)
    assert function.compile(X, draws=False).tolist() == [1, 2, 5]
    assert len(asked) == 1
    assert function.run(2 * X).tolist() == [1, 5, 17]


def test_where_that_does_not_compile_its_kernels_are(asked):
    asked.fails = True
    function = compiling.CompiledFunction(squares)
    assert function.compile(X, draws=False).tolist() == [1, 2, 5]
    assert len(asked) == 1
    assert function.run(2 * X).tolist() == [1, 5, 17]


@pytest.mark.parametrize(("most", "settings"), [(3, {"draws": True}), (3, {}), (2, {"draws": False})], ids=str)
def test_of_others_the_kernels_are(most, settings, asked, monkeypatch):
    """Of those that may draw, and of those that are not small."""
    monkeypatch.setattr(compiling, "IN_CPP_UP_TO", most)
    function = compiling.CompiledFunction(squares)
    assert function.compile(X, **settings).tolist() == [1, 2, 5]
    assert asked == []
    assert function.run(2 * X).tolist() == [1, 5, 17]


def test_of_several_arguments_all_numbers_count(monkeypatch):
    monkeypatch.setattr(compiling, "IN_CPP_UP_TO", 6)
    assert compiling.in_cpp((X, {"data": (X, "name", 5)}))
    assert not compiling.in_cpp((X, {"data": (X, X[:1])}))
    assert not compiling.in_cpp((X, X[:1].to("meta")))
