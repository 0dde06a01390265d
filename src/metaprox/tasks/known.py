"""The families that there are: whatever class of a file of this folder is one."""

import inspect
import pkgutil
from functools import lru_cache
from importlib import import_module

import metaprox.tasks
from metaprox.tasks.base import Family


@lru_cache(maxsize=1)
def families() -> dict[str, type[Family]]:
    """Name, which is the class's in lower case -> class."""
    names = [f"{metaprox.tasks.__name__}.{found.name}" for found in pkgutil.iter_modules(metaprox.tasks.__path__)]
    classes = [
        kind
        for name in names
        for kind in vars(import_module(name)).values()
        if isinstance(kind, type) and issubclass(kind, Family) and kind.__module__ == name
    ]
    return {kind.__name__.lower(): kind for kind in classes if not inspect.isabstract(kind)}
