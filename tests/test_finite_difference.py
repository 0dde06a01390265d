"""FO-B-MAML's own part: what it asks of its backend, keeps of its solves, tolerates, and does where branches fail."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import metaprox as mp
from metaprox.call import begun
from metaprox.data.batch import TaskBatch
from metaprox.estimators.branches import AtBase, Branches
from metaprox.estimators.leaving import leave
from metaprox.losses.choose import Choice
from test_gradients import backend, with_backend
from test_parts import LAM, P, T, estimate, numbers, same, solution

LR, K, J = 0.3, 4, 3


def loss(params, data):
    return ((params["y"] - data) ** 2).sum() + (params["y"] ** 4).sum()


@contextmanager
def started(name="vmap"):
    rows = torch.arange(12.0, dtype=torch.float64).view(3, 4) / 12
    problem = mp.ProximalProblem(loss, lambda params, data: 3 * loss(params, data), lam=LAM)
    with begun(problem, {"y": rows.mean(0)}, TaskBatch.of(mp.Task(rows, 1 - rows)), Choice(name, None)) as call:
        yield call, call.gradients((0, 3))


@pytest.mark.parametrize(
    ("settings", "fused"),
    [
        ({"perturb": "center", "eps": 0.1}, K + J - 1),  # the first gradients of the branches are known
        ({"perturb": "center", "eps": 0.1, "start": "predictor"}, K + J),
        ({"perturb": "loss", "nu": 0.1}, K),  # a gradient of the query loss comes between
        ({"perturb": "center", "eps": 0.1, "branch_solver": mp.Nesterov(LR)}, K),  # whose steps are not known
    ],
)
def test_steps_come_with_their_gradients_where_these_are_all_there_is(settings, fused):
    meta = mp.FOBMAML(mp.GradientDescent(LR), K, branch_steps=J, **settings)
    with started() as (call, plain):
        made, expected = backend(True), meta._estimate(plain, keep_adapted=True)
        found = meta._estimate(with_backend(call, made, (0, 3)), keep_adapted=True)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-10)
    assert made.seen.count(LR) == fused
    assert found.info.base_steps.tolist() == [K] * 3
    assert found.info.branch_steps.tolist() == [J] * 3


@pytest.mark.parametrize("name", ["vmap", "loop"])
def test_an_estimate_keeps_no_vector_that_nobody_asked_for(name):
    meta = mp.FOBMAML(mp.GradientDescent(LR), K)
    with started(name) as (_, gradients):
        found = meta._estimate(gradients, keep_adapted=False)
        assert found.y is None
        for solved in found.solves:
            assert solved.parts == ()
            assert solved.trail._way is None
            assert not solved.trail._grads
        assert meta._estimate(gradients, keep_adapted=True).y.shape == (3, 1, 4)


@pytest.mark.parametrize(
    "settings", [{}, {"nu": 0.05}, {"perturb": "center"}, {"perturb": "center", "eps": 0.05}, {"scheme": "forward"}]
)
def test_branches_end_at_a_tolerance_where_the_base_does(settings):
    meta = mp.FOBMAML(mp.GradientDescent(LR / 3), tol=1e-7, max_steps=400, **settings)
    with started() as (call, gradients):
        info = meta._estimate(gradients, keep_adapted=False).info
        assert info.converged.all()
        assert (info.branch_steps > 0).all()
        assert (info.branch_steps < 400).all()
        info = dataclasses.replace(meta, branch_steps=2)._estimate(call.gradients((0, 3)), keep_adapted=False).info
    assert not info.converged.any()  # two steps are too few


@pytest.mark.parametrize("asked", [True, False])
def test_what_an_error_estimate_takes_is_taken_where_it_is_asked_for(asked):
    meta = mp.FOBMAML(mp.GradientDescent(LR / 3), K, nu=0.05, estimate_error=asked)
    with started() as (_, gradients):
        info = meta._estimate(gradients, keep_adapted=False).info
    assert info.linear_residual.isnan().tolist() == [not asked] * 3


SOLVER = mp.GradientDescent(0.1)
GIVEN = {
    "the default step": (mp.FOBMAML(SOLVER, 2, perturb="loss"), True),
    "central4": (mp.FOBMAML(SOLVER, 2, perturb="loss", scheme="central4"), True),
    "no node below 0": (mp.FOBMAML(SOLVER, 2, perturb="loss", scheme="forward"), False),
    "a weight that was asked for": (mp.FOBMAML(SOLVER, 2, nu=0.1), False),
    "center": (mp.FOBMAML(SOLVER, 2, perturb="center"), False),
    "center with a step": (mp.FOBMAML(SOLVER, 2, perturb="center", eps=0.1), False),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_task_whose_branch_went_astray_is_differentiated_anew(monkeypatch, name):
    """By "center", where its ratio is above 2 or its branch is not finite; nothing is known of one without a base."""
    meta, anew = GIVEN[name]
    other, called = estimate(grad=numbers(T, 1, P, seed=9), solves=(solution(),) * 2), []

    def by_center(self, gradients, keep_adapted):
        called.append((self, gradients, keep_adapted))
        return other

    monkeypatch.setattr(mp.FOBMAML, "_estimate", by_center)
    nan = torch.nan
    for ratios, base, branch, replaced in (
        ((0.5, 2.0, 1.0), (True,) * 3, (True,) * 3, []),
        ((0.5, 2.5, 1.0), (True,) * 3, (True,) * 3, [1]),
        ((0.5, nan, 3.0), (True,) * 3, (True, False, True), [1, 2]),
        ((0.5, 1.0, 1.0), (True,) * 3, (True, True, False), [2]),
        ((0.5, nan, 1.0), (True, False, True), (True, False, True), []),
    ):
        called.clear()
        ratio = torch.tensor(ratios, dtype=torch.float64)
        found = estimate(solves=(solution(base), solution(branch)), gradient_ratio=ratio)
        out = meta._unless_astray(found, "gradients")
        told = meta.perturb == "loss" and meta.scheme != "forward"
        assert out.info.astray.tolist() == [told and task in replaced for task in range(T)]
        if not (anew and replaced):
            assert all(same(*pair) is None for pair in zip(out.grad, found.grad, strict=True))
            assert called == []
            continue
        assert called == [(dataclasses.replace(meta, perturb="center"), "gradients", False)]
        for task in range(T):
            same(out.grad[task], (other if task in replaced else found).grad[task])


def test_a_branch_that_fails_is_told_where_it_may_be_mended_and_says_what_may_help():
    gradients = SimpleNamespace(start=5, lam=LAM)
    for meta, mended in GIVEN.values():
        for what in ("raise", "skip"):
            purpose = dataclasses.replace(meta, on_nonfinite=what)._purpose_of_branches(gradients)
            assert purpose.on_nonfinite == ("tell" if mended and what == "raise" else what)
            assert (purpose.name, purpose.first_task, purpose.lam) == ("branch solve", 5, LAM)
            asked = meta.nu is not None
            assert purpose.advice == (" Or lower nu=0.1: at -nu, f may outweigh what has a minimum." if asked else "")
    for scheme, settings in (("forward", {"nu": 0.1}), ("symmetric", {"perturb": "center", "eps": 0.1})):
        assert mp.FOBMAML(SOLVER, 2, scheme=scheme, **settings)._purpose_of_branches(gradients).advice == ""


@pytest.mark.parametrize(
    ("backend", "settings", "parts"),
    [
        ("loop", {"steps": 2}, [1, 1]),
        ("loop", {"steps": 2, "scheme": "forward"}, [1, 1]),
        ("loop", {"steps": 2, "scheme": "forward", "residual_correction": True}, [1]),
        ("vmap", {"steps": 2}, [2]),
        ("loop", {"tol": 1e-3, "max_steps": 9}, [2]),  # branches of a task stop together
        ("loop", {"steps": 2, "branch_solver": mp.AdaptiveGradientDescent(0.1)}, [2]),  # and look at each other
    ],
)
def test_branches_are_taken_one_by_one_where_that_saves_memory_and_changes_nothing(backend, settings, parts):
    meta = mp.FOBMAML(SOLVER, **settings)
    with started(backend) as (_, gradients):
        at_base, _, _ = AtBase.of(gradients, numbers(T, 1, P), measured=True)
        _, starts, first, tol = leave(meta, at_base, gradients)
    assert [start.shape[1] for start in starts] == [grad.shape[1] for grad in first] == parts
    assert (tol is None) == ("tol" not in settings)


def test_the_tolerance_of_branches_is_that_of_how_far_they_go():
    meta = mp.FOBMAML(SOLVER, tol=1e-3, max_steps=9, perturb="center", eps=0.05)
    with started() as (_, gradients):
        y0 = numbers(T, 1, P)
        distance = gradients.displacement(y0).norm(dim=-1).flatten()
        *_, tol = leave(meta, AtBase.of(gradients, y0, measured=True)[0], gradients)
    same(tol, 0.05 * (1e-3 / distance).clamp(max=0.01 * LAM))


def test_what_is_known_at_the_base():
    """Gradients by autograd, and lengths where they are asked for; ||v|| / lam where all others are 0."""
    y0 = numbers(T, 1, P)
    with started() as (call, gradients):
        at_base, query, _ = AtBase.of(gradients, y0, measured=False)
        assert at_base.lengths is None
        data, x = call.batch.many(0, T), call.parameters.x
    for task in range(T):
        with torch.enable_grad():
            point = {"y": y0[task, 0].clone().requires_grad_()}
            pull = loss(point, data.support[task]) + LAM / 2 * (point["y"] - x).square().sum()
            value = 3 * loss(point, data.query[task])
            (r,), (v,) = (torch.autograd.grad(each, point["y"]) for each in (pull, value))
        same((at_base.residual[task, 0], at_base.v[task, 0]), (r, v))
        same((at_base.norm_residual[task, 0, 0], at_base.norm_v[task, 0, 0]), (r.norm(), v.norm()))
        same((query.grad[task].flatten(), query.value[task]), (v.norm()[None], value.detach()[None]))
    still = mp.ProximalProblem(lambda p, data: p["y"].square().sum(), lambda p, data: (p["y"] * data).sum(), LAM)
    rows = numbers(T, P)
    zeros = torch.zeros(P, dtype=torch.float64)
    with begun(still, {"y": zeros}, TaskBatch.of(mp.Task(rows, rows)), Choice("vmap", None)) as call:
        lengths = AtBase.of(call.gradients((0, T)), zeros.expand(T, 1, P), measured=True)[0].lengths
    same(lengths.moved.flatten(), rows.norm(dim=1) / LAM)
    assert lengths.left.abs().max() == 0


@pytest.mark.parametrize("perturb", ["center", "loss"])
def test_the_default_step(perturb):
    """As far from y_0 as the base has left to go; for "loss" nu ||v|| is no more than 0.175 ||grad fhat||."""
    meta = mp.FOBMAML(SOLVER, 2, perturb=perturb)
    with started() as (_, gradients):
        at_base, _, _ = AtBase.of(gradients, numbers(T, 1, P), measured=True)
        moved = gradients.displacement(at_base.y0)
        distance, left = moved.norm(dim=-1), at_base.residual.norm(dim=-1)
        slope = (at_base.residual - LAM * moved).norm(dim=-1)
        branches, *_ = leave(meta, at_base, gradients)
    eps, most = distance * (left / (LAM * distance)).sqrt().clamp(max=2), 0.175 * slope / LAM
    assert (most < eps).any()
    same(branches.nu[..., 0] * at_base.norm_v[..., 0], LAM * (torch.minimum(eps, most) if perturb == "loss" else eps))


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_node_of_0_needs_no_gradient_of_the_query_loss(backend):
    meta = mp.FOBMAML(SOLVER, K, branch_steps=J, scheme="forward", nu=0.1)
    with started(backend) as (_, gradients):
        counts = meta._estimate(gradients, keep_adapted=False).info.counts
    assert counts == mp.Counts(support_gradients=T * (K + 1 + 2 * (J - 1)), query_gradients=T * (1 + J - 1))


def test_no_gradient_is_taken_of_what_is_not_there():
    one = torch.ones(T, 1, 1)
    made = Branches.of(AtBase(one, one, one, one, one, None), (1.0,), (1.0,), one, center=True, corrected=True)
    assert made.shared_difference(SimpleNamespace(shares=False), [one]).shape == (T, 1, 0)


@pytest.mark.parametrize(
    ("given", "meant"),
    [({}, "center"), ({"eps": 0.1}, "center"), ({"nu": 0.1}, "loss"), ({"perturb": "loss"}, "loss")],
    ids=str,
)
def test_the_centre_is_perturbed_unless_a_weight_of_the_loss_is_given(given, meant):
    """By the attribute, by what is evaluated, and by what comes out, next to the same with ``perturb`` said."""
    meta = mp.FOBMAML(mp.GradientDescent(LR), K, **given)
    assert meta == mp.FOBMAML(mp.GradientDescent(LR), K, **given | {"perturb": meant})
    assert mp.Tangent(mp.GradientDescent(LR), K).perturb == "center"
    with started() as (_, gradients):
        estimate = meta._estimate(gradients, keep_adapted=False)
    assert estimate.info.counts.query_gradients == 3 * (1 if meant == "center" else 1 + 2 * (K - 1))
