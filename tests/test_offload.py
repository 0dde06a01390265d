"""offload=True: vectors that nobody uses are away, results are the same to the last bit, and how many vectors stay.

There is no device here to offload from: the parameters' memory stands for it, and what rests goes to memory that torch
knows nothing of. What is left behind is overwritten with NaN, so that whoever used it would be seen.
"""

from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import metaprox as mp
from conftest import launch_everything
from metaprox.comparison import peak_memory
from metaprox.inner.trail import Trail
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.vectors.norms import inner, norm
from metaprox.vectors.rest import HERE, Away, OnCPU, add_to, rest_on, whole

LAM, LR = 0.5, 0.05
GD = mp.GradientDescent(LR)


class Elsewhere(Away):
    """In memory of NumPy; counts the numbers that come and go."""

    came = went = 0

    @classmethod
    def of(cls, vector):
        made = super().of(vector)
        vector.fill_(torch.nan)
        return made

    def read(self, part):
        found = super().read(part)
        Elsewhere.came += found.numel()
        return found

    def write(self, part, block):
        super().write(part, block)
        Elsewhere.went += block.numel()

    def _make(self, *, pinned):
        dtype = {torch.float32: np.float32, torch.float64: np.float64}[self.dtype]
        self._numbers = torch.from_numpy(np.full(self.numel(), np.nan, dtype))


class InNumpy(OnCPU):
    kind: ClassVar = Elsewhere


@pytest.fixture(params=["few parameters", "many", "launched"])
def size(request, monkeypatch):
    """All ways of a step, and vectors that come and go whole, or in several blocks."""
    if request.param == "launched":
        launch_everything(monkeypatch)
        monkeypatch.setattr("metaprox.vectors.norms.BLOCK_WHERE_LAUNCHED", 13)
    if request.param == "many":
        monkeypatch.setattr("metaprox.losses.descent.SMALL", 0)
        monkeypatch.setattr("metaprox.vectors.terms.BLOCK", 7)
        monkeypatch.setattr("metaprox.vectors.norms.BLOCK", 13)
        monkeypatch.setattr("metaprox.vectors.rest.MOVED", 11)
    return request.param


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr("metaprox.estimators.finite_difference.rest_on", lambda device: InNumpy())
    Elsewhere.came = Elsewhere.went = 0
    return Elsewhere


def net(dropout):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 1))


def data(count=2, inputs=3):
    rng = torch.Generator().manual_seed(1)
    part = lambda: (torch.randn(count, 6, inputs, generator=rng), torch.randn(count, 6, 1, generator=rng))  # noqa: E731
    return mp.Task(part(), part())


def assert_same(one, other):
    """To the last bit, in all that is returned."""
    for name in one.grad:
        assert torch.equal(one.grad[name], other.grad[name]), name
        assert torch.equal(one.adapted[name], other.adapted[name]) if name in one.adapted else True
    assert torch.equal(one.query_loss, other.query_loss)
    assert one.info.counts == other.info.counts
    for name, value in vars(one.info).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(-7.0), getattr(other.info, name).nan_to_num(-7.0)), name
    for name in ("relative_error", "branch_error", "base_error", "rounding_error"):
        assert torch.equal(*(getattr(each.info, name).nan_to_num(-7.0) for each in (one, other))), name


def both(meta, problem, tasks, **settings):
    """Without and with, from the same seed."""
    found = []
    for offload in (False, True):
        torch.manual_seed(5)
        found.append(replace(meta, offload=offload)(problem, problem.live_parameters(), tasks, **settings))
    return found


