"""vmap and loop agree to rounding for every scheme, perturbation and solver; so do all chunk sizes."""

import pytest
import torch

import metaprox as mp
from conftest import SCHEMES, SOLVERS
from metaprox.models import cross_entropy, mean_squared_error, mlp
from metaprox.tasks import MNIST1D, Sinusoid


def both(problem, params, tasks, **settings):
    results = [mp.FOBMAML(**settings, backend=backend)(problem, params, tasks) for backend in ("vmap", "loop")]
    return [torch.cat([g.flatten() for g in r.grad.values()]) for r in results], results


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("perturb", ["loss", "center"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_vmap_equals_loop(quadratic, scheme, solver, perturb, correction):
    settings = {"scheme": scheme, "perturb": perturb, "residual_correction": correction}
    step = {"nu": 0.05} if perturb == "loss" else {"eps": 0.05}
    (a, b), (one, other) = both(*quadratic, solver=SOLVERS[solver], steps=4, **settings, **step)
    # Anderson's least squares amplify rounding where its rows become dependent, and Adam where gradients are small.
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(one.query_loss, other.query_loss, rtol=1e-10, atol=1e-12)
    for name in ("base_residual", "gradient_ratio", "base_step_sizes", "branch_step_sizes", "nu"):
        torch.testing.assert_close(getattr(one.info, name), getattr(other.info, name), rtol=1e-6, atol=1e-9)
    assert one.info.counts == other.info.counts


@pytest.mark.parametrize("family", [MNIST1D(), Sinusoid()], ids=["mnist1d", "sinusoid"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_vmap_equals_loop_on_networks(family, scheme):
    model = mlp([40, 16, 5]) if isinstance(family, MNIST1D) else mlp([1, 16, 16, 1])
    loss = cross_entropy if isinstance(family, MNIST1D) else mean_squared_error
    problem = mp.ProximalProblem.from_module(model.double(), loss, lam=0.5)
    tasks = mp.Task(
        *(
            tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in part)
            for part in family.batch(range(4))
        )
    )
    (a, b), (one, other) = both(
        problem, dict(model.named_parameters()), tasks, solver=mp.GradientDescent(0.01), steps=5, scheme=scheme, nu=0.05
    )
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
    for name in one.metrics:
        assert torch.equal(one.metrics[name], other.metrics[name])


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_chunks_change_nothing_but_rounding(quadratic, chunk_size):
    whole = mp.FOBMAML(mp.GradientDescent(0.5), steps=6)(*quadratic)
    parts = mp.FOBMAML(mp.GradientDescent(0.5), steps=6, chunk_size=chunk_size)(*quadratic)
    torch.testing.assert_close(whole.grad, parts.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(whole.adapted, parts.adapted)
    assert whole.info.counts == parts.info.counts


def test_chunks_that_stop_at_different_steps_keep_their_records(quadratic):
    meta = mp.FOBMAML(mp.GradientDescent(0.5), tol=1e-6, max_steps=200)
    chunked = mp.FOBMAML(mp.GradientDescent(0.5), tol=1e-6, max_steps=200, chunk_size=1)
    a, b = meta(*quadratic).info, chunked(*quadratic).info
    assert a.base_steps.tolist() == b.base_steps.tolist()
    assert len(set(a.base_steps.tolist())) > 1
    taken = (~b.base_step_sizes.isnan()).sum(1)
    assert taken.tolist() == b.base_steps.tolist()


def test_tasks_of_unequal_shapes_run_in_the_loop_and_say_so_under_vmap():
    loss = lambda params, data: ((params["w"] - data) ** 2).mean()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = [mp.Task(torch.ones(n), torch.zeros(2)) for n in (3, 4)]
    params = {"w": torch.zeros(1)}
    out = mp.FOBMAML(mp.GradientDescent(0.3), steps=30, backend="loop")(problem, params, tasks)
    assert out.grad["w"].item() == pytest.approx(4 / 9, rel=1e-3)  # H = 2, y = 2/3, v = 4/3
    with pytest.raises(mp.InputError, match=r"tasks\[1\].*shape \(4,\).*backend='loop'"):
        mp.FOBMAML(mp.GradientDescent(0.3), steps=3, backend="vmap")(problem, params, tasks)


class Clipped(torch.autograd.Function):
    """Identity, whose gradient is clipped."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        return None

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-0.02, 0.02)

    generate_vmap_rule = True


def test_weights_of_a_loss_are_no_part_of_its_backward_pass():
    """A model that clips its gradients sees those of the loss, not nu times them, nor a piece's share."""

    def loss(params, data):
        inputs, targets = data
        return (Clipped.apply(inputs @ params["w"]) - targets).square().mean()

    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    params = {"w": torch.randn(3, dtype=torch.float64)}
    tasks = mp.Task(*((torch.randn(2, 6, 3).double(), torch.randn(2, 6).double()) for _ in range(2)))
    (a, b), _ = both(problem, params, tasks, solver=mp.GradientDescent(0.2), steps=6, nu=0.05)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    halves = [tuple(leaf[0][part] for leaf in tasks.query) for part in (slice(0, 2), slice(2, 6))]
    pieces = mp.MicroBatches(halves, weights=[1 / 3, 2 / 3])
    support = tuple(leaf[0] for leaf in tasks.support)
    meta = mp.FOMAML(mp.GradientDescent(0.2), 3, backend="loop")
    one = meta(problem, params, [mp.Task(support, pieces)]).grad["w"]
    apart = [meta(problem, params, [mp.Task(support, half)]).grad["w"] for half in halves]
    torch.testing.assert_close(one, apart[0] / 3 + 2 * apart[1] / 3, rtol=1e-12, atol=0)
