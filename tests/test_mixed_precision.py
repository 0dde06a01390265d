"""Losses in bfloat16 by autocast: what stays in float32, and the step that is then right."""

import importlib
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import metaprox as mp
from metaprox.losses import coarse
from metaprox.models import mean_squared_error

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SEEDS = range(3)
# Median errors over five seeds at the step of bfloat16, (2^-7)^(1/(p+1)): 3.8, 0.86 and 0.66 %.
BOUNDS = {"forward": 0.08, "symmetric": 0.02, "central4": 0.015}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("mixed_precision")


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("scheme", BOUNDS)
def test_the_step_of_bfloat16_is_right_and_that_of_float32_too_small(study, scheme, backend):
    def median(dtype):
        step = study.default_step(scheme, dtype)
        return statistics.median(study.error(seed, scheme, "center", step, backend=backend) for seed in SEEDS)

    right, too_small = median(torch.bfloat16), median(torch.float32)
    assert right < BOUNDS[scheme]
    assert too_small > 2 * right


@pytest.mark.parametrize("perturb", ["loss", "center"])
def test_the_default_step_sees_what_losses_compute_with_and_says_what_that_costs(study, perturb):
    """A base that has converged: by the parameters' precision the step would be so short that all is rounding."""

    def medians(autocast):
        found = [study.by_default(seed, "forward", perturb, 200, autocast=autocast) for seed in SEEDS]
        return [statistics.median(values) for values in zip(*found, strict=True)]

    error, said = medians(autocast=True)
    assert error < 0.3
    assert error / 5 < said < 5 * error
    error, said = medians(autocast=False)
    assert error < 0.03
    assert said < 1e-3


def test_coarseness_is_read_from_the_graph_of_a_loss_and_anew_under_autocast(study):
    model, tasks = study.case(0)

    def said(loss, model=model, tasks=tasks):
        """Without autocast around the call, and then with it."""
        problem = mp.ProximalProblem.from_module(model, loss, study.LAM)
        meta = mp.FOBMAML(study.SOLVER, study.STEPS, nu=0.1, backend="loop")
        call = lambda: float(meta(problem, problem.live_parameters(), tasks).info.rounding_error.median())  # noqa: E731
        plain = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain, call()

    plain, around = said(mean_squared_error)
    inside, _ = said(study.autocast_loss)
    assert plain < 1e-4
    assert min(around, inside) > 100 * plain

    def narrowed(module, batch):
        return (module(batch[0]).float() - batch[1]).square().mean().double()

    wide = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    exact, single = (said(loss, study.case(0)[0].double(), wide)[0] for loss in (mean_squared_error, narrowed))
    assert exact < 1e-12
    assert plain / 100 < single < 100 * plain


