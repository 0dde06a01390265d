"""What estimators are made of: where branches start, the difference of their ends, results and what failed in them."""

import math

import pytest
import torch

import metaprox as mp
from metaprox.estimators.branches import AtBase, Branches
from metaprox.estimators.info import Info
from metaprox.estimators.result import ChunkResult, Estimate, finite_rows, ratio
from metaprox.inner.failures import Purpose
from metaprox.inner.progress import Solution
from metaprox.losses.backend import Evaluation
from metaprox.losses.counts import Counts

T, P, LAM = 3, 4, 0.5
NODES, WEIGHTS = (-1.0, 0.0, 2.0), (-0.5, 0.25, 0.25)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


Y0, R, V = (numbers(T, 1, P, seed=seed) for seed in (1, 2, 3))
NU = torch.tensor([0.1, 0.0, 0.4], dtype=torch.float64).view(T, 1, 1)
TILT = torch.tensor(NODES, dtype=torch.float64)[:, None] * NU


def at_base():
    some = torch.zeros(T, 1, 1)
    return AtBase(Y0.clone(), R.clone(), V.clone(), some, some, None)


def branches(*, center=False, corrected=False, nodes=NODES, weights=WEIGHTS):
    return Branches.of(at_base(), nodes, weights, NU, center=center, corrected=corrected)


def left(parts, *, corrected=False, predict=False):
    return at_base().leave(TILT, parts, lam=LAM, corrected=corrected, predict=predict)


