"""metaprox env: what a report of a fault should say of the machine."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch
from rich.console import Console

import metaprox

VARIABLES = ("METAPROX_DATA", "METAPROX_PATIENCE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "CXX")


@dataclass(frozen=True)
class Env:
    """Print the versions and settings that a report of a fault should have in it.

    Example: metaprox env
    """

    def run(self, console: Console) -> None:
        """Print them."""
        print("\n".join(lines()))


def lines() -> Iterator[str]:
    """One for each thing that bears on a result."""
    yield f"metaprox {metaprox.__version__} in {os.path.dirname(metaprox.__file__)}"
    yield f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} processors"
    yield f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_device()}"
    for extra, packages in _packages().items():
        yield f"{extra}: {', '.join(f'{name} {_version(name)}' for name in packages)}"
    yield ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "no variables set"
    yield f"floats {torch.get_default_dtype()}, device {torch.get_default_device()}, {sys.getfilesystemencoding()}"


def _device() -> str:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"CUDA {torch.version.cuda} with {count} x {torch.cuda.get_device_name()}"
    return "MPS" if torch.backends.mps.is_available() else "CPU alone"


def _packages() -> dict[str, list[str]]:
    """What the installed metaprox asks for, by the extra that brings it."""
    found: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("metaprox") or []
    except metadata.PackageNotFoundError:
        return {"not installed": ["metaprox"]}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        group = extra[1] if extra else "needed"
        if name not in ("metaprox", "torch") and group != "all":
            found.setdefault(group, []).append(name)
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is missing"
