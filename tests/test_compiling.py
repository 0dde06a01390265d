"""A function and its graphs: which of them are C++ throughout."""

import functools
import gc
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.graph import GraphLowering

import metaprox as mp
from metaprox.losses import compiled, compiling, guards, methods
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid
from test_compiled import needs_compiler

pytestmark = [
    needs_compiler,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself
]
X, HELD = torch.tensor([0.0, 1.0, 2.0]), torch.ones(4)


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


def rectified(x):
    compiling.only_compiled()
    return torch.nn.functional.relu(x) + 1


def test_what_stands_in_for_a_function_of_torch_has_no_graph(monkeypatch):
    """For torch would call it twice."""
    function, relu = compiling.CompiledFunction(rectified), torch.nn.functional.relu
    assert function.compile(-X).tolist() == [1, 1, 1]
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "relu", functools.wraps(relu)(lambda x: 2 + relu(x)))
        with pytest.raises(compiling.NotCompiledError):
            function.run(X)
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"stands in for torch\.nn\.functional\.relu"):
            function.compile(X)
    assert function.run(X).tolist() == [1, 2, 3]


def test_what_stands_in_for_a_builtin_of_torch_is_called(monkeypatch):
    def loss(x):
        compiling.only_compiled()
        return torch.square(x)

    function, square = compiling.CompiledFunction(loss), torch.square
    assert function.compile(X).tolist() == [0, 1, 4]
    monkeypatch.setattr(torch, "square", lambda x: 2 + square(x))
    with pytest.raises(compiling.NotCompiledError):
        function.run(X)
    assert function.compile(X).tolist() == [2, 3, 6]


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


def plus_held(x):
    compiling.only_compiled()
    return x + HELD.sum()


@pytest.mark.parametrize(("most", "graphs"), [(7, 1), (6, 0)])
def test_what_a_graph_reads_beside_its_arguments_counts(most, graphs, asked, monkeypatch):
    """As the parameters of a frozen model do behind few that adapt."""
    monkeypatch.setattr(compiling, "IN_CPP_UP_TO", most)
    function = compiling.CompiledFunction(plus_held)
    assert function.compile(X, draws=False).tolist() == [4, 5, 6]
    assert len(asked) == graphs


def test_what_a_frozen_model_holds_counts(asked, monkeypatch):
    """5 numbers adapt, to 160 of data, behind 304."""
    model = mlp([1, 50, 4, 1])
    for layer in model[:-1]:
        layer.requires_grad_(False)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5)
    tasks = Sinusoid().batch(range(4))
    meta = mp.FOMAML(mp.GradientDescent(0.1), 2, backend="vmap", compile=True)
    for most, cpp in ((400, False), (900, True)):
        monkeypatch.setattr(compiling, "IN_CPP_UP_TO", most)
        compiled.forget()
        asked.clear()
        meta(problem, problem.live_parameters(), tasks)
        assert bool(asked) == cpp


def test_of_several_all_numbers_count_and_devices(monkeypatch):
    monkeypatch.setattr(compiling, "IN_CPP_UP_TO", 6)
    assert compiling.in_cpp((X, X, 5))
    assert not compiling.in_cpp((X, X, X[:1]))
    assert not compiling.in_cpp((X, X[:1].to("meta")))


def test_garbage_is_looked_for_rarely_while_a_graph_is_made_and_then_as_before(monkeypatch):
    found, own = [], gc.get_threshold()

    def compiler(graph, inputs):
        found.append(gc.get_threshold())
        raise NotImplementedError

    monkeypatch.setattr(compiling, "SETTINGS", {"backend": compiler})
    compiled.forget()
    problem = mp.ProximalProblem.from_module(mlp([1, 3, 1]), mean_squared_error, 0.5)
    meta = mp.FOMAML(mp.GradientDescent(0.1), 2, backend="vmap", compile=True)
    try:
        gc.set_threshold(500, 7, 8)
        with pytest.warns(UserWarning, match="without compile=True"):
            meta(problem, problem.live_parameters(), Sinusoid().batch(range(2)))
        assert gc.get_threshold() == (500, 7, 8)
    finally:
        gc.set_threshold(*own)
    assert set(found) == {compiling.RARELY}


def test_of_two_threads_the_last_one_leaves_it_as_the_first_one_found_it():
    before = gc.get_threshold()
    first, second = compiling.rare_collection(), compiling.rare_collection()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before


leaves_out = pytest.mark.skipif(not guards.only_needed([], saw=print), reason="this torch keeps all guards")