same = torch.testing.assert_close
PARTS = [slice(0, 3)], [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("parts", PARTS, ids=("one part", "three"))
def test_branches_start_at_the_base_or_where_the_query_gradient_leads(parts):
    starts, _ = left(parts)
    assert [start.shape[1] for start in starts] == [part.stop - part.start for part in parts]
    same(torch.cat(starts, 1), Y0.expand(T, 3, P))
    starts, first = left(parts, predict=True)
    same(torch.cat(starts, 1), Y0 - TILT / LAM * V)
    assert first == []  # no gradient is known there


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("parts", PARTS, ids=("one part", "three"))
def test_the_first_gradients_of_the_branches_are_known(parts, corrected):
    """r + n nu v; without r where that is subtracted."""
    _, first = left(parts, corrected=corrected)
    same(torch.cat(first, 1), TILT * V + (0 if corrected else R))


def test_the_last_gradient_takes_over_a_vector_where_it_has_one_branch():
    start = at_base()
    _, first = start.leave(TILT, PARTS[1], lam=LAM, corrected=False, predict=False)
    assert first[-1] is start.residual
    same((start.y0, start.v), (Y0, V))
    for parts, corrected in ((PARTS[0], False), (PARTS[1], True), ([slice(0, 1)], False)):
        start = at_base()
        start.leave(TILT, parts, lam=LAM, corrected=corrected, predict=False)
        same((start.residual, start.v, start.y0), (R, V, Y0))


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_what_stays_in_the_gradients_of_all_steps(center, corrected):
    made = branches(center=center, corrected=corrected)
    same(made.tilt, TILT)
    if not center and not corrected:
        assert made.linear is None
        return
    for part in (slice(0, 3), slice(None), slice(1, 2), slice(2, 3)):
        linear = made.linear.of(part)
        expected = (TILT[:, part] * V if center else 0) - (R if corrected else 0)
        total = torch.ones(T, TILT[:, part].shape[1], P, dtype=torch.float64)
        linear.add_to(total)
        same(total, 1 + expected.expand_as(total))
        same(linear.vector.expand_as(total), expected.expand_as(total))
    assert made.linear.of(slice(0, 3)) is made.linear  # whose vector is computed once
    assert made.linear.of(slice(None)) is made.linear


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_base_stays_where_it_is_the_other_point_of_the_difference(count):
    made = branches(nodes=NODES[:count], weights=WEIGHTS[:count])
    assert (made.y0 is not None) == (count == 1)


def test_the_difference_is_the_weighted_sum_of_the_ends():
    ends = numbers(T, 3, P, seed=4)
    expected = (torch.tensor(WEIGHTS, dtype=torch.float64)[:, None] * ends).sum(1, keepdim=True)
    same(branches().difference([ends]), expected)
    same(branches().difference([ends[:, :1], ends[:, 1:]]), expected)
    alone = branches(nodes=(2.0,), weights=(0.5,))
    same(alone.difference([ends[:, 2:]]), 0.5 * (ends[:, 2:] - Y0))
    divided = branches().per_nu(expected.clone())
    same(divided[[0, 2]], (expected / NU)[[0, 2]])
    assert divided[1].abs().max() == 0


def solution(finite=(True,) * T, failure=None, steps=2):
    sizes = torch.arange(float(T * steps), dtype=torch.float64).view(T, steps)
    finite = torch.tensor(finite)
    return Solution((), None, torch.full((T,), steps), sizes, torch.tensor([True, False, True]), finite, failure)


def estimate(grad=None, value=None, y=None, solves=None, **known):
    grad = numbers(T, 1, P, seed=5) if grad is None else grad
    value = numbers(T, 1, seed=6) if value is None else value
    solves = (solution(),) if solves is None else solves
    query = Evaluation(grad, value, {"seen": 2 * value})
    info = Info.of(solves[0], None, Counts(1, 2, 3), **known)
    return Estimate.of(y, grad, grad[..., :0], query, info, *solves)


def spoilt(tensor, task, number=torch.nan):
    changed = tensor.clone()
    changed[task, ..., -1] = number
    return changed


def test_an_estimate_is_finite_where_all_of_it_is():
    grad, value = numbers(T, 1, P, seed=5), numbers(T, 1, seed=6)
    assert estimate().finite.tolist() == [True] * T
    assert estimate(grad=spoilt(grad, 0)).finite.tolist() == [False, True, True]
    assert estimate(value=spoilt(value, 1, torch.inf)).finite.tolist() == [True, False, True]
    both = (solution((True, True, False)), solution((False, True, True)))
    assert estimate(solves=both).finite.tolist() == [False, True, False]
    assert finite_rows(spoilt(grad, 2, -torch.inf)).tolist() == [True, True, False]
    same(ratio(grad, spoilt(0 * grad, 1, 2.0)), torch.tensor([0, float(grad[1].norm()) / 2, 0], dtype=torch.float64))


def test_gradients_with_respect_to_both_kinds_of_parameters_are_joined():
    grad, shared = numbers(T, 1, P), numbers(T, 1, 2, seed=1)
    query, info = Evaluation(grad, grad[..., 0], {}), estimate().info
    assert Estimate.of(None, grad, shared[..., :0], query, info).grad is grad
    same(Estimate.of(None, grad, shared, query, info).grad, torch.cat([grad, shared], -1))


def test_of_two_estimates_each_task_has_its_own():
    here = torch.tensor([True, False, True])
    one = estimate(solves=(solution((False, False, True)), solution((True, False, True))))
    other = estimate(grad=numbers(T, 1, P, seed=9), solves=(solution((True, False, False)),))
    joined = one.where(here, other)
    same(joined.grad, torch.stack([one.grad[0], other.grad[1], one.grad[2]]))
    # A solve that was not the task's own does not count against it.
    assert [solve.finite.tolist() for solve in joined.solves] == [
        *([False, True, True], [True, True, True], [True, False, True])
    ]


def test_what_failed_is_raised_or_left_out():
    y, value = numbers(T, 1, P, seed=7), numbers(T, 1, seed=6)
    raising, skipping = (Purpose("it", first_task=10, on_nonfinite=what) for what in ("raise", "skip"))
    solver = mp.GradientDescent(0.1)
    well = ChunkResult.of(estimate(y=y), solver, raising)
    assert well.failure is None
    same((well.grad, well.adapted, well.query_loss), (numbers(T, 1, P, seed=5)[:, 0], y[:, 0], value[:, 0]))
    same(well.metrics, {"seen": 2 * value[:, 0]})
    assert not well.info.skipped.any()
    grad = spoilt(numbers(T, 1, P, seed=5), 2)
    with pytest.raises(mp.NonFiniteError, match="task 12") as caught:
        ChunkResult.of(estimate(grad=grad, y=y), solver, raising)
    assert caught.value.task == 12
    left = ChunkResult.of(estimate(grad=grad, y=y), solver, skipping)
    assert left.failure.task == 12
    assert left.info.skipped.tolist() == [False, False, True]
    same((left.grad[:2], left.grad[2]), (grad[:2, 0], torch.zeros(P, dtype=torch.float64)))
    same((left.adapted, left.query_loss), (y[:, 0], value[:, 0]))  # the base is well
    first = mp.NonFiniteError("the base", task=11, step=3)
    diverged = (solution((True, False, True), first),)
    with pytest.raises(mp.NonFiniteError, match="the base"):
        ChunkResult.of(estimate(solves=diverged), solver, raising)
    left = ChunkResult.of(estimate(y=y, solves=diverged), solver, skipping)
    assert left.failure is first
    assert left.adapted.isnan().all(1).tolist() == left.query_loss.isnan().tolist() == [False, True, False]
    assert ChunkResult.of(estimate(solves=diverged), solver, skipping).adapted is None
    # A failure that was made good by another solve is none.
    mended = ChunkResult.of(estimate(solves=(solution((True,) * T, first),)), solver, raising)
    assert mended.failure is None
    assert well.without_vectors().adapted is None
    assert well.without_vectors().grad.numel() == 0


def test_info_of_solves_and_of_parts_of_a_batch():
    known = {"nu": numbers(T), "base_residual": numbers(T, seed=1)}
    alone = Info.of(solution(), None, Counts(1, 2, 3), **known)
    same((alone.nu, alone.base_residual), (known["nu"], known["base_residual"]))
    assert alone.gradient_ratio.isnan().all()
    assert alone.linear_residual.isnan().all()
    assert alone.linear_residual.dtype == torch.float64
    assert alone.converged.tolist() == [True, False, True]
    assert alone.skipped.tolist() == [False] * T
    assert alone.branch_steps.tolist() == [0] * T
    assert alone.branch_step_sizes.shape == (T, 0)
    both = Info.of(solution(), solution(steps=3), Counts(4, 5, 6), **known)
    assert both.branch_steps.tolist() == [3] * T
    same((both.base_step_sizes, both.branch_step_sizes), (solution().step_sizes, solution(steps=3).step_sizes))
    joined = Info.join([alone, both])
    assert joined.counts == Counts(5, 7, 9)
    same(joined.nu, known["nu"].repeat(2))
    padded = torch.cat([torch.full((T, 3), torch.nan, dtype=torch.float64), solution(steps=3).step_sizes])
    same(joined.branch_step_sizes, padded, equal_nan=True)
    here = torch.tensor([True, False, False])
    mixed = both.where(here, alone)
    assert mixed.branch_steps.tolist() == [3, 0, 0]
    assert mixed.branch_step_sizes.isnan().all(1).tolist() == [False, True, True]
    assert mixed.counts == alone.counts
    worse = solution()
    worse.converged[0] = False
    assert Info.of(solution(), worse, Counts()).converged.tolist() == [False, False, True]


def test_a_summary_leaves_out_what_was_skipped_or_is_not_known():
    nan = torch.nan
    residual, gradient_ratio = (torch.tensor(row, dtype=torch.float64) for row in ([3.0, 1e9, 1.0], [nan, 7.0, nan]))
    info = Info.of(solution(), None, Counts(), base_residual=residual, gradient_ratio=gradient_ratio)
    info.skipped[1] = True
    info.base_step_sizes[0] = torch.tensor([nan, 5.0], dtype=torch.float64)
    assert info.summary() == {
        "base_residual_median": 1.0,
        "base_residual_worst": 3.0,
        "base_step_size_median": 5.0,
        "base_step_size_least": 4.0,
        "tasks_skipped": 1.0,
    }
    info.skipped[1] = False
    assert info.summary()["tasks_not_converged"] == 1.0
    assert "tasks_skipped" not in info.summary()
    assert math.isnan(info.summary()["gradient_ratio_worst"])  # of one that is known, and two that are not