SGD = partial(torch.optim.SGD, lr=LR, momentum=0.5)
CASES = {
    "symmetric": mp.FOBMAML(GD, 4, perturb="loss"),
    "forward": mp.FOBMAML(GD, 4, perturb="loss", scheme="forward"),
    "forward, of one branch": mp.FOBMAML(GD, 4, perturb="loss", scheme="forward", residual_correction=True),
    "center, of one branch": mp.FOBMAML(GD, 4, scheme="forward", perturb="center", residual_correction=True),
    "center": mp.FOBMAML(GD, 4, perturb="center", branch_steps=2),
    "center, corrected": mp.FOBMAML(GD, 4, perturb="center", residual_correction=True),
    "corrected": mp.FOBMAML(GD, 4, perturb="loss", residual_correction=True),
    "central4": mp.FOBMAML(GD, 3, scheme="central4", perturb="center"),
    "central6": mp.FOBMAML(GD, 3, perturb="loss", scheme="central6"),
    "predictor": mp.FOBMAML(GD, 4, start="predictor", perturb="center"),
    "predictor, without a step": mp.FOBMAML(GD, 4, start="predictor", branch_steps=0),
    "nu": mp.FOBMAML(GD, 4, nu=0.1),
    "eps": mp.FOBMAML(GD, 4, perturb="center", eps=0.1, scheme="central4"),
    "no estimate": mp.FOBMAML(GD, 4, perturb="loss", estimate_error=False),
    "one step": mp.FOBMAML(GD, 1),
    "skip": mp.FOBMAML(GD, 4, on_nonfinite="skip"),
    "nesterov": mp.FOBMAML(mp.Nesterov(LR), 7),
    "adam": mp.FOBMAML(GD, 4, branch_solver=mp.Adam(0.01), branch_steps=8),
    "anderson": mp.FOBMAML(GD, 4, perturb="loss", branch_solver=mp.Anderson(LR)),
    "optimizer": mp.FOBMAML(mp.TorchOptimizer(SGD), 4),
    "adaptive base": mp.FOBMAML(mp.AdaptiveGradientDescent(), 4, branch_solver=GD),
    "adaptive, of one branch": mp.FOBMAML(mp.AdaptiveGradientDescent(), 5, scheme="forward", residual_correction=True),
    "conjugate, of one branch": mp.FOBMAML(
        GD, 4, branch_solver=mp.ConjugateGradient(LR), scheme="forward", perturb="center", residual_correction=True
    ),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_to_the_last_bit(size, elsewhere, name, dropout):
    problem = mp.ProximalProblem.from_module(net(dropout), mean_squared_error, LAM)
    meta = replace(CASES[name], backend="loop")
    assert_same(*both(meta, problem, data()))
    assert elsewhere.went > 0


@pytest.mark.parametrize("adapt", [["0.*"], ["3.weight", "5.*"]], ids=str)
@pytest.mark.parametrize("name", ["symmetric", "forward, of one branch", "central4"])
def test_parameters_that_do_not_adapt_have_the_same_gradient(size, elsewhere, name, adapt):
    problem = mp.ProximalProblem.from_module(net(0.3), mean_squared_error, LAM, adapt=adapt)
    assert_same(*both(replace(CASES[name], backend="loop"), problem, data()))
    assert elsewhere.went > 0


def test_weights_and_gradients_of_each_task_and_float64(elsewhere):
    problem = mp.ProximalProblem.from_module(net(0.0).double(), mean_squared_error, LAM)
    tasks = mp.Task(*(tuple(leaf.double() for leaf in half) for half in data(3)))
    one, other = both(mp.FOBMAML(GD, 3, backend="loop"), problem, tasks, weights=[1.0, 0.0, 3.0], per_task=True)
    assert_same(one, other)
    assert all(torch.equal(one.per_task[name], other.per_task[name]) for name in one.per_task)


@pytest.mark.parametrize("start", ["zeros", "means"])
def test_a_head_of_each_task_s_own(elsewhere, start):
    rng = torch.Generator().manual_seed(0)
    part = lambda: (torch.randn(3, 6, 4, generator=rng), torch.arange(3).repeat(2).expand(3, 6))  # noqa: E731
    problem = mp.ProximalProblem.from_module(mlp([4, 5, 3], seed=0), cross_entropy, LAM, head=mp.Head("2", start))
    assert_same(*both(mp.FOBMAML(GD, 4, backend="loop"), problem, mp.Task(part(), part())))
    assert elsewhere.went > 0


def steep(scale, **settings):
    """A quartic query loss, which at -nu outweighs what has a minimum, of some of the tasks."""
    inner = lambda params, data: 0.5 * (params["w"] - data).square().sum()  # noqa: E731
    outer = lambda params, data: scale * (params["w"] - data).square().sum().square()  # noqa: E731
    rng = torch.Generator().manual_seed(3)
    problem = mp.ProximalProblem(inner, outer, lam=0.2)
    far = torch.tensor([[1.0], [10.0], [3.0]])
    tasks = mp.Task(torch.randn(3, 4, generator=rng), far * torch.randn(3, 4, generator=rng))
    settings = {"solver": mp.GradientDescent(0.5), "steps": 20, "perturb": "loss", "backend": "loop"} | settings
    return mp.FOBMAML(**settings), problem, {"w": torch.zeros(4)}, tasks


def test_a_task_that_went_astray_is_differentiated_anew(monkeypatch, elsewhere):
    monkeypatch.setattr("metaprox.estimators.finite_difference.LARGEST_RATIO", 0.5)
    meta, problem, x, tasks = steep(
        1.0, steps=2, solver=mp.GradientDescent(0.1), branch_solver=mp.GradientDescent(0.3), branch_steps=20
    )
    found = [replace(meta, offload=offload)(problem, x, tasks) for offload in (False, True)]
    assert_same(*found)
    assert found[0].info.astray.tolist() == [True, False, False]


def test_a_task_that_diverges_is_named_or_left_out(elsewhere):
    meta, problem, x, tasks = steep(0.1, nu=0.01)
    said = []
    for offload in (False, True):
        with pytest.raises(mp.NonFiniteError) as caught:
            replace(meta, offload=offload)(problem, x, tasks)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith("task 1: the gradient of the branch solve became non-finite at step")
    found = [replace(meta, offload=offload, on_nonfinite="skip")(problem, x, tasks) for offload in (False, True)]
    assert found[0].info.skipped.tolist() == found[1].info.skipped.tolist() == [False, True, False]
    assert torch.equal(*(out.grad["w"] for out in found))


STAY = {"symmetric": (5, 2), "center": (6, 3), "corrected": (6, 3), "center, of one branch": (5, 3), "central6": (9, 2)}


@pytest.fixture
def large(monkeypatch):
    """The numbers in a vector, and the peak of ``backward`` in vectors, of a model in several blocks."""
    for place in ("rest.MOVED", "norms.BLOCK", "terms.BLOCK"):
        monkeypatch.setattr(f"metaprox.vectors.{place}", 2**15)
    torch.manual_seed(0)
    model = mlp([16, *[256] * 8, 1])
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, LAM)
    count, tasks = sum(p.numel() for p in model.parameters()), data(1, 16)
    mp.FOBMAML(GD, 2, backend="loop").backward(problem, tasks)  # which looks at the losses

    def peak(meta):
        model.zero_grad()
        return peak_memory(lambda: meta.backward(problem, tasks), torch.device("cpu")) / 4 / count

    return count, peak


