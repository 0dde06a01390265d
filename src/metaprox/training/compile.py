"""When a run is worth the minute that compiling takes."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from metaprox.estimators import Estimator

LONG = 1000  # Meta-steps.


def worth_compiling(method: type[Estimator], values: Mapping[str, Any]) -> bool:
    """For long runs of first-order methods on small networks, where there is a compiler."""
    plain = values["backend"] != "loop" and not values["inner_batch"] and not method._differentiates_twice
    return plain and values["meta_steps"] >= LONG and has_compiler(values["device"])


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler on the CPU, Triton elsewhere."""
    if device.startswith("cpu"):
        return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
    return importlib.util.find_spec("triton") is not None
