"""Quick sizes under several settings: which there are, that a process has its own, what is said of checks."""

import json
import os
import time
from pathlib import Path

import pytest

from quick import campaign, report
from quick.campaign import Ran, Setting

TOY = """
import time

import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox.experiments import Experiment
from metaprox.models import mean_squared_error, mlp
from metaprox.tasks import Sinusoid


def run(size, seed, remember):
    model = mlp([1, 4, 1], seed)
    problem = mp.ProximalProblem.from_module(model, mean_squared_error, 1.0)
    out = mp.FOBMAML(mp.GradientDescent(0.01), 2).backward(problem, Sinusoid(seed=seed).batch(range(2)))
    bits = torch.finfo(next(iter(out.grad.values())).dtype).bits
    time.sleep(SLEEP)
    numbers = {"bits": bits, "threads": torch.get_num_threads(), "seed": seed, "default": torch.rand(1).itemsize}
    return {"numbers": numbers}


def draw(results):
    return {"toy": Figure()}


EXPERIMENT = Experiment("toy", "A toy", run, draw, lambda results: results["numbers"])
"""
BOUNDS = {"both": {"bits": [32, 64], "threads": [1, 2], "seed": [0, 0], "default": [4, 4]}}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Experiments of modules ``toy`` and ``slow``, which other processes find too."""
    for name, seconds in (("toy", "0"), ("slow", "600"), ("broken", "1 / 0")):
        (tmp_path / f"{name}.py").write_text(TOY.replace("SLEEP", seconds))
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "toy.json").write_text(json.dumps(BOUNDS))
    (tmp_path / "__init__.py").touch()
    package = tmp_path.rename(tmp_path.parent / "toys")
    monkeypatch.setattr(campaign, "OF_NETWORKS", (*campaign.OF_NETWORKS, "toys.toy:EXPERIMENT"))
    source = str(Path(__file__).resolve().parents[1] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, str(package.parent)]))
    yield
    package.rename(tmp_path)


def ran_of(todo, limit=120.0):
    found = []
    campaign.run(todo, 2, limit, found.append)
    return {one.setting: one for one in found}


def test_a_process_has_the_threads_the_precision_and_the_seed_that_it_says(toys):
    todo = campaign.settings(["toys.toy:EXPERIMENT"], [1, 2], [0, 1], ["as written", "float64"])
    assert len(todo) == 8
    for setting, one in ran_of(todo).items():
        assert one.failure is None
        values = {check["name"]: check["value"] for check in one.checks}
        bits = 64 if setting.precision == "float64" else 32
        assert values == {"bits": bits, "threads": setting.threads, "seed": setting.seed, "default": 4}
        assert [check["name"] for check in one.checks if not check["passed"]] == ["seed"] * (setting.seed == 1)


def test_a_run_that_fails_or_takes_too_long_has_no_checks_and_says_why(toys):
    broken, slow = (Setting(f"toys.{name}:EXPERIMENT", 1, "as written", 0) for name in ("broken", "slow"))
    began = time.monotonic()
    found = ran_of([slow], limit=3.0) | ran_of([broken])
    assert time.monotonic() - began < 100
    assert found[slow].failure == "not done after 3 s"
    assert "ZeroDivisionError" in found[broken].failure
    assert found[broken].checks == found[slow].checks == []
    assert len(report.wrong(found.values())) == 2


def test_float64_is_for_experiments_on_networks_alone_and_first_seeds_come_first():
    found = campaign.settings(["bias", "normalize"], [1, 2], [0, 1], ["as written", "float64"])
    assert [one.seed for one in found] == [0] * 6 + [1] * 6
    assert {one.precision for one in found if one.experiment == "bias"} == {"as written"}
    assert sum(one.precision == "float64" for one in found) == 4


def check(name, value, low, high):
    return {"name": name, "value": value, "low": low, "high": high, "passed": low <= value <= high}


def test_the_table_counts_the_settings_that_pass_and_names_those_that_do_not(tmp_path):
    one, other, third = (Setting("bias", 1, "as written", seed) for seed in (0, 1, 2))
    ran = [
        Ran(one, 3.0, None, [check("slope", 1.0, 0.9, 1.1), check("floor", 0.0, 0, 1)]),
        Ran(other, 3.0, None, [check("slope", 1.3, 0.9, 1.1), check("floor", 0.5, 0, 1)]),
    ]
    report.save(ran, [third], tmp_path)
    said = (tmp_path / "table.md").read_text()
    assert "2 runs, 2 checks; failed: 1; not run: 1" in said
    assert "| bias | slope | 1 of 2 | 1 | 1.3 | 0.9 to 1.1 |" in said
    assert "| bias | floor | 2 of 2 | 0 | 0.5 | 0 to 1 |" in said
    assert "- bias: 1 thread, as written, seed 1: slope: 1.3, expected 0.9 to 1.1" in said
    assert report.load(tmp_path) == ran
    raw = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(raw | {"machine": {"cores": 3}}))
    assert report.load(tmp_path) == []
