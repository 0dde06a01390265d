"""The step of the difference where none is given, formula (5) of docs/method.md, by hand."""

import math

import pytest
import torch

from metaprox.estimators.stencil import FORWARD, STENCILS, SYMMETRIC
from metaprox.estimators.step import Lengths, weight

LAM = 0.5


def row(*numbers):
    return torch.tensor([[numbers]], dtype=torch.float64)


def lengths(y0, displacement, residual, lam=LAM):
    found = Lengths.of(row(*y0), row(*displacement), row(*residual), lam)
    return tuple(float(part) for part in (found.moved, found.size, found.left, found.pull))


def given(moved, size, left, pull):
    return Lengths(*(row(value) for value in (moved, size, left, pull)))


def test_lengths_are_those_of_the_base_solve():
    moved, size, left, pull = lengths((3.0, 4.0), (0.6, 0.8), (0.3, -0.1))
    assert (moved, size) == pytest.approx((1.0, 5.0))
    assert left == pytest.approx(math.hypot(0.3, 0.1) / LAM)
    assert pull == pytest.approx(math.hypot(0.3 - LAM * 0.6, -0.1 - LAM * 0.8) / LAM)
    assert lengths((0.3, 0.4), (3.0, 4.0), (1.0, 0.0))[:2] == pytest.approx((5.0, 5.0))  # size is no less than D


def test_what_is_next_to_rounding_is_no_length():
    root = math.sqrt(torch.finfo(torch.float64).eps)
    assert lengths((3.0, 4.0), (1e-12, 0.0), (1.0, 0.0))[:2] == pytest.approx((5 * root, 5.0))
    assert lengths((3.0, 4.0), (2e-7, 0.0), (1.0, 0.0))[0] == pytest.approx(2e-7)
    assert lengths((0.0, 0.0), (0.0, 0.0), (1.0, 0.0)) == pytest.approx((2.0, 2.0, 2.0, 2.0))  # ||r|| / lam


def test_another_length_is_taken_where_there_is_none_and_only_there():
    other = row(7.0)
    nothing = given(0.0, 0.0, 0.0, 0.0).or_else(other)
    assert [float(part) for part in (nothing.moved, nothing.size, nothing.left, nothing.pull)] == [7.0, 7.0, 0.0, 0.0]
    something = given(2.0, 9.0, 3.0, 4.0).or_else(other)
    kept = (something.moved, something.size, something.left, something.pull)
    assert [float(part) for part in kept] == [2.0, 9.0, 3.0, 4.0]


@pytest.mark.parametrize("rule", STENCILS.values(), ids=lambda rule: rule.name)
def test_the_step_is_as_far_from_the_end_as_the_base_within_its_bounds(rule):
    u, p = torch.finfo(torch.float64).eps, rule.order
    least = (u * 9.0) ** (1 / (p + 1)) * 2.0 ** (p / (p + 1))
    assert float(given(2.0, 9.0, 0.5, 1.0).least(rule)) == pytest.approx(least)
    eps = lambda left, pull, moves: float(given(2.0, 9.0, left, pull).eps(rule, query_moves=moves))  # noqa: E731
    assert eps(0.5, 1e9, False) == eps(0.5, 1e9, True) == pytest.approx(2.0 * (0.5 / 2.0) ** (1 / p))
    assert eps(1e9, 1e9, False) == pytest.approx(2.0 * 2.0)
    assert eps(1e9, 3.0, True) == pytest.approx(0.175 * 3.0)
    assert eps(1e9, 3.0, False) == pytest.approx(2.0 * 2.0)
    assert eps(0.0, 3.0, False) == eps(1e9, 0.0, True) == pytest.approx(least)


def test_branches_end_as_accurate_as_the_base():
    found = Lengths(*(torch.full((4, 1, 1), value, dtype=torch.float64) for value in (2.0, 9.0, 0.5, 1.0)))
    eps = torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=torch.float64).view(4, 1, 1)
    assert found.tolerance(1e-3, LAM, eps).tolist() == pytest.approx([1e-3, 0.1 * 5e-4, 5e-4, 3 * 5e-4])
    assert found.tolerance(1.0, LAM, eps).tolist() == pytest.approx([1.0, *(0.01 * LAM * e for e in (0.1, 1.0, 3.0))])


def test_nu_moves_the_center_by_eps_and_is_no_infinity():
    norms = row(0.0, 2.0, 5e-324).view(3, 1, 1)
    largest = torch.finfo(torch.float64).max / 16
    assert weight(0.3, LAM, norms).flatten().tolist() == pytest.approx([0.0, LAM * 0.3 / 2.0, largest])
    assert weight(torch.full((3, 1, 1), 0.3), LAM, norms).flatten().tolist()[:2] == pytest.approx([0.0, 0.075])


def test_the_least_step_is_in_the_dtype_of_the_parameters():
    single = Lengths(*(torch.ones(1, 1, 1) for _ in range(4)))
    for rule in (FORWARD, SYMMETRIC):
        assert float(single.least(rule)) == pytest.approx(2.0 ** (-23 / (rule.order + 1)), rel=1e-5)
