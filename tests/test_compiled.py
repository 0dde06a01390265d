"""Compiled gradients: the numbers of the eager ones, from graphs that are shared by what is alike, and bounded."""

import functools
import gc
import shutil
import threading
import types
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import metaprox as mp
from conftest import relative_error
from metaprox.losses import compiled, compiling, guards
from metaprox.losses.checked import CheckedLoss
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # batch norm in eval mode, while traced
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
GD = mp.GradientDescent(0.01)


@pytest.fixture(autouse=True)
def start_afresh():
    compiled.forget()
    torch.manual_seed(1)  # of the models
    counters.clear()


def sinusoids(model, count=6, lam=0.5):
    return mp.ProximalProblem.from_module(model, mean_squared_error, lam=lam), Sinusoid().batch(range(count))


def pair(method, steps, solver=GD, **settings):
    """Compiled and eager."""
    return [method(solver, steps, backend="vmap", chunk_size=None, compile=on, **settings) for on in (True, False)]


def graphs():
    return counters["stats"]["unique_graphs"]


def assert_same(compiled, eager, problem, tasks):
    """To rounding, which is divided by nu."""
    ours, theirs = (meta(problem, problem.live_parameters(), tasks) for meta in (compiled, eager))
    assert relative_error(flat(ours.grad), flat(theirs.grad)) < 1e-4
    torch.testing.assert_close(ours.query_loss, theirs.query_loss)
    assert ours.info.counts == theirs.info.counts


def flat(grad):
    return torch.cat([g.flatten() for g in grad.values()])


def some(tasks, count):
    return mp.Task(*(tuple(leaf[:count] for leaf in part) for part in tasks))


@needs_compiler
def test_equals_eager_with_one_graph_for_each_shape_whatever_the_steps_and_the_solver():
    problem, tasks = sinusoids(mlp([1, 12, 1]))
    settings = {"scheme": "forward", "residual_correction": True, "nu": 0.1}
    for steps, count in ((3, 6), (8, 6), (3, 4)):
        assert_same(*pair(mp.FOBMAML, steps, **settings), problem, some(tasks, count))
    for solver in (mp.GradientDescent(0.02), mp.Nesterov(0.02)):
        assert_same(*pair(mp.FOBMAML, 3, solver, **settings), problem, tasks)
    assert graphs() == 2  # base and branch in one, by each solver
    for steps in (3, 9):
        assert_same(*pair(mp.FOBMAML, steps, nu=0.1), problem, tasks)
    assert graphs() == 3  # and base and two branches
    for part in (tasks, some(tasks, 5), mp.Task(*(tuple(leaf[:, :5] for leaf in part) for part in tasks))):
        assert_same(*pair(mp.FOMAML, 3), problem, part)
    assert graphs() == 7  # and a solve and a query gradient, which do for fewer tasks, and of fewer examples