def test_products_of_float32_in_tf32_count_where_a_device_takes_them_so(monkeypatch):
    nodes = (("Convolution", "cuda"), ("Addmm", "cuda"), ("Addmm", "cpu"), ("Tanh", "cuda"))
    output = lambda kind: SimpleNamespace(dtype=torch.float32, device=torch.device(kind))  # noqa: E731
    single, found = float(torch.finfo(torch.float32).eps), {}
    for allowed, precision in ((True, "highest"), (False, "high"), (False, "medium")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        found[precision] = [coarse._epsilon(f"{name}Backward0", output(kind)) for name, kind in nodes]
    assert found == {
        "highest": [2**-10, single, single, single],
        "high": [single, 2**-10, single, single],
        "medium": [single, 2**-7, single, single],
    }


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("around", ["the model", "the call"])
def test_solutions_and_their_difference_stay_in_float32(study, backend, around):
    """In bfloat16 a step of 1e-4 would be lost on parameters of size 1; here the solver sees all of it."""
    dtypes, outputs = set(), set()

    class Watching:
        def init(self, y):
            return ()

        def step(self, grad, y, state):
            dtypes.update((grad.dtype, y.dtype))
            return y - 1e-4 * grad, state

    def loss(model, batch):
        inputs, targets = batch
        with torch.autocast(
            "cpu", dtype=torch.bfloat16, enabled=around == "the model" or torch.is_autocast_enabled("cpu")
        ):
            out = model(inputs)
        outputs.add(out.dtype)
        return nn.functional.mse_loss(out.float(), targets)

    model, tasks = study.case(0)
    problem = mp.ProximalProblem.from_module(model, loss, study.LAM)
    meta = mp.FOBMAML(Watching(), steps=3, nu=0.1, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around == "the call"):
        out = meta(problem, problem.live_parameters(), tasks)
    assert outputs == {torch.bfloat16}
    assert dtypes == {torch.float32}
    for name, p in model.named_parameters():
        assert out.grad[name].dtype == out.adapted[name].dtype == torch.float32
        moved = (out.adapted[name] - p.detach()).abs()
        assert 0 < moved.max() < 2e-3  # 2^-8, half the spacing of bfloat16 below 1, is 4e-3


def test_autocast_around_the_call_is_autocast_inside_the_loss(study):
    model, tasks = study.case(0)
    params = dict(model.named_parameters())
    meta = mp.FOBMAML(study.SOLVER, study.STEPS, nu=0.1, backend="loop")
    inside = meta(mp.ProximalProblem.from_module(model, study.autocast_loss, study.LAM), params, tasks)

    def plain(module, batch):
        return nn.functional.mse_loss(module(batch[0]).float(), batch[1])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = meta(mp.ProximalProblem.from_module(model, plain, study.LAM), params, tasks)
    for name, grad in inside.grad.items():
        torch.testing.assert_close(around.grad[name], grad, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_autocast_around_the_call_does_not_reach_the_solver(backend):
    """The loss has nothing to cast; Anderson's products in bfloat16 would be 1 % off."""
    generator = torch.Generator().manual_seed(0)
    x, curvature, support, query = torch.rand(4, 6, generator=generator)
    loss = lambda params, target: (curvature * (params["x"] - target) ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=0.5)
    meta = mp.FOBMAML(mp.Anderson(0.3, memory=3), steps=5, branch_steps=3, nu=0.1, backend=backend)
    tasks = mp.Task(support[None], query[None])
    plain = meta(problem, {"x": x}, tasks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = meta(problem, {"x": x}, tasks)
    assert torch.equal(around.grad["x"], plain.grad["x"])
    assert torch.equal(around.adapted["x"], plain.adapted["x"])


def test_parameters_in_bfloat16_are_refused():
    model = nn.Linear(2, 1).bfloat16()
    problem = mp.ProximalProblem.from_module(model, lambda m, b: m(b).float().sum(), 0.5)
    with pytest.raises(mp.InputError, match=r"'weight' has dtype torch.bfloat16.*torch.autocast inside the loss"):
        mp.FOBMAML(mp.GradientDescent(0.1), steps=1).backward(problem, mp.Task(torch.ones(1, 2), torch.ones(1, 2)))


def test_kept_table_is_that_of_the_kept_numbers_and_the_page_has_it(study):
    root = BENCHMARKS.parent
    kept = json.loads((root / "results" / "mixed-precision" / "results.json").read_text())
    rows = [row | {"median": float("inf") if row["median"] is None else row["median"]} for row in kept["rows"]]
    tables = study.markdown(rows), study.markdown_of_defaults(kept["defaults"])
    assert (root / "results" / "mixed-precision" / "table.md").read_text() == "\n\n".join(tables) + "\n"
    for table in tables:
        assert table in (root / "docs" / "models.md").read_text()


def test_benchmark_writes_its_numbers(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "SCHEMES", ("symmetric",))
    monkeypatch.setattr(study, "PERTURB", ("loss",))
    study.main(["--out", str(tmp_path), "--seed", "1", "--seeds", "1"])
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["seeds"] == [1]
    assert len(record["rows"]) == 3 + len(study.GRID)
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out
    assert record["rows"][1]["errors"] == [study.error(1, "symmetric", "loss", record["rows"][1]["step"])]


def test_convolutions_in_tf32_are_those_of_rounded_factors_and_their_derivatives_too(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    tf32 = importlib.import_module("tf32")
    ulp = 2.0**-10
    given = torch.tensor([1 + 0.4 * ulp, 1 + 0.6 * ulp, -3.0, 0.0, 1e-30 * (1 + 0.3 * ulp), 65504.0])
    found = tf32.rounded(given)
    assert found[:4].tolist() == [1, 1 + ulp, -3, 0]
    assert ((found - given).abs() <= ulp / 2 * given.abs()).all()
    torch.manual_seed(0)
    x, weight, grad = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 4, 4)
    took = []
    for convolve, given in (
        (lambda x, w, b: tf32.InTF32.apply(x, w, b, (2, 1)), (x, weight)),
        (lambda x, w, b: nn.functional.conv2d(x, w, b, 2, 1), tuple(map(tf32.rounded, (x, weight)))),
    ):
        leaves = [one.clone().requires_grad_() for one in (*given, torch.zeros(4))]
        out = convolve(*leaves)
        took.append([out.detach(), *torch.autograd.grad(out, leaves, tf32.rounded(grad))])
    torch.testing.assert_close(took[0], took[1], rtol=1e-5, atol=1e-5)
    assert not torch.equal(tf32.rounded(x), x)


def test_the_kept_table_of_tf32_is_that_of_the_kept_numbers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kept = BENCHMARKS.parent / "results" / "tf32"
    rows = json.loads((kept / "results.json").read_text())["rows"]
    assert importlib.import_module("tf32").table(rows) == (kept / "table.md").read_text()
