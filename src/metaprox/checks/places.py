"""What people name by its place, package.module:attribute."""

import traceback
from importlib import import_module
from typing import Any

from metaprox.errors import InputError


def imported(name: str, option: str) -> Any:
    """What ``package.module:attribute`` names. Raises InputError where there is none, or its module can't be run."""
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of somebody's own may raise anything
        why = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            why += ", neither from the current folder nor in PYTHONPATH"
        elif not isinstance(error, (ImportError, AttributeError)):
            *_, last = traceback.extract_tb(error.__traceback__)
            place = "" if "importlib" in last.filename else f" ({last.filename}:{last.lineno})"
            why = f"{type(error).__name__}: {why}{place}"
        raise InputError(f"{option} {name!r} can't be imported: {why}") from error
    return found
