"""Solves in one graph, and base and branches in one: whatever the steps, with the records of the loop; in smaller ones
where it can't be had."""

import re
import warnings
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.utils._python_dispatch import TorchDispatchMode

import metaprox as mp
from conftest import relative_error
from metaprox.losses import compiled, compiling, traced
from metaprox.losses.shared_graphs import Graphs
from metaprox.models import mean_squared_error, mlp
from test_compiled import GD, assert_same, flat, graphs, needs_compiler, pair, sinusoids, some

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler itself
]


@pytest.fixture(autouse=True)
def start_afresh(as_traced):
    compiled.forget()
    torch.manual_seed(1)  # of the models
    counters.clear()


@pytest.fixture
def runs(monkeypatch):
    """The names of the functions that are called in graphs, one after another."""
    names, run = [], Graphs.run

    def noted(self, name, *args, **kwargs):
        names.append(name)
        return run(self, name, *args, **kwargs)

    monkeypatch.setattr(Graphs, "run", noted)
    return names


def called(estimator, problem, tasks):
    return estimator(problem, problem.live_parameters(), tasks)


def assert_equal_records(ours, theirs):
    """All of ``info``, and the points."""
    for field in fields(ours.info):
        one, other = (getattr(out.info, field.name) for out in (ours, theirs))
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, equal_nan=True)
        elif isinstance(one, (int, float, bool)):
            assert one == pytest.approx(other, rel=1e-3, nan_ok=True), field.name
    for name, y in ours.adapted.items():
        torch.testing.assert_close(y, theirs.adapted[name], equal_nan=True)


@pytest.mark.usefixtures("as_lowered")
@pytest.mark.parametrize(
    ("start", "perturb", "scheme", "corrected"),
    [
        ("base", "loss", "forward", False),
        ("base", "loss", "forward", True),
        ("base", "loss", "symmetric", False),
        ("base", "center", "central4", True),
        ("predictor", "loss", "symmetric", False),
        ("predictor", "center", "forward", True),
    ],
)
def test_base_and_branches_are_one_graph_and_records_are_those_of_the_loop(perturb, scheme, corrected, start, runs):
    problem, tasks = sinusoids(mlp([1, 8, 1]).double())
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    settings = {"scheme": scheme, "perturb": perturb, "residual_correction": corrected, "start": start}
    for steps in (1, 2, 7):
        ours, theirs = (called(one, problem, tasks) for one in pair(mp.FOBMAML, steps, **settings))
        assert_equal_records(ours, theirs)
        assert ours.info.counts == theirs.info.counts
    assert graphs() == 1
    assert runs == 3 * ["branched"]


@pytest.mark.parametrize("adapt", [None, "2.*"])
def test_a_base_and_branches_that_are_not_one_graph_are_one_each(adapt, runs):
    """As where parameters do not adapt, or there is more to be seen on the way."""
    problem, tasks = sinusoids(mlp([1, 8, 1]).double())
    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]).double(), mean_squared_error, lam=0.5, adapt=adapt)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    settings = {"scheme": "forward", "estimate_truncation": adapt is None}
    for steps in (1, 2, 7):
        ours, theirs = (called(one, problem, tasks) for one in pair(mp.FOBMAML, steps, **settings))
        assert_equal_records(ours, theirs)
    assert "branched" not in runs
    assert runs.count("solve") >= 5  # a first step of branches needs none


def test_no_number_is_a_constant_of_the_graph_of_base_and_branches(runs):
    model = mlp([1, 8, 1]).double()
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in sinusoids(model)[1]))
    for lam, lr, ours, eps in ((0.5, 0.01, 0.02, 0.1), (0.7, 0.02, 0.02, 0.1), (0.7, 0.02, 0.01, 0.3)):
        problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=lam)
        settings = {"perturb": "center", "eps": eps, "branch_solver": mp.GradientDescent(ours), "branch_steps": 4}
        found = [called(one, problem, tasks) for one in pair(mp.FOBMAML, 3, mp.GradientDescent(lr), **settings)]
        assert_equal_records(*found)
    for count in (5, 4):  # which are padded
        assert_equal_records(
            *(called(one, problem, some(tasks, count)) for one in pair(mp.FOBMAML, 3, eps=0.2, perturb="center"))
        )
    assert graphs() == 1
    assert runs == 5 * ["branched"]


