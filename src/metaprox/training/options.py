"""Which settings a method or a family of tasks has, and what they are where they are not given."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from metaprox import checks

# The settings that only some methods have.
METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "fobmaml": ("scheme", "perturb", "nu", "eps", "branch_solver", "branch_lr", "branch_steps", "residual_correction"),
    "tangent": ("perturb", "branch_solver", "branch_lr", "branch_steps", "residual_correction"),
    "imaml": ("cg_steps", "damping"),
    "maml": (),
    "fomaml": (),
    "reptile": (),
}

# The settings that only some families of tasks have.
FAMILY_OPTIONS: dict[str, tuple[str, ...]] = {
    "mnist1d": ("hidden", "inner_batch"),
    "sinusoid": ("hidden", "inner_batch"),
    "banking77": ("data", "encoder", "adapt"),
}

# What depends on the family of tasks. Each is a setting of its own; these are the values it takes if not given.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "mnist1d": {
        "shots": 5,
        "queries": 15,
        "hidden": (128, 128),
        "meta_batch": 16,
        "meta_steps": 1000,
        "inner_lr": 0.1,
        "lam": 0.1,
        "nu": 0.1,
        "eps": 1.0,
    },
    "sinusoid": {
        "shots": 10,
        "queries": 10,
        "hidden": (40, 40),
        "meta_batch": 25,
        "meta_steps": 4000,
        "inner_lr": 0.01,
        "lam": 0.5,
        "nu": 0.05,
    },
    "banking77": {
        "shots": 1,
        "queries": 5,
        "encoder": "lora",
        "adapt": "head",
        "meta_batch": 4,
        "meta_steps": 100,
        "inner_lr": 0.3,
        "lam": 0.5,
        "nu": 0.1,
        "eps": 0.1,
    },
}
# Outer step of normalized SGD.
LENGTHS = {"mnist1d": 0.4, "sinusoid": 0.1, "banking77": 0.1}
OUTER_STEPS = {"clipped": 0.1, "adam": 0.001, "sgd": 1.0}


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler on the CPU, Triton elsewhere."""
    if device.startswith("cpu"):
        return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None
    return importlib.util.find_spec("triton") is not None


def foreign_options(method: str) -> tuple[str, ...]:
    """The settings of other methods that this one does not have. Raises InputError for an unknown method."""
    checks.choice("method", method, METHOD_OPTIONS)
    return foreign(METHOD_OPTIONS, method)


def foreign(options: Mapping[str, tuple[str, ...]], chosen: str) -> tuple[str, ...]:
    """The settings in ``options`` that ``chosen`` does not have."""
    every = dict.fromkeys(name for own in options.values() for name in own)
    return tuple(name for name in every if name not in options[chosen])
