"""Parts of a run as JSON and back: a frozen dataclass is its class's name and its fields. Nothing else is built."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError
from metaprox.training.options import PREFIXES

VERSION = 2  # of the configurations on disk; those of version 1 had no version, and were options by name


def described(part: Any, name_of: Callable[[type], str], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """{"class": name, field: value}, with parts in a part alike; of what JSON does not hold, how it is shown."""
    values = {
        field.name: _plain(getattr(part, field.name), name_of)
        for field in fields(part)
        if field.init and field.name not in without
    }
    return {"class": name_of(type(part)), **values}


def _plain(value: Any, name_of: Callable[[type], str]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return described(value, name_of)
    if isinstance(value, (list, tuple)):
        return [_plain(one, name_of) for one in value]
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else checks.shown(value)


def made(values: Mapping[str, Any], of: Callable[[str], type], **more: Any) -> Any:
    """The part that ``described`` described. Raises InputError where it is not one."""
    kind = of(values["class"])
    known = {field.name for field in fields(kind)}
    given = {name: value for name, value in values.items() if name != "class"}
    if unknown := sorted(given.keys() - known):
        raise InputError(f"{values['class']} has no setting {', '.join(unknown)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}, **more)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as options by name, without its version; a part is its name, and its fields come after it."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "version":
            continue
        if not isinstance(value, Mapping):
            found[f"{prefix}{key}"] = value
            continue
        if "class" in value:
            found[key] = value["class"]
        found |= flat({name: one for name, one in value.items() if name != "class"}, PREFIXES.get(key, ""))
    return found


def different(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is not the same in two configurations, option by option."""
    one, other = flat(there), flat(here)
    return [
        f"{name}: {one.get(name)!r} there, {other.get(name)!r} here"
        for name in [*other, *(name for name in one if name not in other)]
        if one.get(name) != other.get(name)
    ]


def parsed(text: str) -> dict[str, Any]:
    """The JSON of a configuration. Raises InputError where it is something else, or of a newer version."""
    try:
        values = json.loads(checks.text("text", text))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"not the configuration of a run of metaprox: {type(values).__name__}")
    if values.get("version", 1) not in (1, VERSION):
        raise InputError(
            f"a configuration of version {checks.shown(values['version'])}; this metaprox reads 1 and {VERSION}: "
            "install the one that wrote it"
        )
    return values