def test_what_draws_no_random_numbers_may_be_cpp_throughout(monkeypatch):
    """Solves; of a gradient alone it is not looked whether it draws."""
    may, compile_ = [], compiling.CompiledFunction.compile

    def noted(self, *args, draws):
        may.append(not draws)
        return compile_(self, *args, draws=draws)

    monkeypatch.setattr(compiling.CompiledFunction, "compile", noted)
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    for estimator in (mp.FOBMAML, mp.FOMAML):
        assert_same(*pair(estimator, 3), problem, tasks)
    assert may == [True, True, False]
    may.clear()
    problem, tasks = sinusoids(torch.nn.Sequential(mlp([1, 8, 1]), torch.nn.Dropout(0.5)))
    called(pair(mp.FOBMAML, 3)[0], problem, tasks)
    assert may
    assert not any(may)


class Tied(torch.nn.Module):
    """A weight, a module and a buffer in two places each."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(1, 4), torch.nn.Linear(1, 4, bias=False)
        self.last.weight = self.first.weight
        self.middle = torch.nn.Linear(4, 4)
        self.others = torch.nn.ModuleList([self.middle, torch.nn.Tanh()])
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("same", self.mean)

    def forward(self, x):
        hidden = torch.tanh(self.others[0](torch.tanh(self.middle(self.first(x)))))
        self.mean.add_(0.1 * hidden.detach().mean(0))
        return (hidden - self.same) @ self.last.weight


@pytest.mark.parametrize("renamed", [{}, {"first.weight": "last.weight", "middle.bias": "others.0.bias"}])
def test_what_is_tied_is_given_in_all_its_places(renamed, as_lowered):
    """Also under the second of its names."""
    model = Tied()
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    problem, tasks = sinusoids(model)
    params = {renamed.get(name, name): value for name, value in problem.live_parameters().items()}
    ours, theirs = (flat(meta(problem, params, tasks).grad) for meta in pair(mp.FOBMAML, 3))
    assert relative_error(ours, theirs) < 1e-4
    assert graphs() == 1
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_without_an_estimate_of_the_error_it_is_not_known_from_a_graph_either(runs):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    ours, theirs = (called(one, problem, tasks) for one in pair(mp.FOBMAML, 3, estimate_error=False))
    assert_equal_records(ours, theirs)
    assert runs == ["branched"]
    assert ours.info.relative_error.isnan().all()
    assert ours.info.linear_residual.isnan().all()


def test_padded_tasks_change_nothing_in_the_graph_of_base_and_branches(monkeypatch):
    monkeypatch.setattr(compiled, "EXACT_SIZES", 1)
    problem, tasks = sinusoids(mlp([1, 8, 1]), count=8)
    both = pair(mp.FOBMAML, 3, branch_solver=mp.ConjugateGradient(0.05), branch_steps=3)
    for count in (8, 5):
        assert_equal_records(*(called(one, problem, some(tasks, count)) for one in both))
    assert graphs() == 1


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("where", ["base", "query", "branches"])
def test_what_is_not_finite_in_base_or_branches_is_treated_as_step_by_step(where, on_nonfinite):
    model = mlp([1, 8, 1])

    def loss(module, batch):
        found = mean_squared_error(module, batch)
        return torch.where(batch[1].amax() > 1e3, found**3, found) if where == "base" else found

    def outer(module, batch):
        return mean_squared_error(module, batch) * torch.where(batch[1].amax() > 1e3, torch.inf, 1.0)

    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5, outer_loss=outer)
    tasks = sinusoids(model)[1]
    (tasks.query if where == "query" else tasks.support)[1][2] *= 1e6
    lr = 1e30 if where == "branches" else 0.01
    settings = {"eps": 0.1, "perturb": "center", "branch_solver": mp.GradientDescent(lr), "branch_steps": 9}
    said = []
    for one in pair(mp.FOBMAML, 9, on_nonfinite=on_nonfinite, **settings):
        if on_nonfinite == "raise" or where == "branches":
            with pytest.raises(mp.NonFiniteError) as caught:
                called(one, problem, tasks)
            said.append((caught.value.task, caught.value.step, str(caught.value)))
        else:
            out = called(one, problem, tasks)
            assert out.info.skipped.tolist() == [task == 2 for task in range(6)]
            said.append(out.info.skipped.tolist())
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "solver",
    [
        *(mp.ConjugateGradient(0.05), mp.AdaptiveGradientDescent(0.05), mp.Anderson(0.05, 2)),
        *(mp.Nesterov(0.05, momentum=0.5), mp.Adam(0.01, betas=(0.0, 0.9))),
    ],
)
def test_branches_of_a_solver_are_in_the_graph_of_their_base(solver, runs):
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    problem, tasks = sinusoids(model)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    for count in (1, 2, 3, 8):
        runs.clear()
        both = pair(mp.FOBMAML, 5, branch_solver=solver, branch_steps=count, perturb="center")
        assert_equal_records(*(called(one, problem, tasks) for one in both))
        assert runs == ["branched"]


def test_a_solver_whose_state_grows_and_does_not_say_how_it_ends_is_in_no_graph_of_base_and_branches(runs):
    class Growing(mp.Anderson):
        """Which may step otherwise, so that what it inherits is no promise."""

    problem, tasks = sinusoids(mlp([1, 8, 1]).double())
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    both = pair(mp.FOBMAML, 5, branch_solver=Growing(0.05), perturb="center")
    assert_equal_records(*(called(one, problem, tasks) for one in both))
    assert runs[0] == "branched"
    assert set(runs[1:]) >= {"solve"}


@pytest.mark.usefixtures("as_lowered")
@pytest.mark.parametrize(
    ("solver", "branches", "perturb"),
    [
        (mp.AdaptiveGradientDescent(), None, "loss"),
        (mp.AdaptiveGradientDescent(), mp.AdaptiveGradientDescent(), "center"),
        (mp.AdaptiveGradientDescent(0.2), mp.AdaptiveGradientDescent(0.1), "loss"),
        (mp.AdaptiveGradientDescent(0.1), mp.ConjugateGradient(0.1), "center"),
        (mp.ConjugateGradient(0.05), mp.GradientDescent(0.05), "loss"),
        (mp.Anderson(0.05, 3), None, "center"),
        (mp.Nesterov(0.05), mp.Anderson(0.05), "loss"),
        (mp.Adam(0.01), mp.Nesterov(0.05), "center"),
    ],
)
def test_a_base_by_a_solver_is_in_one_graph_with_its_branches_which_go_on_with_its_steps(
    solver, branches, perturb, runs
):
    """As they do where each is solved alone: with the last step of an equal solver, and else with a first one."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    problem, tasks = sinusoids(model)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    step = {"nu": 0.02} if perturb == "loss" else {"eps": 0.05}
    for steps, count, size in ((1, 1, 6), (1, 5, 6), (2, 2, 5), (9, 4, 6)):
        both = pair(mp.FOBMAML, steps, solver, branch_solver=branches, branch_steps=count, perturb=perturb, **step)
        ours, theirs = (called(one, problem, some(tasks, size)) for one in both)
        assert_equal_records(ours, theirs)
        assert ours.info.counts == theirs.info.counts
        assert ours.info.base_step_sizes.shape == (size, steps)
    assert runs == 4 * ["branched"]
    assert graphs() == 1