@leaves_out
def test_what_calls_have_in_common_and_the_librarys_own_code_are_not_guarded():
    """Each guard takes time at every call."""
    compiled.forget()
    problem = mp.ProximalProblem.from_module(mlp([1, 3, 1]), mean_squared_error, 0.5)
    meta = mp.FOBMAML(mp.GradientDescent(0.1), 2, backend="vmap", compile=True)
    meta(problem, problem.live_parameters(), Sinusoid().batch(range(2)))
    (pool,) = [pool for pool in compiled._POOLS.values() if pool._found]
    (batches,) = pool._of_shape.values()
    (function,) = batches._functions.values()
    (entry,) = torch._dynamo.eval_frame._debug_get_cache_entry_list(function._function.__code__)
    found = str(entry.guard_manager)
    assert "L['losses'][0].loss.model" in found
    assert "L['losses'][1].loss.model" not in found  # the same one, looked at once
    assert "L['structure']" not in found
    assert "L['method']" not in found
    assert "__import_metaprox_dot_vectors_dot_norms'].norm_here" not in found


NAMES = {
    "G['__import_metaprox_dot_vectors_dot_norms']": False,
    "G['__import_metaprox_dot_vectors_dot_norms'].norm": False,
    "G['__import_metaprox_dot_vectors_dot_norms'].norm.__defaults__[0]": False,
    "G['__import_metaprox_dot_vectors_dot_norms'].BLOCK": True,  # a number, which a user may have replaced
    "G['__import_metaprox_dot_vectors_dot_norms'].torch": True,  # through which a loss is seen to look at torch
    "G['__import_metaprox_dot_vectors_dot_norms'].torch.backends.mkldnn": True,
    "G['__import_metaprox_dot_no_such_module'].norm": True,
    "G['__import_metaproxy'].norm": True,
    "G['__import_metaprox_dot_models'].mean_squared_error": True,  # a loss, which a user may have put something around
    "G['__import_torch_dot__functorch_dot_vmap'].vmap_impl": False,
    "G['__import_torch_dot__functorch'].config": True,
    "G['__import_torch_dot_utils_dot__pytree'].SUPPORTED_NODES": True,
    "G['__import_torch_dot_nn_dot_modules_dot_linear'].F.relu": True,
    "G['__import_torch_dot_nn_dot_modules_dot_module']._global_forward_hooks": True,
    "G['norm']": True,
    "structure": False,
    "structure.names": False,
    "L['structure'].names": False,
    "structures": True,
    "losses[0].loss.structure": True,
    "L['losses'][0].loss": True,
    "": True,
}


@leaves_out
@pytest.mark.parametrize("name", NAMES)
def test_guards_are_kept_but_on_code_of_the_library_and_what_is_the_same(name):
    came_by = []
    keeps = guards.only_needed(["structure"], came_by.extend)["guard_filter_fn"]
    assert keeps([SimpleNamespace(name=name, has_value=True, value=Fraction(1))]) == [NAMES[name]]
    of_a_library = ("torch_dot_", "metaprox_dot_vectors", "metaprox_dot_no")
    assert came_by == ([] if name.startswith(tuple(f"G['__import_{module}" for module in of_a_library)) else [Fraction])


def test_methods_that_were_replaced_added_or_taken_away_are_seen(monkeypatch):
    class Base:
        def first(self):
            return 1

    class Derived(Base):
        number = 1

        @classmethod
        def second(cls):
            return 2

    replaceable = methods.Replaceable()
    replaceable.add([Derived, int, torch.Tensor])
    assert replaceable.are_as_they_were()
    changes = [
        lambda: monkeypatch.setattr(Base, "first", lambda self: 3),
        lambda: monkeypatch.setattr(Derived, "first", lambda self: 3, raising=False),
        lambda: monkeypatch.setattr(Derived, "second", classmethod(lambda cls: 3)),
        lambda: monkeypatch.setattr(Base, "third", property(lambda self: 3), raising=False),
        lambda: monkeypatch.delattr(Derived, "second"),
        lambda: monkeypatch.setattr(Derived, "second", len),
    ]
    for change in changes:
        change()
        assert not replaceable.are_as_they_were()
        replaceable.add([Derived])  # knows it already
        assert not replaceable.are_as_they_were()
        monkeypatch.undo()
        assert replaceable.are_as_they_were()
    monkeypatch.setattr(Derived, "number", 2)  # torch guards it
    assert replaceable.are_as_they_were()
