"""Checks of settings, shared by every class that has some. Each raises InputError and changes nothing."""

import math
from collections.abc import Iterable

from metaprox.errors import InputError


def positive(name: str, value: float, why: str = "") -> None:
    """``value`` is a finite number > 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a finite number > 0, got {value!r}{_because(why)}")


def nonnegative(name: str, value: float, why: str = "") -> None:
    """``value`` is a finite number >= 0."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number >= 0, got {value!r}{_because(why)}")


def fraction(name: str, value: float) -> None:
    """``value`` lies in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise InputError(f"{name} must lie in [0, 1), got {value!r}")


def count(name: str, value: int, least: int = 1) -> None:
    """``value`` is an integer >= ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be an integer >= {least}, got {value!r}")


def choice(name: str, value: str, known: Iterable[str]) -> None:
    """``value`` is one of ``known``."""
    known = tuple(known)
    if value not in known:
        raise InputError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _because(why: str) -> str:
    return f": {why}" if why else ""