@pytest.mark.parametrize("steps", [traced.MOST_STEPS - 1, traced.MOST_STEPS, 2 * traced.MOST_STEPS + 3])
def test_more_steps_than_a_graph_has_room_for_are_taken_in_several_goes(steps, runs):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    ours, theirs = pair(mp.FOBMAML, steps, scheme="forward", eps=0.1, perturb="center", branch_steps=3)
    assert_equal_records(called(ours, problem, tasks), called(theirs, problem, tasks))
    goes = -(-(steps + 1) // traced.MOST_STEPS)
    assert (graphs(), len(runs)) == ((1, 1) if goes == 1 else (3, 2 + goes))


def diverging(model, batch):
    """The gradient of one task overflows at its third step."""
    loss = mean_squared_error(model, batch)
    return torch.where(batch[1].amax() > 1e3, loss**3, loss)


def test_the_first_bad_step_is_named_and_such_tasks_are_skipped():
    model = mlp([1, 8, 1])
    problem = mp.ProximalProblem.from_module(model, diverging, lam=0.5)
    tasks = sinusoids(model)[1]
    tasks.support[1][2] *= 1e6
    said = []
    for one in pair(mp.Reptile, 9):
        with pytest.raises(mp.NonFiniteError) as caught:
            called(one, problem, tasks)
        said.append((caught.value.task, caught.value.step, str(caught.value)))
    assert said[0] == said[1]
    assert said[0][:2] == (2, said[0][1])
    assert said[0][1] in range(1, 9)
    settings = {"on_nonfinite": "skip", "eps": 0.1, "perturb": "center"}
    ours, theirs = (called(one, problem, tasks) for one in pair(mp.FOBMAML, 9, **settings))
    assert ours.info.skipped.tolist() == theirs.info.skipped.tolist() == [task == 2 for task in range(6)]
    assert relative_error(flat(ours.grad), flat(theirs.grad)) < 1e-4
    assert_equal_records(ours, theirs)


def test_losses_that_draw_take_one_step_at_a_time(runs):
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    problem, tasks = sinusoids(model)
    called(pair(mp.Reptile, 3)[0], problem, tasks)
    assert runs == 3 * ["step"]
    model.eval()
    called(pair(mp.Reptile, 3)[0], problem, tasks)
    assert runs[3:] == ["solve"]


def test_noise_that_a_first_look_has_not_seen_is_not_drawn_in_a_solve(runs):
    """As where a task is small enough to be spared."""

    def noisy(model, batch):
        loss = mean_squared_error(model, batch)
        return loss + 0 * torch.rand(()) if torch.compiler.is_compiling() else loss

    problem, tasks = sinusoids(mlp([1, 8, 1]))
    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), noisy, lam=0.5)
    with pytest.warns(UserWarning, match=r"compiles the step alone.*noisy.*draws random numbers"):
        called(pair(mp.Reptile, 3)[0], problem, tasks)
    assert runs == ["solve", "step", "step", "step"]


