"""A solver and an estimator from a package of somebody's own: one file each, and nothing of ours changes."""

import importlib

import pytest
import torch

import metaprox as mp

SOLVER = '''
"""Steps of one length in every coordinate."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SignDescent:
    lr: float

    def init(self, y):
        return None

    def step(self, grad, y, state):
        return y - self.lr * torch.sign(grad), state
'''

ESTIMATOR = '''
"""FO-MAML, shortened."""

from dataclasses import dataclass

from metaprox.estimators import Estimator
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate
from metaprox.inner.proximal import proximal_solve


@dataclass(frozen=True)
class Shortened(Estimator):
    factor: float = 0.5

    def _check_problem(self, problem):
        return None

    def _estimate(self, gradients, keep_adapted):
        base = proximal_solve(gradients, self.solver, self._stopping(), self.on_nonfinite)
        query, shared = gradients.query_both(base.y, 0)
        grad = self.factor * query.grad
        return Estimate.of(base.y, grad, shared, query, Info.of(base, None, gradients.counts), base)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "somebody"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "solver.py").write_text(SOLVER)
    (folder / "estimator.py").write_text(ESTIMATOR)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("somebody.solver"), importlib.import_module("somebody.estimator")
    for name in ("somebody", "somebody.solver", "somebody.estimator"):
        importlib.sys.modules.pop(name)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_solver_and_an_estimator_of_ones_own(own, backend):
    solver, estimator = own[0].SignDescent(0.1), own[1].Shortened
    loss = lambda params, target: 0.5 * ((params["w"] - target) ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = mp.Task(torch.tensor([[1.0, -1.0], [2.0, 0.5]]), torch.tensor([[3.0, 3.0], [0.0, 1.0]]))
    out = estimator(solver, steps=2, backend=backend)(problem, {"w": torch.zeros(2)}, tasks)
    reached = 0.2 * torch.sign(tasks.support)  # two steps towards the targets, which are farther away
    torch.testing.assert_close(out.adapted["w"], reached)
    torch.testing.assert_close(out.grad["w"], 0.5 * (reached - tasks.query).mean(0))
    meta = mp.FOBMAML(solver, 2, nu=0.01, backend=backend)(problem, {"w": torch.zeros(2)}, tasks)
    torch.testing.assert_close(meta.grad["w"], torch.zeros(2))  # branches take the same steps
