"""Inner losses whose field is the gradient of nothing: what each method then gives, of three different things."""

import pytest
import torch

import metaprox as mp
from conftest import relative_error

LAM = 2.0
GD = mp.GradientDescent(0.2)
CLOSE = {"branch_solver": mp.Anderson(0.2), "scheme": "central4"}
METHODS = {
    "loop": mp.FOBMAML(GD, 60, **CLOSE, nu=7e-4, backend="loop"),
    "center": mp.FOBMAML(GD, 60, **CLOSE, perturb="center", eps=7e-4),
    "maml": mp.MAML(GD, 60),
    "imaml": mp.IMAML(GD, 60, cg_steps=60),
}


class Reversed(torch.autograd.Function):
    """Gradient reversal: what learns before it works against what learns after it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def no_gradients():
    """Inner losses whose fields J y + c are the gradient of nothing: name -> (loss, J, what autograd makes of J)."""
    rng = torch.Generator().manual_seed(2)
    a, m = (torch.randn(n, n, generator=rng, dtype=torch.float64) / 2 for n in (4, 2))

    def towards_itself(params, data):
        y = params["y"]
        return 0.5 * (y - (a @ y + data).detach()).square().sum()

    def against_itself(params, data):
        one, other = params["y"].split(2)
        return Reversed.apply(one) @ m @ other + params["y"] @ data

    zero, eye = torch.zeros_like(m), torch.eye(4, dtype=torch.float64)
    upper, lower = torch.cat([zero, -m], 1), torch.cat([m.mT, zero], 1)
    return {
        "detached target": (towards_itself, eye - a, eye),
        "gradient reversal": (against_itself, torch.cat([upper, lower]), torch.cat([upper, -lower])),
    }


@pytest.mark.parametrize("kind", no_gradients())
def test_no_method_has_the_gradient_of_the_objective(kind):
    """grad F is lam (J + lam I)^{-T} v; differences of solutions are not transposed, and autograd has another J."""
    loss, jacobian, of_autograd = no_gradients()[kind]
    problem = mp.ProximalProblem(loss, lambda params, data: params["y"] @ data, LAM)
    c, v = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    params, tasks = {"y": torch.zeros_like(c)}, [mp.Task(c, v)]
    right, differenced, twice = (
        LAM * torch.linalg.solve(matrix + LAM * torch.eye(4, dtype=torch.float64), v)
        for matrix in (jacobian.mT, jacobian, of_autograd.mT)
    )
    assert min(relative_error(one, right) for one in (differenced, twice)) > 0.1
    for name, meta in METHODS.items():
        expected = twice if name in ("maml", "imaml") else differenced
        assert relative_error(meta(problem, params, tasks).grad["y"], expected) < 1e-8, name