def test_a_solve_that_is_in_no_graph_is_taken_step_by_step_and_that_is_said_once(runs):
    """torch's loops take no function that writes on what lies outside of it."""
    log = []

    def logs(model, batch):
        log.append(0)
        return mean_squared_error(model, batch)

    problem, tasks = mp.ProximalProblem.from_module(mlp([1, 8, 1]), logs, lam=0.5), sinusoids(mlp([1, 8, 1]))[1]
    ours, theirs = pair(mp.FOBMAML, 3, nu=0.1, residual_correction=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert_same(ours, theirs, problem, tasks)
    (said,) = [str(one.message) for one in caught if "metaprox" in str(one.message)]
    assert "compiles the step alone, since a solve in one graph failed for" in said
    assert "logs" in said
    assert {"branched", "solve", "step", "evaluate"} == set(runs)


@pytest.mark.usefixtures("as_lowered")
def test_data_that_share_memory_are_no_obstacle():
    problem, _ = sinusoids(mlp([1, 8, 1]))
    memory = torch.randn(12, 10, 1)
    tasks = mp.Task((memory[:6], memory[6:]), (memory[:6], memory[6:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_same(*pair(mp.FOBMAML, 3, nu=0.1), problem, tasks)
    assert graphs() == 1


@pytest.mark.parametrize(("adapt", "method"), [("net.2.*", mp.FOMAML), (None, partial(mp.FOBMAML, nu=0.1))])
def test_buffers_parameters_that_do_not_adapt_and_numbers_are_read_anew_by_a_solve(adapt, method, runs):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.factor = mlp([1, 8, 1]), 1.0
            self.register_buffer("shift", torch.zeros(1))

        def forward(self, inputs):
            return self.factor * self.net(inputs) + self.shift

    model = Scaled()
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5, adapt=adapt)
    tasks, both = sinusoids(model)[1], pair(method, 3)
    found = []

    def assert_same_and_new():
        assert_same(*both, problem, tasks)
        found.append(flat(called(both[0], problem, tasks).grad))
        assert len(found) < 2 or relative_error(found[-1], found[-2]) > 1e-3

    assert_same_and_new()
    model.shift += 1.0
    assert_same_and_new()
    model.shift = torch.full((1,), -2.0)
    assert_same_and_new()
    model.factor = 1.5
    assert_same_and_new()
    with torch.no_grad():
        model.net[0].weight.mul_(3)
    assert_same_and_new()
    model.net[1] = torch.nn.Tanh()
    assert_same_and_new()
    assert ("branched" in runs) == (adapt is None)
    model.net[0].requires_grad_(False)
    assert_same(*both, problem, tasks)


@needs_compiler
def test_graphs_on_disk_are_told_apart_by_what_is_in_their_loops(monkeypatch):
    monkeypatch.undo()  # of running in eager mode
    tasks = sinusoids(mlp([1, 3, 1]), count=2)[1]
    losses = [lambda m, batch, power=power: ((m(batch[0]) - batch[1]).abs() ** power).mean() for power in (2, 3)]
    with fresh_cache():
        for turn in range(2):
            for loss in losses:
                one = mp.ProximalProblem.from_module(mlp([1, 3, 1]), loss, lam=0.5)
                assert_same(*pair(mp.Reptile, 2), one, tasks)
            compiled.forget()
            assert counters["inductor"]["fxgraph_cache_miss"] == 2
            assert counters["inductor"]["fxgraph_cache_hit"] == 2 * turn


@pytest.mark.parametrize(
    "solver",
    [
        *(mp.AdaptiveGradientDescent(), mp.Anderson(0.05, 2), mp.ConjugateGradient(0.05)),
        *(mp.Nesterov(0.05), mp.Adam(0.01)),
    ],
)
def test_a_solve_by_a_solver_is_in_graphs_from_the_step_on_that_leaves_its_state_as_it_is_built(solver, runs):
    """In float64, since these solvers make much of rounding."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    problem, tasks = sinusoids(model)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    ours, theirs = pair(mp.FOMAML, 80, solver)
    long, again, longer = (called(one, problem, tasks) for one in (ours, ours, theirs))
    assert len(runs) <= 2 * 5  # two first steps, 64, the rest, and the query gradient
    assert torch.equal(flat(long.grad), flat(again.grad))
    if isinstance(solver, mp.Anderson):  # whose later steps make rounding grow without end
        first, other = (out.info.base_step_sizes[:, :20] for out in (long, longer))
        torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-6)
    else:
        assert_equal_records(long, longer)


def test_a_solver_that_counts_in_python_or_writes_on_itself_is_stepped_outside(runs):
    class Counting(mp.GradientDescent):
        seen = 0

        def step(self, grad, y, state):
            type(self).seen += 1
            return y - self.lr * grad, None

    problem, tasks = sinusoids(mlp([1, 8, 1]))
    with pytest.warns(UserWarning, match="takes the steps of .*Counting outside of graphs"):
        ours, theirs = (called(one, problem, tasks) for one in pair(mp.Reptile, 9, Counting(0.01)))
    assert relative_error(flat(ours.grad), flat(theirs.grad)) < 1e-4
    assert Counting.seen == 2 * 9
    for one in (mp.Adam(0.01), mp.Nesterov(0.01)):
        assert_same(*pair(mp.Reptile, 9, one), problem, tasks)


def test_evaluate_compiles_its_solves(runs):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    ours, theirs = (mp.evaluate(problem, tasks, None, GD, 4, backend="vmap", compile=on) for on in (True, False))
    torch.testing.assert_close(ours.values["loss"], theirs.values["loss"])
    assert runs == ["solve"]
    with pytest.raises(mp.InputError, match="compile=True needs backend='vmap'"):
        mp.evaluate(problem, tasks, None, GD, 4, backend="loop", compile=True)


def test_compiling_says_that_it_does_and_how_long_it_took(caplog):
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    with caplog.at_level("INFO", logger="metaprox"):
        for _ in range(2):
            called(pair(mp.FOBMAML, 3)[0], problem, tasks)
    said = [one.getMessage() for one in caplog.records if one.name == "metaprox"]
    assert len(said) == 2
    assert re.match(r"metaprox compiles base and branches of mean_squared_error \(.*\) for 6 tasks, once", said[0])
    assert re.search(r"has compiled base and branches .* in \d+\.\d s$", said[1])


def test_where_losses_draw_random_numbers_it_is_said_why_a_step_is_a_graph(caplog):
    problem, tasks = sinusoids(torch.nn.Sequential(mlp([1, 8, 1]), torch.nn.Dropout(0.5)))
    with caplog.at_level("INFO", logger="metaprox"):
        for _ in range(2):
            called(pair(mp.FOMAML, 3)[0], problem, tasks)
    said = [one.getMessage() for one in caplog.records if "random" in one.getMessage()]
    assert len(said) == len(set(said)) == 2  # a step, and the gradient of the outer loss
    assert re.match(
        r"metaprox takes a graph for a step alone: mean_squared_error \(.*\) draws random numbers$", said[0]
    )


def test_adapt_compiles_its_solve_and_never_asks_for_the_outer_loss(runs):
    def never(model, batch):
        raise AssertionError

    model = mlp([1, 8, 1])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5, outer_loss=never)
    support = tuple(leaf[0] for leaf in sinusoids(model)[1].support)
    found = [mp.adapt(problem, support, GD, 4, compile=on) for on in (True, False)]
    for name, y in found[0].items():
        torch.testing.assert_close(y, found[1][name])
    assert runs == ["solve"]
    for settings in ({"tol": 1e-9, "max_steps": 4}, {"steps": 4}):
        y = mp.adapt(problem, support, mp.Nesterov(0.01), compile=True, **settings)
        other = mp.adapt(problem, support, mp.Nesterov(0.01), **settings)
        torch.testing.assert_close(y["0.weight"], other["0.weight"])

    def item(model, batch):
        return mean_squared_error(model, batch) * batch[1].abs().amax().item()

    with pytest.warns(UserWarning, match="goes on without compile=True: these losses"):
        mp.adapt(mp.ProximalProblem.from_module(model, item, lam=0.5), support, GD, 2, compile=True)


def test_a_learner_adapts_in_a_graph_that_later_tasks_use(runs):
    support = [tuple(leaf[i] for leaf in sinusoids(mlp([1, 8, 1]))[1].support) for i in range(2)]
    learner = mp.Learner(mlp([1, 8, 1]), mean_squared_error, 0.5, GD, 4)
    for one in support:
        ours, theirs = (learner.adapt(one, (), compile=on) for on in (True, False))
        torch.testing.assert_close(ours.module()(one[0]), theirs.module()(one[0]))
    assert set(runs) == {"solve"}
    assert graphs() == 1


class Operations(TorchDispatchMode):
    """Counts the operations that are started outside of graphs."""

    count, inside = 0, False
    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls):
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not self.inside
        return func(*args, **(kwargs or {}))


def test_a_small_call_starts_few_operations_outside_of_its_graph(monkeypatch):
    """300 before the formulas between its solves were in it."""
    problem, tasks = sinusoids(mlp([1, 8, 8, 1]))
    meta, mode, run = pair(mp.FOBMAML, 5)[0], Operations(), compiling.CompiledFunction.run
    called(meta, problem, tasks)

    def inside(self, *args):
        mode.inside = True
        try:
            return run(self, *args)
        finally:
            mode.inside = False

    monkeypatch.setattr(compiling.CompiledFunction, "run", inside)
    with mode:
        called(meta, problem, tasks)
    assert 0 < mode.count <= 90


def test_what_a_call_keeps_of_its_problem_is_looked_at_anew():
    """Parameters that are frozen, tied, hooked, renamed, cast, or not finite, between two calls."""
    problem, tasks = sinusoids(mlp([1, 8, 1]))
    model, both = (
        torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)),
        pair(mp.FOBMAML, 3),
    )
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    assert_same(*both, problem, tasks)
    model[0].bias.requires_grad_(False)
    assert_same(*both, problem, tasks)
    assert "0.bias" not in called(both[0], problem, tasks).grad
    model[0].bias.requires_grad_(True)
    model[2].extra = torch.nn.Parameter(torch.ones(1))
    assert_same(*both, problem, tasks)
    assert "2.extra" in called(both[0], problem, tasks).grad
    del model[2].extra
    before = model[0].weight
    model[0].weight = model[2].weight = torch.nn.Parameter(torch.ones(8, 1))
    with pytest.raises(RuntimeError, match=r"shape|size"):
        called(both[1], problem, tasks)
    model[0].weight, model[2].weight = before, torch.nn.Parameter(torch.ones(1, 8))
    assert_same(*both, problem, tasks)
    handle = model[0].weight.register_hook(lambda grad: grad)
    with pytest.raises(mp.InputError, match="gradient hook"):
        called(both[0], problem, tasks)
    handle.remove()
    model[0].weight._backward_hooks = None
    with torch.no_grad():
        model[2].weight[0, 3] = torch.nan
    with pytest.raises(mp.InputError, match=r"'2.weight' has non-finite values"):
        called(both[0], problem, tasks)
    model[2].weight = torch.nn.Parameter(torch.ones(1, 8))
    model.double()
    wide = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    assert_same(*both, problem, wide)
