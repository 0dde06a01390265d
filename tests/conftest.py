"""Settings and problems that several tests share."""

import gc
import os
from pathlib import Path

import pytest
import torch

import metaprox as mp
from metaprox.losses import compiling
from metaprox.tasks import Quadratic

torch.set_num_threads(1)

LAM = 0.5
SCHEMES = ("forward", "symmetric", "central4", "central6")
# Each with settings that converge on curvatures up to 1 + LAM.
SOLVERS = {
    "gd": mp.GradientDescent(0.6),
    "nesterov": mp.Nesterov(0.6),
    "adam": mp.Adam(0.1),
    "anderson": mp.Anderson(0.6),
    "conjugate": mp.ConjugateGradient(0.6),
    "adaptive": mp.AdaptiveGradientDescent(10.0),
}


def pytest_collection_finish():
    """What all tests have is looked at no more by the many collections of garbage that tests ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def quadratic():
    """(problem, params, tasks) in float64: 5 tasks of dimension 8, condition number 10."""
    family = Quadratic(dim=8, condition=10.0, seed=3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, dtype=torch.float64, generator=generator)
    return family.problem(LAM), {"y": x}, family.batch(range(5))


@pytest.fixture
def as_traced(monkeypatch):
    """Graphs run as torch has traced them: all of compiling that is our own, in a sixth of the time."""
    monkeypatch.setattr(compiling, "SETTINGS", {"backend": "eager"})


@pytest.fixture
def as_lowered(monkeypatch):
    """Graphs run as torch hands them to its compilers, which it refuses to do with some that it has traced."""
    monkeypatch.setattr(compiling, "SETTINGS", {"backend": "aot_eager"})


@pytest.fixture(scope="session")
def banking77():
    """The folder with BANKING77's files: in METAPROX_DATA, or else in shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("METAPROX_DATA") or beside) / "banking77"
    if not (folder / "train.csv").is_file():
        pytest.skip(f"BANKING77 is not in {folder}; METAPROX_DATA names the folder that holds banking77")
    return folder


def relative_error(estimate, truth):
    """||estimate - truth|| / ||truth||."""
    return float((estimate - truth).norm() / truth.norm())


def records(folder):
    """The metrics of a run without the wall-clock time."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in folder.read_metrics()]


def interrupt_at(step):
    """A watcher that stops a run after so many meta-steps."""

    def watch(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


def launch_everything(monkeypatch):
    """As where operations are launched on a device, and x is too large to be copied."""
    for module in ("losses.descent", "vectors.parameters", "vectors.norms"):
        monkeypatch.setattr(f"metaprox.{module}.launches", lambda device: True)
    monkeypatch.setattr("metaprox.call.SMALL", 0)
