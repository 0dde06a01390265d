"""The estimator that a configuration asks for, and the named variants that are compared."""

import json
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError
from metaprox.estimators import FOBMAML, FOMAML, IMAML, MAML, Estimator, Reptile, Tangent
from metaprox.solvers import InnerSolver
from metaprox.training.config import TrainConfig
from metaprox.training.options import METHOD_OPTIONS

CLASSES: dict[str, type[Estimator]] = {
    "fobmaml": FOBMAML,
    "tangent": Tangent,
    "imaml": IMAML,
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": Reptile,
}

# How a method or preset is called in tables and figures.
NAMES = {
    "fobmaml": "FO-B-MAML",
    "fobmaml-center": "FO-B-MAML, center",
    "fobmaml-forward": "FO-B-MAML, forward",
    "fobmaml-forward-center": "FO-B-MAML, forward, center",
    "tangent": "Tangent",
    "imaml": "iMAML",
    "maml": "MAML",
    "fomaml": "FO-MAML",
    "reptile": "Reptile",
}

# What ``metaprox compare --methods`` knows by name: changes to the shared settings.
PRESETS: dict[str, dict[str, Any]] = {
    "fobmaml": {"method": "fobmaml", "scheme": "symmetric", "perturb": "loss"},
    "fobmaml-center": {"method": "fobmaml", "scheme": "symmetric", "perturb": "center"},
    "fobmaml-forward": {"method": "fobmaml", "scheme": "forward", "perturb": "loss"},
    "fobmaml-forward-center": {"method": "fobmaml", "scheme": "forward", "perturb": "center"},
    "tangent": {"method": "tangent"},
    "imaml": {"method": "imaml"},
    "maml": {"method": "maml"},
    "fomaml": {"method": "fomaml"},
    "reptile": {"method": "reptile"},
}


def preset(label: str) -> dict[str, Any]:
    """The settings of a named variant. Raises InputError, listing the known ones, for any other name."""
    if not isinstance(label, str) or label not in PRESETS:
        raise InputError(
            f"unknown method {checks.shown(label)}; known: {', '.join(PRESETS)}; others go into --variants FILE"
        )
    return PRESETS[label]


def read_variants(path: str | Path) -> dict[str, dict[str, Any]]:
    """Named variants from a JSON file. Raises InputError unless it holds an object of objects."""
    path = checks.path("path", path)
    try:
        variants = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--variants {path}: {error}") from error
    if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
        raise InputError(f'--variants {path} must hold {{"name": {{"setting": value, ...}}, ...}}')
    return variants


def method(config: TrainConfig, solver: InnerSolver, branch_solver: InnerSolver) -> Estimator:
    """The estimator of a resolved configuration. Raises InputError where a setting of it is out of range."""
    own = {name: getattr(config, name) for name in METHOD_OPTIONS[config.method] if name != "branch_lr"}
    if "branch_solver" in own:
        own["branch_solver"] = branch_solver
    own |= {
        "backend": config.backend,
        "chunk_size": config.chunk_size or "auto",
        "compile": config.compile == "on",
        "on_nonfinite": config.on_nonfinite,
    }
    return CLASSES[config.method](solver, config.steps, **own)