@pytest.mark.parametrize("name", STAY)
def test_how_many_vectors_stay_and_how_many_are_moved(elsewhere, large, name):
    """Beyond the model, at the peak of ``backward``, its result included; with it go a parameter's gradient and blocks.

    What is moved of a task with B branches, without a sum over tasks: 4 + 3 B vectors there, 2 + 7 B back, and v once
    more with "center"; where r stays, it does not come for each branch.
    """
    count, peak = large
    meta = replace(CASES[name], backend="loop", steps=3)
    peaks = [peak(replace(meta, offload=offload)) for offload in (False, True)]
    assert [int(peak) for peak in peaks] == list(STAY[name])
    assert max(peak % 1 for peak in peaks) < 0.4
    branches = meta._evaluations_at_once()
    assert elsewhere.went == (4 + 3 * branches) * count
    assert elsewhere.came <= (2 + 7 * branches + (meta.perturb == "center")) * count
    if name in ("symmetric", "central6"):
        assert elsewhere.came == (2 + 7 * branches) * count


def test_nothing_of_a_task_that_went_astray_stays_while_it_is_differentiated_anew(monkeypatch, elsewhere, large):
    """By "center", with three vectors."""
    monkeypatch.setattr("metaprox.estimators.finite_difference.LARGEST_RATIO", -1.0)
    assert 3 < large[1](mp.FOBMAML(GD, 3, offload=True)) < 3.4


def test_a_gradient_that_rests_is_not_held():
    kept = [Trail((1.0,), LR, 1, closed=True, rest=rest).keeps_gradients for rest in (HERE, OnCPU())]
    assert kept == [True, False]


