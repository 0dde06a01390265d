"""backend="auto" and chunk_size="auto": what they choose, and that they change nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.losses.by_loss import BackendByLoss
from metaprox.losses.choose import Choice, Cost, cost_of_task, memory_of
from metaprox.losses.look import Look
from metaprox.losses.loop import LoopBackend
from metaprox.losses.noise import Noise
from metaprox.losses.setting import Setting
from metaprox.losses.vmap import VmapBackend
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import Sinusoid
from metaprox.vectors.parameters import Parameters

NOISE = Noise(0, torch.device("cpu"))
LOOK = Look(draws=False, repeats=True, writes=False, written=frozenset())


def classes(*shape, count=3, examples=5):
    data = torch.randn(count, examples, *shape), torch.arange(examples).expand(count, -1) % 5
    return mp.Task(data, data)


def chosen(model, tasks, choice=Choice("auto", "auto"), loss=cross_entropy):  # noqa: B008 - frozen
    problem = mp.ProximalProblem.from_module(model, loss, lam=0.5).private()
    parameters = Parameters.of(problem.live_parameters(), problem.adapted_names)
    with torch.no_grad():
        return choice.backend_for(Setting(problem, parameters, TaskBatch.of(tasks), NOISE, LOOK, 0))[0]


def test_small_models_are_vmapped_and_large_ones_are_not():
    assert isinstance(chosen(mlp([40, 40, 5]), classes(40)), VmapBackend)
    assert chosen(mlp([40, 2500, 20, 5]), classes(40)) == LoopBackend()  # 153,000 parameters
    layers = [nn.Conv2d(n, 64, 3, stride=2, padding=1) for n in (1, 64, 64, 64)]  # the field's, of 111,749
    field = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    assert type(chosen(field, classes(1, 28, 28))) is VmapBackend
    image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert isinstance(chosen(image, classes(3, 28, 28)), VmapBackend)
    assert chosen(image, classes(3, 28, 28, examples=800)) == LoopBackend()  # 271 million operations


def test_each_loss_has_the_backend_for_its_data():
    """271 million operations on the query of 800 pictures, and 2 million on a support of 5."""
    image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    tasks = mp.Task(classes(3, 28, 28).support, classes(3, 28, 28, examples=800).query)
    assert type(chosen(image, tasks)) is BackendByLoss
    noisy = nn.Sequential(image, nn.Dropout(0.5))
    problem = mp.ProximalProblem.from_module(image, cross_entropy, lam=0.5)
    params, calls = problem.live_parameters(), []
    for perturb in ("loss", "center"):
        meta = mp.FOBMAML(mp.GradientDescent(0.1), 2, perturb=perturb)
        ours, theirs = (replace(meta, backend=one)(problem, params, tasks) for one in ("auto", "loop"))
        for name, grad in ours.grad.items():
            torch.testing.assert_close(grad, theirs.grad[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.query_loss, theirs.query_loss)
        assert ours.info.counts == theirs.info.counts
    found = [mp.evaluate(problem, tasks, None, mp.GradientDescent(0.1), 2, backend=one) for one in ("auto", "loop")]
    torch.testing.assert_close(found[0].values["accuracy"], found[1].values["accuracy"])
    torch.testing.assert_close(found[0].values["loss"], found[1].values["loss"])

    def seen(model, batch):
        calls.append(batch[0].dim())
        return cross_entropy(model, batch)

    problem = mp.ProximalProblem.from_module(image, cross_entropy, lam=0.5, outer_loss=seen)
    problem_of_noise = mp.ProximalProblem.from_module(noisy, cross_entropy, lam=0.5)
    mp.FOMAML(mp.GradientDescent(0.1), 2)(problem, params, tasks)
    calls.clear()
    mp.FOMAML(mp.GradientDescent(0.1), 2)(problem, params, tasks)
    assert len(calls) == 3  # a plain pass for each task
    with begun(problem_of_noise, problem_of_noise.live_parameters(), TaskBatch.of(tasks), Choice("auto", None)) as call:
        assert call.backend == LoopBackend()  # whose noise is drawn in one way
    with begun(problem, params, TaskBatch.of(tasks), Choice("auto", None), twice=True) as call:
        assert call.backend == LoopBackend()  # a loss within a loss has one


def test_what_vmap_cannot_take_goes_through_the_loop():
    def with_item(model, batch):
        scale = 2.0 if batch[0].sum().item() > 1e9 else 1.0
        return scale * mean_squared_error(model, batch)

    sinusoids = Sinusoid().batch(range(3))
    assert chosen(mlp([1, 8, 1]), sinusoids, loss=with_item) == LoopBackend()
    unequal = [mp.Task((torch.randn(n, 1), torch.randn(n, 1)), (torch.randn(2, 1), torch.randn(2, 1))) for n in (3, 4)]
    assert chosen(mlp([1, 8, 1]), unequal, loss=mean_squared_error) == LoopBackend()
    assert isinstance(chosen(mlp([1, 8, 1]), unequal[:1] * 2, loss=mean_squared_error), VmapBackend)


def test_compiled_goes_past_the_limits_and_says_so_where_it_cannot():
    compiled = Choice("auto", "auto", compile=True)
    assert chosen(mlp([40, 2000, 20, 5]), classes(40), compiled).compile
    strings = [mp.Task(("a", "b"), ("c", "d"))] * 2
    with pytest.warns(UserWarning, match="goes on without compile=True"):
        assert chosen(mlp([1, 8, 1]), strings, compiled) == LoopBackend()


def test_the_cost_is_that_of_the_larger_loss():
    problem = mp.ProximalProblem.from_module(nn.Linear(7, 5), cross_entropy, lam=0.5).private()
    parameters = Parameters.of(problem.live_parameters(), problem.adapted_names)
    tasks = mp.Task(classes(7, examples=4).support, classes(7, examples=6).query)
    with torch.no_grad():
        cost = cost_of_task(Setting(problem, parameters, TaskBatch.of(tasks), NOISE, LOOK, 0))
    assert cost.flops == 2 * 6 * 7 * 5
    inputs, outputs = 6 * 7 * 4, 6 * 5 * 4
    assert inputs + outputs <= cost.saved_bytes <= inputs + 4 * outputs
    assert cost.vmaps


def test_chunks_fit_a_quarter_of_the_memory(monkeypatch):
    tasks = classes(40, count=8)
    monkeypatch.setattr(
        "metaprox.losses.choose.cost_of_task", lambda *_, **__: Cost(1, memory_of(torch.device("cpu")) // 60, True)
    )
    assert chosen(mlp([40, 8, 5]), tasks).chunk_size == 4
    assert chosen(mlp([40, 8, 5]), tasks, Choice("vmap", "auto")).chunk_size == 4
    assert chosen(mlp([40, 8, 5]), tasks, Choice("vmap", 6)).chunk_size == 6
    much = Cost(1, memory_of(torch.device("cpu")), True)
    monkeypatch.setattr("metaprox.losses.choose.cost_of_task", lambda *_, **__: much)
    assert chosen(mlp([40, 8, 5]), tasks) == LoopBackend()  # one task at a time is the loop's
    assert chosen(mlp([40, 8, 5]), tasks, Choice("vmap", "auto")).chunk_size == 1


def test_looking_is_done_once_for_each_shape():
    calls = []

    def loss(model, batch):
        calls.append(1)
        return mean_squared_error(model, batch)

    problem = mp.ProximalProblem.from_module(mlp([1, 8, 1]), loss, lam=0.5)
    meta = mp.FOMAML(mp.GradientDescent(0.01), 2)
    found = []
    for shots in (5, 5, 6):
        calls.clear()
        meta(problem, problem.live_parameters(), Sinusoid(shots=shots).batch(range(3)))
        found.append(len(calls))
    assert found[2] - found[1] == 6  # for a shape, each loss is counted, and compared under vmap and in the loop
    assert found[0] - found[2] == 4  # for a kind of task, each is looked at, twice


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_the_result_is_that_of_the_backend_chosen(backend):
    """Dropout included: looking draws no number of the generators."""
    model = nn.Sequential(nn.Linear(40, 8 if backend == "vmap" else 4000), nn.Dropout(0.2), nn.LazyLinear(5))
    model(torch.zeros(1, 40))
    problem, tasks = mp.ProximalProblem.from_module(model, cross_entropy, lam=0.5), classes(40)
    results = []
    for name in ("auto", backend):
        torch.manual_seed(3)
        meta = mp.FOBMAML(mp.GradientDescent(0.1), 3, backend=name)
        results.append((meta(problem, problem.live_parameters(), tasks).grad, torch.rand(1)))
    assert torch.equal(results[0][1], results[1][1])
    for name, grad in results[0][0].items():
        assert torch.equal(grad, results[1][0][name])


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("backend", ["auto", "vmap", "loop"])
def test_a_query_loss_that_is_only_reported_may_be_of_the_data_alone(backend, writes):
    """Where nothing is learned from it; also where the support loss writes on its parameters."""

    def inner(params, data):
        if writes:
            with torch.no_grad():
                params["y"].mul_(1.0)
        return (params["y"] - data).square().sum()

    outer = lambda params, data: (data.sum(), {"least": data.amin()})  # noqa: E731
    problem, query = mp.ProximalProblem(inner, outer, lam=1.0), torch.arange(12.0).view(3, 4)
    params, tasks = {"y": torch.zeros(4)}, mp.Task(torch.ones(3, 4), query)
    out = mp.Reptile(mp.GradientDescent(0.1), 1, backend=backend)(problem, params, tasks)
    torch.testing.assert_close(out.query_loss, query.sum(1))
    torch.testing.assert_close(out.metrics, {"least": query[:, 0]})
    torch.testing.assert_close(out.grad["y"], torch.full((4,), -0.2))  # one step of 0.1 along 2 (0 - 1)
    seen = mp.evaluate(problem, tasks, None, mp.GradientDescent(0.1), 1, params=params, backend=backend)
    torch.testing.assert_close(seen.values["loss"].double(), query.sum(1).double())
    with pytest.raises(mp.InputError, match="outer_loss does not depend on the parameters"):
        mp.FOMAML(mp.GradientDescent(0.1), 1, backend=backend)(problem, params, tasks)
