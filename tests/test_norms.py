"""Norms of long vectors in float32, by rows or in float64, against float64."""

import pytest
import torch
from torch.func import grad_and_value, vmap

import metaprox as mp
from conftest import relative_error
from metaprox.comparison import peak_memory
from metaprox.models import mean_squared_error, mlp
from metaprox.vectors.norms import BLOCK, LONG, ROW, norm

SIZE = BLOCK + ROW // 2  # the last row is a short one
VALUES = {
    "normal": torch.randn(SIZE, generator=torch.Generator().manual_seed(0)),
    "alike": torch.full((SIZE,), 1 / 3),
    "wide": torch.linspace(-60, 0, SIZE).exp(),
    "last": torch.cat([torch.zeros(SIZE - 1), torch.ones(1)]),
    "faint": torch.cat([torch.full((SIZE - 1,), 2.0**-75), torch.full((1,), 2.0**-63)]),  # together 1 % of its norm
    "zero": torch.zeros(SIZE),
}


def exact(vectors):
    return torch.linalg.vector_norm(vectors.double(), dim=-1, keepdim=True)


@pytest.mark.parametrize("scale", [1.0, 2.0**-100, 2.0**-40, 2.0**60, 2.0**100])
@pytest.mark.parametrize("values", VALUES)
def test_a_long_norm_is_that_in_float64(values, scale):
    vector = VALUES[values][None, None] * scale
    torch.testing.assert_close(norm(vector).double(), exact(vector), rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("place", [0, ROW, SIZE - 1])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_makes_its_own_norm_so_and_no_other(value, place):
    vectors = torch.stack([VALUES["normal"], VALUES["normal"]])[:, None]
    vectors[1, 0, place] = value
    found = norm(vectors)
    torch.testing.assert_close(found[:1].double(), exact(vectors[:1]), rtol=3e-7, atol=0.0)
    torch.testing.assert_close(found[1:], torch.full((1, 1, 1), value), equal_nan=True)


def test_the_vectors_may_lie_in_any_order_in_memory():
    vectors = torch.stack([VALUES["normal"], VALUES["wide"]], -1).T[:, None]
    torch.testing.assert_close(norm(vectors).double(), exact(vectors), rtol=3e-7, atol=0.0)


def test_under_vmap_and_where_gradients_are_taken_it_is_the_same():
    vectors = torch.stack([VALUES["normal"], VALUES["wide"]])
    torch.testing.assert_close(vmap(norm)(vectors).double(), exact(vectors), rtol=3e-7, atol=0.0)
    slopes, found = vmap(grad_and_value(lambda vector: norm(vector).sum()))(vectors)
    torch.testing.assert_close(found.double(), exact(vectors)[:, 0], rtol=3e-7, atol=0.0)
    torch.testing.assert_close(slopes.double(), vectors / exact(vectors), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_are_numbers_where_part_of_a_vector_is_zero(dtype):
    vector = torch.cat([VALUES["normal"], torch.zeros(BLOCK)]).to(dtype)[None].requires_grad_()
    way = VALUES["wide"].repeat(2)[: vector.numel()].to(dtype)[None]
    length = norm(vector)
    (slope,) = torch.autograd.grad(length.sum(), vector, create_graph=True)
    (product,) = torch.autograd.grad((slope * way).sum(), vector)
    length, unit = length.detach(), (vector / length).detach()
    torch.testing.assert_close(product, (way - unit * (unit * way).sum()) / length, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [LONG - 1, LONG, 3 * LONG + 1])
def test_a_norm_does_not_depend_on_the_vectors_beside_it(size):
    vectors = torch.randn(9, 1, size, generator=torch.Generator().manual_seed(1))
    vectors[3] *= 2.0**-100
    vectors[5] = 1 / 3  # of which the rounding by rows and in float64 shows
    assert torch.equal(norm(vectors), torch.cat([norm(vector[None]) for vector in vectors]))


def test_of_several_vectors_one_may_be_out_of_reach():
    vectors = torch.stack([VALUES["normal"], VALUES["normal"] * 2.0**-100])[:, None]
    torch.testing.assert_close(norm(vectors).double(), exact(vectors), rtol=3e-7, atol=0.0)


@pytest.mark.parametrize(("scale", "block"), [(1.0, False), (2.0**100, True)])
def test_no_second_vector_is_made_but_norms_of_rows_or_a_block(scale, block):
    vector = VALUES["normal"].repeat(8)[None, None] * scale
    rows = 16 * vector.numel() // ROW  # bytes of their norms, twice over in float64
    most = 2 * 8 * BLOCK if block else rows
    assert peak_memory(lambda: norm(vector), torch.device("cpu")) <= most < 4 * vector.numel()


@pytest.mark.parametrize("solver", [mp.GradientDescent(0.01), mp.AdaptiveGradientDescent(0.01)])
def test_a_model_of_long_vectors_is_differentiated_through_its_solve_by_both_backends(solver):
    source = torch.Generator().manual_seed(0)
    model = mlp([4, 520, 520, 1])  # some of whose units are dead: parts of gradients are 0
    support, query = ((torch.randn(2, 3, 4, generator=source), torch.randn(2, 3, 1, generator=source)) for _ in "ab")
    problem, params = mp.ProximalProblem.from_module(model, mean_squared_error, 0.5), dict(model.named_parameters())
    assert sum(value.numel() for value in params.values()) > BLOCK
    one, other = (
        mp.MAML(solver, steps=2, backend=name)(problem, params, mp.Task(support, query)).grad
        for name in ("vmap", "loop")
    )
    assert relative_error(*(torch.cat([value.flatten() for value in grad.values()]) for grad in (one, other))) < 1e-4
