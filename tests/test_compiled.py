"""Compiled gradients: the numbers of the eager ones, from one graph for each shape."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

import metaprox as mp
from conftest import relative_error
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # batch norm in eval mode, while traced
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
GD = mp.GradientDescent(0.01)


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    torch.manual_seed(1)  # of the models
    counters.clear()


def sinusoids(model, count=6):
    return mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5), Sinusoid().batch(range(count))


def pair(method, steps, **settings):
    """Compiled and eager."""
    return method(GD, steps, **settings, compile=True), method(GD, steps, **settings)


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


@needs_compiler
def test_equals_eager_with_one_graph_for_each_shape():
    problem, tasks = sinusoids(mlp([1, 12, 1]))
    settings = {"scheme": "forward", "residual_correction": True, "nu": 0.1}
    for steps, count in ((3, 6), (8, 6), (3, 4), (3, 1)):
        fewer = mp.Task(*(tuple(leaf[:count] for leaf in part) for part in tasks))
        both = pair(mp.FOBMAML, steps, **settings)
        assert_same(*both, problem, fewer)
    for solver in (mp.GradientDescent(0.02), mp.Nesterov(0.02)):
        both = (mp.FOBMAML(solver, 3, **settings, compile=on) for on in (True, False))
        assert_same(*both, problem, tasks)
    assert graphs() == 2  # support and query gradients of one branch
    both = pair(mp.FOBMAML, 3, nu=0.1)
    assert_same(*both, problem, tasks)
    assert graphs() == 4  # and of two


@needs_compiler
def test_parameters_that_change_or_do_not_adapt_are_no_constants():
    model = mlp([1, 12, 1])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5, adapt="2.*")
    both = pair(mp.FOBMAML, 3, nu=0.1)
    tasks = Sinusoid().batch(range(4))
    assert_same(*both, problem, tasks)
    before = graphs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert_same(*both, problem, tasks)
    assert graphs() == before


@needs_compiler
def test_modes_and_buffers_are_looked_at_anew():
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    problem, tasks = sinusoids(model)
    both = pair(mp.FOMAML, 3)
    assert_same(*both, problem, tasks)
    model.eval()
    assert_same(*both, problem, tasks)
    model[1].running_mean += 1.0
    assert_same(*both, problem, tasks)


@needs_compiler
def test_dropout_is_coupled_when_compiled():
    """Noise that differed between the branches would be divided by nu = 1e-3."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(12, 1))
    problem, tasks = sinusoids(model.double())
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    norms = []
    for meta in pair(mp.FOBMAML, 5, nu=1e-3):
        torch.manual_seed(1)
        out = meta(problem, problem.live_parameters(), tasks)
        norms.append(float(flat(out.grad).norm()))
    assert norms[0] < 3 * norms[1]
    assert float(torch.rand(())) == pytest.approx(_after_one_draw(1))


def _after_one_draw(seed):
    torch.manual_seed(seed)
    torch.randint(2**63 - 1, ())
    return float(torch.rand(()))


def test_goes_on_with_a_warning_where_it_fails():
    def breaks(model, batch):
        torch._dynamo.graph_break()
        return mean_squared_error(model, batch)

    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), breaks, lam=0.5)
    tasks = Sinusoid().batch(range(3))
    meta = mp.FOMAML(GD, 3, compile=True)
    with pytest.warns(UserWarning, match="metaprox goes on without compile=True, which failed") as caught:
        ours = meta(problem, problem.live_parameters(), tasks)
    assert len(caught) == 2  # one for each loss, and not one for each step
    theirs = mp.FOMAML(GD, 3)(problem, problem.live_parameters(), tasks)
    for name, grad in theirs.grad.items():
        assert torch.equal(ours.grad[name], grad)


@needs_compiler
def test_goes_on_with_a_warning_where_a_loss_changes_from_call_to_call():
    calls = 0

    def counting(model, batch):
        nonlocal calls
        calls += 1
        return mean_squared_error(model, batch) + calls

    problem = mp.ProximalProblem.from_module(mlp([1, 4, 1]), counting, 0.5, mean_squared_error)
    tasks = Sinusoid().batch(range(3))
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.warns(UserWarning, match="changes from call to call"),
        pytest.warns(UserWarning, match="recompile_limit of 1 graph") as caught,
    ):
        ours = mp.FOMAML(GD, 3, compile=True)(problem, problem.live_parameters(), tasks)
    assert len([w for w in caught if "metaprox goes on" in str(w.message)]) == 1  # torch's compiler has its own
    theirs = mp.FOMAML(GD, 3)(problem, problem.live_parameters(), tasks)
    for name, grad in theirs.grad.items():
        torch.testing.assert_close(ours.grad[name], grad)


def test_the_loop_has_nothing_to_compile():
    with pytest.raises(mp.InputError, match=r"compile=True needs backend='vmap'.*torch\.compile\(model\)"):
        mp.FOBMAML(GD, 3, backend="loop", compile=True)
