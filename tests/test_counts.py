"""The counts in ``info`` are what a counting loss sees, and what the docstring says."""

import pytest
import torch

import metaprox as mp
from conftest import SCHEMES
from metaprox.estimators.stencil import stencil


@pytest.mark.parametrize("start", ["base", "predictor"])
@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_equal_what_the_losses_saw(scheme, perturb, correction, start):
    calls = {"inner": 0, "outer": 0}

    def counting(name):
        def loss(params, data):
            calls[name] += 1
            return ((params["w"] - data) ** 2).sum()

        return loss

    problem = mp.ProximalProblem(counting("inner"), counting("outer"), lam=1.0)
    tasks = mp.Task(torch.randn(3, 2), torch.randn(3, 2))
    meta = mp.FOBMAML(
        mp.GradientDescent(0.1),
        steps=7,
        branch_steps=4,
        scheme=scheme,
        perturb=perturb,
        residual_correction=correction,
        start=start,
        backend="loop",
    )
    meta(problem, {"w": torch.zeros(2)}, tasks)  # the first time the losses are looked at as well
    calls.update(inner=0, outer=0)
    counts = meta(problem, {"w": torch.zeros(2)}, tasks).info.counts
    assert (counts.support_gradients, counts.query_gradients) == (calls["inner"], calls["outer"])
    assert counts.hessian_vector_products == 0
    branches = len(stencil(scheme).nodes) - (correction and scheme == "forward")
    evaluated = branches * (4 - (start == "base"))
    assert counts.support_gradients == 3 * (7 + 1 + evaluated)
    tilted = evaluated // branches * (branches - (scheme == "forward" and not correction))  # node 0 has no query
    assert counts.query_gradients == 3 * (1 + (tilted if perturb == "loss" else 0))


def test_forward_with_residual_correction_costs_one_branch():
    loss = lambda params, data: ((params["w"] - data) ** 2).sum()  # noqa: E731
    meta = mp.FOBMAML(
        mp.GradientDescent(0.1), steps=10, branch_steps=5, scheme="forward", residual_correction=True, perturb="center"
    )
    out = meta(mp.ProximalProblem(loss, loss, 1.0), {"w": torch.zeros(1)}, mp.Task(torch.ones(1, 1), torch.ones(1, 1)))
    assert out.info.counts == mp.Counts(support_gradients=10 + 1 + 4, query_gradients=1)
