"""When a run is worth the minute that compiling takes."""

import importlib.util
import os
import shutil
import sys

from metaprox.training.composition import Composition

LONG = 1000  # Meta-steps.


def worth_compiling(run: Composition) -> bool:
    """For long runs of first-order methods on small networks, where there is a compiler."""
    one = run.estimator
    plain = one._choice().backend != "loop" and not run.inner_batch and not one._differentiates_twice
    return run.family.compiles and plain and run.pace.meta_steps >= LONG and has_compiler(run.device)


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler on the CPU, Triton elsewhere."""
    if device.startswith("cpu"):
        return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
    return importlib.util.find_spec("triton") is not None