@needs_compiler
def test_noise_is_that_of_eager_mode():
    """In one and in several branches; noise that differed between them would be divided by nu = 1e-3."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(12, 1))
    problem, tasks = sinusoids(model.double())
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    grads = []
    for meta in pair(mp.FOBMAML, 4, nu=1e-3, residual_correction=True, start="predictor"):
        torch.manual_seed(1)
        grads.append(flat(meta(problem, problem.live_parameters(), tasks).grad))
    assert relative_error(*grads) < 1e-9
    assert float(torch.rand(())) == pytest.approx(_after_one_draw(1))


def _after_one_draw(seed):
    torch.manual_seed(seed)
    torch.randint(2**63 - 1, ())
    return float(torch.rand(()))


def test_parameters_that_change_or_do_not_adapt_and_lam_are_no_constants(as_traced):
    model = mlp([1, 12, 1])
    tasks = Sinusoid().batch(range(4))
    both = pair(mp.FOBMAML, 3, nu=0.1)
    for lam in (0.5, 2.0):
        problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=lam, adapt="2.*")
        assert_same(*both, problem, tasks)
    before = graphs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert_same(*both, problem, tasks)
    assert graphs() == before == 2  # the base's solve and the branches'


def test_modes_buffers_and_hooks_are_looked_at_anew(as_traced):
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    problem, tasks = sinusoids(model)
    both = pair(mp.Reptile, 3)
    assert_same(*both, problem, tasks)
    model.eval()
    assert_same(*both, problem, tasks)
    model[1].running_mean += 1.0
    assert_same(*both, problem, tasks)
    before = graphs()
    handle = model[0].register_forward_hook(lambda module, args, out: 2 * out)
    assert_same(*both, problem, tasks)
    assert graphs() > before
    handle.remove()
    assert_same(*both, problem, tasks)


class TwiceLinear(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return 2 * out if function is torch.nn.functional.linear else out


@contextmanager
def twice_the_square():
    square = torch.Tensor.square
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "square", functools.wraps(square)(lambda tensor: 2 * square(tensor)))
        patch.setattr(torch.Tensor, "of_ones_own", lambda tensor: tensor, raising=False)
        yield


def squared(module, batch):
    return (module(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("what", ["hook", "mode", "method"])
def test_what_no_guard_looks_at_is_seen_without_graphs(what, as_traced):
    problem, tasks = mp.ProximalProblem.from_module(mlp([1, 8, 1]), squared, lam=0.5), Sinusoid().batch(range(6))
    both = pair(mp.FOBMAML, 3)
    before = both[0](problem, problem.live_parameters(), tasks)
    made = graphs()
    if what == "hook":
        twice = lambda module, args, out: 2 * out if isinstance(module, torch.nn.Linear) else None  # noqa: E731
        handle, says = torch.nn.modules.module.register_module_forward_hook(twice), "a hook is registered for all"
    elif what == "mode":
        handle, says = TwiceLinear(), "TwiceLinear stands in"
    else:
        handle, says = twice_the_square(), r"something stands in for torch\.Tensor\.square"
    with handle:
        with pytest.warns(UserWarning, match=says):
            assert_same(*both, problem, tasks)
        eager = both[1](problem, problem.live_parameters(), tasks)
    assert relative_error(flat(eager.grad), flat(before.grad)) > 0.1
    assert_same(*both, problem, tasks)
    assert graphs() == made


@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.Sequential])
def test_methods_of_a_models_classes_are_looked_at_anew(kind, as_traced, monkeypatch):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    both, forward = pair(mp.FOBMAML, 3), kind.forward
    assert_same(*both, problem, tasks)
    made = graphs()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", lambda module, inputs: 2 * forward(module, inputs))
        assert_same(*both, problem, tasks)
    assert_same(*both, problem, tasks)
    assert graphs() == 2 * made


@pytest.mark.filterwarnings("ignore:metaprox compiles the step alone")  # torch traces no loop with it
@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_methods_of_all_modules_are_looked_at_anew(name, as_traced, monkeypatch):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    both, method = pair(mp.FOBMAML, 3), getattr(torch.nn.Module, name)
    before = both[0](problem, problem.live_parameters(), tasks)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, name, lambda module, *args: 0.7 * method(module, *args))
        assert_same(*both, problem, tasks)
        after = both[1](problem, problem.live_parameters(), tasks)
    assert relative_error(flat(after.grad), flat(before.grad)) > 0.1
    assert_same(*both, problem, tasks)


class Helper:
    def scale(self, value):
        return self.plain(value)

    @classmethod
    def plain(cls, value):
        return 1.0 * value


class Weighted:
    """A loss that calls methods, of itself and of others."""

    def __init__(self):
        self.helpers = [Helper()]

    def __call__(self, module, batch):
        return self.helpers[0].scale(self.own(mean_squared_error(module, batch)))

    def own(self, value):
        return 1.0 * value


class Stepping(mp.GradientDescent):
    def step(self, grad, y, state):
        return y - self.change(grad), None

    def change(self, grad):
        return self.lr * grad


HELPER = Helper()


def twice(method):
    if isinstance(method, classmethod):
        return classmethod(twice(method.__func__))
    return lambda self, value: 2.0 * method(self, value)


@pytest.mark.skipif(not guards.only_needed([], saw=print), reason="this torch does not say what it came by")
class TestMethodsThatWereReplacedAreSeen:
    @pytest.mark.parametrize(
        ("kind", "name"), [(Weighted, "own"), (Helper, "scale"), (Helper, "plain"), (Stepping, "change")]
    )
    def test_of_what_is_held(self, kind, name, as_traced, monkeypatch):
        self.compare(Weighted(), kind, name, monkeypatch)

    @pytest.mark.parametrize("made", [False, True])
    def test_of_what_is_found_or_made_within(self, made, as_traced, monkeypatch):
        def loss(module, batch):
            return (Helper() if made else HELPER).scale(mean_squared_error(module, batch))

        self.compare(loss, Helper, "scale", monkeypatch)

    def test_often(self, as_traced, monkeypatch):
        """With as many graphs as for other changes, and then none; those there are stay in use."""
        problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), Weighted(), lam=0.5)
        tasks, both = Sinusoid().batch(range(4)), pair(mp.Reptile, 2)
        assert_same(*both, problem, tasks)
        for factor in range(2, compiled.MOST_CHANGES + 1):
            monkeypatch.setattr(Helper, "scale", lambda self, value, factor=factor: factor * value)
            assert_same(*both, problem, tasks)
        assert graphs() == compiled.MOST_CHANGES
        monkeypatch.setattr(Helper, "scale", lambda self, value: 0.5 * value)
        with pytest.warns(UserWarning, match=f"{compiled.MOST_CHANGES} times"):
            assert_same(*both, problem, tasks)
        monkeypatch.undo()
        assert_same(*both, problem, tasks)
        assert graphs() == compiled.MOST_CHANGES

    def compare(self, loss, kind, name, monkeypatch):
        problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), loss, lam=0.5)
        tasks, both = Sinusoid().batch(range(4)), pair(mp.FOBMAML, 3, Stepping(0.01))
        before = both[0](problem, problem.live_parameters(), tasks)
        made = graphs()
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, twice(vars(kind)[name]))
            assert_same(*both, problem, tasks)
            after = both[1](problem, problem.live_parameters(), tasks)
        assert relative_error(flat(after.grad), flat(before.grad)) > 0.1
        assert graphs() > made
        made = graphs()
        assert_same(*both, problem, tasks)
        assert graphs() == made


@pytest.mark.parametrize("kind", [Weighted, torch.nn.Linear])
def test_classes_of_both_losses_and_of_their_models_are_known_without_torch(kind, monkeypatch):
    """For a torch that does not say what it came by."""
    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), mean_squared_error, lam=0.5, outer_loss=Weighted())
    losses = [CheckedLoss(problem.inner_loss, "inner_loss"), CheckedLoss(problem.outer_loss, "outer_loss")]
    pool = compiled.Pool(losses, None)
    assert pool.methods.are_as_they_were()
    monkeypatch.setattr(kind, "__call__", lambda *args: None, raising=False)
    assert not pool.methods.are_as_they_were()


def test_a_step_of_ones_own_is_taken_as_it_is(as_traced):
    class Clipped(mp.GradientDescent):
        def step(self, grad, y, state):
            return y - self.lr * grad.clamp(-1e-3, 1e-3), None

    problem, tasks = sinusoids(mlp([1, 12, 1]))
    x = problem.live_parameters()
    out = pair(mp.FOBMAML, 3, Clipped(0.1), nu=0.05)[0](problem, x, tasks)
    moved = max(float((y - x[name]).detach().abs().max()) for name, y in out.adapted.items())
    assert moved == pytest.approx(3 * 0.1 * 1e-3, rel=1e-3)


class TestWhatIsAlikeSharesGraphs:
    """Reptile takes a single graph, of the step."""

    @pytest.mark.parametrize("kind", ["problem", "lambda", "closure", "model", "bound method", "tensor"])
    def test_reuse(self, as_traced, kind):
        """What the same lines make anew is the same."""
        tasks, model, both = Sinusoid().batch(range(4)), mlp([1, 8, 1]), pair(mp.Reptile, 2)

        class Holder:
            def loss(self, module, batch):
                return mean_squared_error(module, batch)

        for turn in range(3):
            weight, mse = torch.full((), 1.0 + turn), torch.nn.MSELoss()
            net = mlp([1, 8, 1]) if kind == "model" else model
            loss = {
                "lambda": lambda module, batch: ((module(batch[0]) - batch[1]) ** 2).mean(),
                "closure": lambda module, batch, mse=mse: mse(module(batch[0]), batch[1]),
                "bound method": Holder().loss,
                "tensor": lambda module, batch, weight=weight: weight * mean_squared_error(module, batch),
            }.get(kind, mean_squared_error)
            assert_same(*both, mp.ProximalProblem.from_module(net, loss, lam=0.5 + turn), tasks)
        assert graphs() == 1

    def test_what_differs_is_seen(self, as_traced):
        """By value, attribute and default argument, in losses and models that the same lines made."""
        tasks, model, both = Sinusoid().batch(range(4)), mlp([1, 8, 1]), pair(mp.Reptile, 2)

        class Scaled(torch.nn.Module):
            def __init__(self, scale):
                super().__init__()
                self.model, self.scale = model, scale

            def forward(self, inputs):
                return self.scale * self.model(inputs)

        def number(value):
            return model, lambda module, batch: value * mean_squared_error(module, batch)

        def default(value):
            return model, lambda module, batch, value=value: value * mean_squared_error(module, batch)

        def attribute(value):
            return Scaled(value), mean_squared_error

        for make in (number, default, attribute):
            for value in (1.0, 2.0, 1.0):
                assert_same(*both, mp.ProximalProblem.from_module(*make(value), lam=0.5), tasks)
        assert graphs() == 3 * 2

    def test_graphs_keep_nothing_alive_and_are_freed_when_forgotten(self, as_traced):
        def adapt():
            net, mse = mlp([1, 8, 1]), torch.nn.MSELoss()
            tasks = Sinusoid().batch(range(4))
            problem = mp.ProximalProblem.from_module(net, lambda model, batch: mse(model(batch[0]), batch[1]), lam=0.5)
            pair(mp.Reptile, 2)[0](problem, problem.live_parameters(), tasks)
            return [weakref.ref(one) for one in (net, net[0].weight, mse, problem.inner_loss, tasks.support[0])]

        def code():
            (pool,) = compiled._POOLS.values()
            (batches,) = pool._of_shape.values()
            (function,) = batches._functions.values()
            return weakref.ref(function._function.__code__)

        of_user, graph = adapt(), code()
        gc.collect()
        assert [ref() for ref in of_user] == [None] * 5
        assert graph() is not None
        compiled.forget()
        gc.collect()
        if graph() is not None and not torch_lets_go_of_code():
            pytest.skip("torch keeps the code of whatever it has compiled in this environment, ours or not")
        assert graph() is None


def torch_lets_go_of_code():
    """Whether the code of a function that was compiled, and of which nothing else is left, is freed."""

    def double(x):
        return x * 2

    own = types.FunctionType(double.__code__.replace(co_name="own"), globals(), "own")
    code = weakref.ref(own.__code__)
    torch.compile(own, backend="eager")(torch.ones(3))
    torch._dynamo.eval_frame.remove_from_cache(own)
    del own
    gc.collect()
    return code() is None


class TestBounds:
    def test_shapes_beyond_torchs_limit_for_a_function_have_graphs(self, as_traced):
        problem, tasks = sinusoids(mlp([1, 8, 1]))
        both = pair(mp.Reptile, 2)
        with torch._dynamo.config.patch(recompile_limit=1):
            for examples in (3, 4, 5):
                assert_same(*both, problem, mp.Task(*(tuple(leaf[:, :examples] for leaf in part) for part in tasks)))
        assert graphs() == 3

    def test_further_shapes_are_eager_until_use_pays_for_them_and_the_latest_used_stay(self, as_traced, monkeypatch):
        monkeypatch.setattr(compiled, "MOST_SHAPES", 2)
        monkeypatch.setattr(compiled, "EVALUATIONS_PER_GRAPH", 30)
        problem, tasks = sinusoids(mlp([1, 8, 1]))
        parts = [mp.Task(*(tuple(leaf[:, :n] for leaf in part) for part in tasks)) for n in (3, 4, 5)]
        ours, theirs = pair(mp.Reptile, 2)

        def assert_same_on(*parts):
            for part in parts:
                assert_same(ours, theirs, problem, part)

        assert_same_on(*parts[:2])
        with pytest.warns(
            UserWarning, match=r"compiled mean_squared_error \(.* shapes, and evaluates further"
        ) as caught:
            assert_same_on(*parts, parts[2])
        assert (graphs(), len(caught)) == (2, 1)
        for _ in range(15):  # of two evaluations
            ours(problem, problem.live_parameters(), parts[1])
        assert_same_on(parts[2], parts[1])  # the former in the place of the first
        assert graphs() == 3

    def test_a_loss_that_changes_from_call_to_call_is_compiled_so_often_and_then_no_more(self, as_traced, monkeypatch):
        monkeypatch.setattr(compiled, "MOST_CHANGES", 2)
        model, tasks = mlp([1, 4, 1]), Sinusoid().batch(range(3))
        both = pair(mp.Reptile, 2)

        def assert_same_at(*steps):
            for step in steps:
                weight = 1.0 / (1 + step)
                problem = mp.ProximalProblem.from_module(
                    model, lambda m, b, w=weight: w * mean_squared_error(m, b), 0.5
                )
                assert_same(*both, problem, tasks)

        with pytest.warns(UserWarning, match=r"<lambda>.* 2 times .*Make the problem once") as caught:
            assert_same_at(*range(5))
        assert (graphs(), len(caught)) == (2, 1)
        assert_same_at(1)  # which has its graph
        assert graphs() == 2
        monkeypatch.setattr(compiled, "EVALUATIONS_PER_GRAPH", 5)
        assert_same_at(7)  # paid for by now
        assert graphs() == 3

    @pytest.mark.parametrize("seed", range(5))
    def test_batches_are_padded_to_at_most_twice_their_size_and_have_few_sizes(self, seed):
        pool = compiled.Pool([CheckedLoss(mean_squared_error, "a loss")], None)
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, 500, (400,), generator=generator).tolist()
        sizes = set()
        for count in sorted(counts) if seed == 0 else counts:
            size = pool.batches("shape", count).size
            assert count <= size <= 2 * count
            sizes.add(size)
        assert len(sizes) <= compiled.EXACT_SIZES + 9  # log2(500), rounded up
        assert pool.batches("shape", counts[0]).size in sizes

    def test_a_first_and_a_few_further_sizes_are_not_padded(self):
        pool = compiled.Pool([CheckedLoss(mean_squared_error, "a loss")], None)
        assert [pool.batches("shape", count).size for count in (25, 100, 24, 12, 30)] == [25, 100, 25, 12, 30]
        assert pool.batches("other shape", 24).size == 24


class TestWhereItFails:
    def test_goes_on_with_a_warning_and_to_the_last_bit(self):
        def breaks(model, batch):
            torch._dynamo.graph_break()
            return mean_squared_error(model, batch)

        problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), breaks, lam=0.5, outer_loss=mean_squared_error)
        tasks = Sinusoid().batch(range(3))
        ours, theirs = pair(mp.Reptile, 3)
        with pytest.warns(UserWarning, match=r"without compile=True, which failed for .*breaks \(.*py:\d+\)") as caught:
            ours = ours(problem, problem.live_parameters(), tasks)
        assert len([w for w in caught if "metaprox" in str(w.message)]) == 1  # and not one for each step
        theirs = theirs(problem, problem.live_parameters(), tasks)
        for name, grad in theirs.grad.items():
            assert torch.equal(ours.grad[name], grad)

    def test_whatever_torch_raises(self, as_traced):
        """Its guards fail on numpy's numbers, with an AssertionError."""
        scale = np.float64(2.0)
        problem = mp.ProximalProblem.from_module(
            mlp([1, 8, 1]), lambda model, batch: float(scale) * mean_squared_error(model, batch), lam=0.5
        )
        tasks = Sinusoid().batch(range(3))
        with pytest.warns(UserWarning, match="goes on without compile=True, which failed"):
            assert_same(*pair(mp.Reptile, 2), problem, tasks)

    def test_an_error_of_the_loss_is_raised_as_in_eager_mode_and_does_not_last(self, as_traced):
        def demanding(model, batch):
            if batch[0].shape[0] < 5:
                raise KeyError("too few examples")
            return mean_squared_error(model, batch)

        problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), demanding, lam=0.5)
        tasks = Sinusoid().batch(range(3))
        ours, theirs = pair(mp.Reptile, 2)
        with pytest.raises(KeyError, match="too few examples"):
            ours(problem, problem.live_parameters(), mp.Task(*(tuple(leaf[:, :3] for leaf in part) for part in tasks)))
        assert_same(ours, theirs, problem, tasks)
        assert graphs() == 1

    def test_the_loop_has_nothing_to_compile(self):
        with pytest.raises(mp.InputError, match=r"compile=True needs backend='vmap'.*torch\.compile\(model\)"):
            mp.FOBMAML(GD, 3, backend="loop", compile=True)