def test_the_sum_over_tasks_rests_too(elsewhere):
    """Of three tasks it goes and comes twice; in the end it is brought back."""
    problem = mp.ProximalProblem.from_module(net(0.0), mean_squared_error, LAM)
    moved = []
    for count in (1, 3):
        elsewhere.came = elsewhere.went = 0
        mp.FOBMAML(GD, 3, perturb="loss", offload=True).backward(problem, data(count))
        moved.append((elsewhere.went, elsewhere.came))
    size = sum(p.numel() for p in problem.live_parameters().values())
    assert moved[0] == (10 * size, 16 * size)
    assert moved[1] == ((3 * 10 + 3) * size, (3 * 16 + 3) * size)


REFUSED = {
    "backend='vmap'": {"backend": "vmap"},
    "compile=True": {"compile": True},
    "tol=0.1": {"steps": None, "tol": 0.1, "max_steps": 9},
    "rtol=0.1": {"rtol": 0.1},
    "estimate_truncation=True": {"estimate_truncation": True},
    "solver=AdaptiveGradientDescent": {"solver": mp.AdaptiveGradientDescent()},
    "branch_solver=ConjugateGradient": {"branch_solver": mp.ConjugateGradient(LR)},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_needs_several_branches_at_once_is_refused(named):
    settings = {"solver": GD, "steps": 3} | REFUSED[named]
    mp.FOBMAML(**settings)
    with pytest.raises(mp.InputError) as caught:
        mp.FOBMAML(**settings, offload=True)
    assert named in str(caught.value)
    assert "offload=True" in str(caught.value)


def test_vectors_on_the_cpu_are_where_they_would_rest(monkeypatch):
    """It is taken, in the loop, and nothing is moved."""
    monkeypatch.setattr("metaprox.vectors.rest.Away.of", None)
    problem = mp.ProximalProblem.from_module(net(0.3), mean_squared_error, LAM)
    one, other = both(mp.FOBMAML(GD, 4, backend="loop"), problem, data())
    assert_same(one, other)
    assert_same(one, both(mp.FOBMAML(GD, 4), problem, data())[1])
    found = []
    for offload in (False, True):
        torch.manual_seed(5)
        found.append(mp.check(problem, data(), mp.FOBMAML(GD, 4, backend="loop", offload=offload)))
    assert str(found[0]) == str(found[1])


class Unpinned(Away):
    pinned: ClassVar = []

    def _make(self, *, pinned):
        Unpinned.pinned.append(pinned)
        super()._make(pinned=False)  # which takes a device


def test_of_cuda_memory_is_pinned_and_what_comes_back_is_on_the_device(monkeypatch):
    """With tensors that have a device and no numbers."""
    monkeypatch.setattr(OnCPU, "kind", Unpinned)
    with FakeTensorMode():
        kept = rest_on(torch.device("cuda")).away(torch.empty(1, 1, 9, device="cuda"))
        assert kept._numbers.device.type == "cpu"
        assert {part.device.type for part in (kept.back(), kept.read(slice(2, 4)), norm(kept))} == {"cuda"}
    assert Unpinned.pinned == [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vector_that_is_away(monkeypatch, dtype):
    """All of it, in blocks, added to, and its norms and inner products."""
    monkeypatch.setattr("metaprox.vectors.rest.MOVED", 5)
    monkeypatch.setattr("metaprox.vectors.norms.BLOCK", 4)
    rng = torch.Generator().manual_seed(0)
    vector, other = (torch.randn(1, 1, 13, generator=rng, dtype=dtype) for _ in range(2))
    kept = Away.of(vector)
    before = vector.clone()
    vector.zero_()
    assert torch.equal(kept.back(), before)
    assert [part.shape[-1] for part in kept.split(4, -1)] == [4, 4, 4, 1]
    assert torch.equal(torch.cat(list(kept.split(4, -1)), -1), before)
    assert torch.equal(norm(kept), norm(before))
    assert torch.equal(inner(other, kept, norm(before).flatten()), inner(other, before, norm(before).flatten()))
    assert torch.equal(add_to(other.clone(), kept, -0.5), other.add(before, alpha=-0.5))
    rest = OnCPU()
    total = rest.plus(None, other, (0.25,))
    assert torch.equal(whole(rest.plus(total, before, (3.0,))), (other * 0.25).add_(before, alpha=3.0))
    assert torch.equal(whole(rest.away(before)), before)
    nothing = Away.of(torch.empty(1, 1, 0, dtype=dtype))
    assert [part.shape for part in nothing.split(4, -1)] == [(1, 1, 0)]
    assert rest_on(torch.device("cuda")).moves
    assert not rest_on(torch.device("cpu")).moves
