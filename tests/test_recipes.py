"""What docs/recipes.md says beside its blocks, which tests/test_docs.py runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metaprox as mp
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid
from test_docs import others, run_blocks

ROOT = Path(__file__).parent.parent
STEP = {"perturb": "center", "eps": 0.2}


def made(**settings):
    model = mlp([1, 16, 1], seed=0)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, lam=0.5)
    return model, problem, mp.FOBMAML(mp.GradientDescent(lr=0.05), steps=5, **settings)


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def batches(count):
    return [Sinusoid().batch(range(4 * i, 4 * i + 4)) for i in range(count)]


def test_accumulated_batches_divided_by_their_number_are_one_batch():
    model, problem, meta = made()
    for tasks in batches(3):
        meta.backward(problem, tasks)
    accumulated = gradient(model) / 3
    whole, problem, meta = made()
    meta.backward(problem, Sinusoid().batch(range(12)))
    assert (accumulated - gradient(whole)).norm() < 1e-5 * accumulated.norm()


def trained_by_lightning(precision=None, **options):
    lightning = pytest.importorskip("lightning")
    from torch.utils.data import DataLoader

    class MetaLearner(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model, self.problem, self.meta = made(**STEP)

        def training_step(self, tasks, index):
            self.meta.backward(self.problem, tasks)

        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.0)

    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options |= dict.fromkeys(names, False) | {"max_epochs": 1, "accelerator": "cpu"}
    module = MetaLearner()
    lightning.Trainer(precision=precision, **options).fit(
        module, DataLoader(range(4), batch_size=4, collate_fn=Sinusoid().batch)
    )
    return module.model


def by_hand(precision):
    model, problem, meta = made(**STEP)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        meta.backward(problem, batches(1)[0])
    return gradient(model)


@others
def test_lightning_in_other_precisions():
    for precision in ("32-true", "bf16-mixed"):
        assert torch.equal(gradient(trained_by_lightning(precision)), by_hand(precision)), precision
    assert not torch.equal(by_hand("bf16-mixed"), by_hand("32-true"))
    double, exact = gradient(trained_by_lightning("64-true")), by_hand("32-true").double()
    assert double.dtype == torch.float64
    assert (double - exact).norm() < 1e-3 * exact.norm()
    with pytest.raises(mp.InputError, match=r"has dtype torch.bfloat16, too coarse"):
        trained_by_lightning("bf16-true")


@others
@pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_lightning_refuses_what_is_ours_to_do(option):
    pytest.importorskip("lightning")
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException, match="manual optimization"):
        trained_by_lightning(**option)


def test_a_scaler_of_losses_divides_what_was_not_scaled():
    model, problem, meta = made()
    meta.backward(problem, batches(1)[0])
    before, optimizer = gradient(model).clone(), torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with pytest.raises(AssertionError, match="_scale is None"):  # which is what a loop of metaprox alone meets
        scaler.unscale_(optimizer)
    scaler.scale(torch.zeros(()))  # as in a step that scales its loss
    scaler.unscale_(optimizer)
    assert torch.equal(gradient(model), before / 1024)


@others
def test_the_recipe_refuses_such_a_scaler():
    names = run_blocks(ROOT / "docs" / "recipes.md")
    from lightning.pytorch.plugins.precision import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = names["lightning"].Trainer(max_epochs=1, accelerator="cpu", plugins=[plugin], **names["quiet"])
    with pytest.raises(AssertionError, match="take bf16-mixed in place of 16-mixed"):
        trainer.fit(names["MetaLearner"](), names["batches"](1), names["batches"](1, "validation"))


def in_two_processes(recipe, how):
    script = str(ROOT / "tests" / "recipe_processes.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run([*command, recipe, how], capture_output=True, text=True, env=environment, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] or done.stderr


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["lightning", "accelerate"])
def test_two_processes_are_one_of_batches_twice_as_large(recipe):
    pytest.importorskip(recipe)
    model, problem, meta = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for tasks in batches(3):
        optimizer.zero_grad()
        meta.backward(problem, tasks)
        optimizer.step()
    found = in_two_processes(recipe, "yes")
    assert sorted(one["rank"] for one in found) == [0, 1]
    assert found[0]["found"] == found[1]["found"]
    for name, value in model.state_dict().items():
        assert torch.allclose(torch.tensor(found[0]["found"][name]), value.flatten(), atol=1e-7), name


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("recipe", "how", "why"),
    [
        ("lightning", "no", "reduce is None in one of 2 processes"),
        ("accelerate", "no", "reduce is None in one of 2 processes"),
        ("accelerate", "wrapped", "give the module inside, model.module"),
    ],
)
def test_what_would_train_apart_is_refused(recipe, how, why):
    pytest.importorskip(recipe)
    found = in_two_processes(recipe, how)
    assert [why in one["found"] for one in found] == [True, True], found