def in_threads(*functions):
    """Run at the same time; raises what any of them raised."""
    start, failed = threading.Barrier(len(functions)), []

    def run(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.fixture
def switching():
    """Threads that take turns as often as they can."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class TestThreads:
    def test_compile_and_run_at_the_same_time(self, as_traced, switching):
        """Two compile the same, one another shape, and all run one after another's graphs."""
        problem, tasks = sinusoids(mlp([1, 8, 1]))
        x = problem.live_parameters()
        ours, theirs = pair(mp.FOBMAML, 2, nu=0.1)
        parts = [some(tasks, 6), some(tasks, 6), some(tasks, 2)]
        expected = [flat(theirs(problem, x, part).grad) for part in parts]

        def work(place):
            for turn in range(12):
                index = (place + (turn if turn > 3 else 0)) % 3
                assert relative_error(flat(ours(problem, x, parts[index]).grad), expected[index]) < 1e-4

        in_threads(*(lambda place=place: work(place) for place in range(3)))
        assert graphs() == 2  # one of each size

    def test_the_live_model_is_left_alone_while_graphs_are_made_and_run(self, as_traced, switching):
        model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)).eval()
        problem, tasks = sinusoids(model)
        own, inputs = {**dict(model.named_parameters()), **dict(model.named_buffers())}, torch.randn(5, 1)
        outputs, done, looks = model(inputs), threading.Event(), []

        def watch():
            while not done.is_set():
                now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                looks.append(now.keys() == own.keys() and all(now[name] is own[name] for name in own))
                looks.append(torch.equal(model(inputs), outputs))

        def work():
            try:
                for _ in range(20):
                    pair(mp.FOBMAML, 2, nu=0.1)[0](problem, problem.live_parameters(), tasks)
            finally:
                done.set()

        in_threads(watch, work)
        assert len(looks) > 100
        assert all(looks)


def test_vector_instructions_are_looked_for_in_a_thread_once_and_what_fails_there_is_left_to_torch(monkeypatch):
    from torch._inductor import cpu_vec_isa

    asked = []

    def fails():
        asked.append(threading.current_thread().name)
        raise OSError("no compiler")

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", fails)
    compiling.look_at_processor.cache_clear()
    for _ in range(2):
        compiling.look_at_processor()
    for thread in [one for one in threading.enumerate() if one.name == "metaprox-vector-instructions"]:
        thread.join()
    assert asked == ["metaprox-vector-instructions"]
