"""on_nonfinite="skip": a task that diverges is left out and named, and the others are what they are without it."""

from dataclasses import replace

import pytest
import torch

import metaprox as mp

GD = mp.GradientDescent(0.5)
METHODS = {
    "fobmaml": mp.FOBMAML(GD, 30),
    "fobmaml-nu": mp.FOBMAML(GD, 30, nu=0.05),
    "fobmaml-center": mp.FOBMAML(GD, 30, perturb="center"),
    "fobmaml-corrected": mp.FOBMAML(GD, 30, scheme="forward", perturb="center", residual_correction=True),
    "fobmaml-predictor": mp.FOBMAML(GD, 30, start="predictor"),
    "fobmaml-tol": mp.FOBMAML(GD, tol=1e-4, max_steps=30),
    "fobmaml-adaptive": mp.FOBMAML(mp.Nesterov(0.5), 30, branch_solver=mp.Anderson(0.5)),
    "tangent": mp.Tangent(GD, 30),
    "tangent-corrected": mp.Tangent(GD, 30, residual_correction=True),
    "imaml": mp.IMAML(GD, 30),
    "imaml-tol": mp.IMAML(GD, tol=1e-4, max_steps=30),
    "maml": mp.MAML(GD, 30),
    "fomaml": mp.FOMAML(GD, 30),
    "fomaml-tol": mp.FOMAML(GD, tol=1e-4, max_steps=30),
    "reptile": mp.Reptile(GD, 30),
}
BACKENDS = {"loop": {"backend": "loop"}, "vmap": {"backend": "vmap"}, "chunks": {"backend": "vmap", "chunk_size": 2}}
TASKS = 5


@pytest.fixture(params=METHODS)
def meta(request):
    return METHODS[request.param]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def loss(params, data):
    """Curvature and center of a task; a parameter is shared by nobody."""
    curvature, center = data[0], data[1:]
    return 0.5 * curvature * ((params["w"] - center) ** 2).sum() + 0.1 * params["v"].square().sum()


