"""The named variants that ``metaprox compare`` knows, and those of a file."""

from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError, RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import json_of, read_bytes, text_of
from metaprox.training.names import METHODS

# Each method by its name, and the variants of FO-B-MAML: changes to the shared settings.
PRESETS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS.names()},
    "fobmaml": {"method": "fobmaml", "scheme": "symmetric", "perturb": "center"},
    "fobmaml-loss": {"method": "fobmaml", "scheme": "symmetric", "perturb": "loss"},
    "fobmaml-forward": {"method": "fobmaml", "scheme": "forward", "perturb": "center"},
    "fobmaml-forward-loss": {"method": "fobmaml", "scheme": "forward", "perturb": "loss"},
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
        variants = json_of(path, text_of(path, read_bytes(path)))
        if isinstance(variants, dict):
            variants = checksums.unsealed(path, variants)  # what a search has found is sealed
    except RunFolderError as error:
        raise InputError(f"--variants {path}: {error}") from error
    if not isinstance(variants, dict) or not all(isinstance(changes, dict) for changes in variants.values()):
        raise InputError(f'--variants {path} must hold {{"name": {{"setting": value, ...}}, ...}}')
    return variants