def tasks(bad=(1, 4), curvature=1e6):
    """5 tasks; the bad ones are too stiff for the step, and overflow after a few."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, TASKS, 3, generator=generator) + 0.5
    rows[0, list(bad), 0] = curvature
    return mp.Task(rows[0], rows[1])


PARAMS = {"w": torch.tensor([0.3, -0.2]), "v": torch.tensor([1.0])}
PROBLEM = mp.ProximalProblem(loss, loss, 0.7)


def some(batch, kept):
    return mp.Task(batch.support[list(kept)], batch.query[list(kept)])


def test_the_mean_is_over_the_others(meta, backend):
    meta = replace(meta, on_nonfinite="skip", **backend)
    out = meta(PROBLEM, PARAMS, tasks())
    alone = meta(PROBLEM, PARAMS, some(tasks(), (0, 2, 3)))
    assert out.info.skipped.tolist() == [False, True, False, False, True]
    assert alone.info.skipped.sum() == 0
    for name, value in alone.grad.items():
        torch.testing.assert_close(out.grad[name], value)
    assert out.query_loss[[1, 4]].isnan().all()
    torch.testing.assert_close(out.query_loss[[0, 2, 3]], alone.query_loss)
    torch.testing.assert_close(out.adapted["w"][[0, 2, 3]], alone.adapted["w"])
    assert out.adapted["w"][[1, 4]].isnan().all()
    summary = out.info.summary()
    assert summary["tasks_skipped"] == 2
    for name, value in alone.info.summary().items():
        if name.endswith(("_median", "_worst")) and "step_size" not in name:
            assert summary[name] == pytest.approx(value, rel=1e-4), name


def test_nothing_is_skipped_where_nothing_diverges(meta, backend):
    batch = tasks(bad=())
    plain = replace(meta, **backend)(PROBLEM, PARAMS, batch)
    out = replace(meta, on_nonfinite="skip", **backend)(PROBLEM, PARAMS, batch)
    for name, value in plain.grad.items():
        assert torch.equal(out.grad[name], value)
    assert not out.info.skipped.any()
    assert "tasks_skipped" not in out.info.summary()


def test_raise_is_the_default_and_changes_nothing(meta, backend):
    live = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    with pytest.raises(mp.NonFiniteError, match="task 1"):
        replace(meta, **backend).backward(PROBLEM, tasks(), live)
    assert all(value.grad is None for value in live.values())


def test_all_tasks_diverging_raises(meta, backend):
    live = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    with pytest.raises(mp.NonFiniteError, match=r"all 5 tasks diverged, .* leaves none; the first: task 0") as caught:
        replace(meta, on_nonfinite="skip", **backend).backward(PROBLEM, tasks(bad=range(5)), live)
    assert caught.value.task == 0
    assert all(value.grad is None for value in live.values())


def test_backward_adds_the_mean_of_the_others(backend):
    meta = mp.FOBMAML(GD, 30, on_nonfinite="skip", **backend)
    live = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    out = meta.backward(PROBLEM, tasks(), live)
    alone = meta(PROBLEM, PARAMS, some(tasks(), (0, 2, 3)))
    torch.testing.assert_close(live["w"].grad, alone.grad["w"])
    assert out.info.skipped.sum() == 2


def test_a_query_loss_that_is_not_finite_is_skipped_and_stays(backend):
    """The base converges; the query loss is infinite at task 2, and only its gradient is not finite at task 3."""

    def outer(params, data):
        root = (0 * params["w"].sum() + (data[0] != 7)).sqrt()  # at 0 its slope is infinite, and 0 times that is NaN
        return loss(params, data) + root + torch.where(data[0] == 9, torch.inf, 0.0)

    batch = tasks(bad=())
    batch.query[2, 0], batch.query[3, 0] = 9.0, 7.0
    for name in ("fobmaml", "tangent", "maml", "fomaml", "reptile"):
        meta = replace(METHODS[name], on_nonfinite="skip", **backend)
        out = meta(mp.ProximalProblem(loss, outer, 0.7), PARAMS, batch)
        learns = not isinstance(meta, mp.Reptile)  # its gradient is not that of the query loss
        assert out.info.skipped.tolist() == [False, False, True, learns, False] or not learns
        assert out.query_loss[2] == torch.inf
        assert out.query_loss[3].isfinite()
        kept = [0, 1, 4] if learns else [0, 1, 3, 4]
        alone = meta(mp.ProximalProblem(loss, outer, 0.7), PARAMS, some(batch, kept))
        torch.testing.assert_close(out.grad["w"], alone.grad["w"])


def test_branches_alone_may_diverge(backend):
    problem = mp.ProximalProblem(lambda p, data: 0.1 * loss(p, data), loss, 0.7)
    branches = {"branch_solver": mp.GradientDescent(2.0), "branch_steps": 150}
    meta = mp.FOBMAML(GD, 30, nu=0.01, on_nonfinite="skip", **branches, **backend)
    stiff = tasks(bad=(3,), curvature=12.0)  # 0.5 (1.2 + 0.7) < 2 < 2 (1.2 + 0.7), and the others' 2 (0.15 + 0.7) < 2
    out = meta(problem, PARAMS, stiff)
    assert out.info.skipped.tolist() == [False, False, False, True, False]
    assert out.query_loss.isfinite().all()
    assert out.adapted["w"].isfinite().all()
    alone = meta(problem, PARAMS, some(stiff, (0, 1, 2, 4)))
    torch.testing.assert_close(out.grad["w"], alone.grad["w"])


def test_losses_are_not_evaluated_at_what_is_no_number():
    """Where the gradient is not finite the task stays, so that losses which refuse NaN go on."""

    def strict(params, data):
        if params["w"].isnan().any():
            raise ValueError("weights are no numbers")
        return loss(params, data)

    for method in METHODS.values():
        if isinstance(method, mp.MAML):
            continue  # its solve is one graph
        meta = replace(method, on_nonfinite="skip", backend="loop")
        out = meta(mp.ProximalProblem(strict, strict, 0.7), PARAMS, tasks())
        assert out.info.skipped.tolist() == [False, True, False, False, True]


def test_shared_parameters_get_the_mean_of_the_others_too(backend):
    problem = mp.ProximalProblem(loss, loss, 0.7, adapt="w")
    for name in ("fobmaml", "fobmaml-corrected", "tangent", "imaml", "maml", "fomaml"):
        meta = replace(METHODS[name], on_nonfinite="skip", **backend)
        out = meta(problem, PARAMS, tasks())
        alone = meta(problem, PARAMS, some(tasks(), (0, 2, 3)))
        torch.testing.assert_close(out.grad["v"], alone.grad["v"])
        assert out.grad["v"].abs().max() > 0.1


def test_a_tolerance_is_reached_by_the_others():
    """The first gradient that is not finite ends the solve of its own task alone."""
    for backend in BACKENDS.values():
        meta = mp.FOMAML(GD, tol=1e-5, max_steps=60, on_nonfinite="skip", **backend)
        info = meta(PROBLEM, PARAMS, tasks()).info
        assert info.converged.tolist() == [True, False, True, True, False]
        assert (info.base_steps[[0, 2, 3]] > 10).all()
        assert (info.base_steps[[0, 2, 3]] < 60).all()


def test_other_words_are_refused():
    with pytest.raises(mp.InputError, match="unknown on_nonfinite 'ignore'; known: raise, skip"):
        mp.FOMAML(GD, 3, on_nonfinite="ignore")
