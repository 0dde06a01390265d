"""Parts of a run as JSON and back: a frozen dataclass is its class's name and its fields. Nothing else is built."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from metaprox import checks
from metaprox.errors import InputError, RunFolderError
from metaprox.training.options import PREFIXES, hints_of
from metaprox.training.pace import Pace

VERSION = 2  # of the configurations on disk; those of version 1 had no version, and were options by name

DATA, CONTENTS, KNOWN = "data_sha256", "contents_sha256", "known"
"""Where a configuration says what data the run has: their classes, what each example holds, what the model needs."""
OF_DATA = {DATA, CONTENTS, KNOWN}


def described(
    part: Any,
    name_of: Callable[[type], str],
    without: tuple[str, ...] = (),
    other: Callable[[str, Any], Any] = lambda place, value: checks.shown(value),
) -> dict[str, Any]:
    """Returns {"class": name, field: value}, with parts in a part alike.

    ``other(place, value)``: what stands for a value that JSON does not hold; how it is shown, unless given. With
    ``refused``, parts of a part are solvers, which ``Composition.of`` makes again.
    """

    def plain(place: str, value: Any) -> Any:
        solver = place.rpartition(".")[2] in PREFIXES
        if is_dataclass(value) and not isinstance(value, type) and (solver or other is not refused):
            return described(value, name_of, other=other)
        if isinstance(value, (list, tuple)):
            return [plain(place, one) for one in value]
        if isinstance(value, Path):
            return str(value)
        return value if value is None or isinstance(value, (bool, int, float, str)) else other(place, value)

    kept = [field.name for field in fields(part) if field.init and field.name not in without]
    name = type(part).__name__
    return {"class": name_of(type(part)), **{key: plain(f"{name}.{key}", getattr(part, key)) for key in kept}}


def refused(place: str, value: Any) -> Any:
    """For what can't be made again from JSON. Raises InputError."""
    raise InputError(
        f"{place}={checks.shown(value)} can't be kept in config.json, which holds numbers, switches, strings, paths "
        "and lists of them: give the settings that it is made of, or train by a training.Trainer"
    )


def fitted(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of JSON or of a person as the fields of ``kind`` have them: tuples for lists, paths for strings."""
    hints = hints_of(kind)
    return {name: _as(hints.get(name), value) for name, value in values.items()}


def _as(hint: Any, value: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value)
    listed = next((one for one in kinds if get_origin(one) in (list, tuple)), None)
    if listed is None or not isinstance(value, (list, tuple)):
        return value
    inner = get_args(listed)
    inner = inner[:1] * len(value) if len(inner) == 1 or inner[1:] == (...,) else inner
    each = [_as(one, part) for one, part in zip_longest(inner[: len(value)], value)]
    return each if get_origin(listed) is list else tuple(each)


def made(values: Mapping[str, Any], of: Callable[[str], type], **more: Any) -> Any:
    """The part that ``described`` described. Raises InputError where it is not one."""
    kind = of(values["class"])
    known = {field.name for field in fields(kind)}
    given = {name: value for name, value in values.items() if name != "class"}
    if unknown := sorted(given.keys() - known):
        raise InputError(f"{values['class']} has no setting {', '.join(unknown)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return kind(**fitted(kind, given), **more)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as options by name, without its version; a part is its name, and its fields come after it."""
    return _flat({name: value for name, value in values.items() if name not in ("version", KNOWN)}, "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, Mapping):
            found[f"{prefix}{key}"] = value
            continue
        if "class" in value:
            found[key] = value["class"]
        inner = f"{key}_" if key == "schedule" else PREFIXES.get(key, "")
        found |= _flat({name: one for name, one in value.items() if name != "class"}, inner)
    return found


def different(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is not the same in two configurations, option by option."""
    one, other = flat(there), flat(here)
    return [
        f"{name}: {one.get(name)!r} there, {other.get(name)!r} here"
        for name in [*other, *(name for name in one if name not in other)]
        if one.get(name) != other.get(name)
    ]


def completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with the defaults of what a run had no numbers of, or no switch for, when it was written."""
    found = dict(values)
    if isinstance(values.get("run"), Mapping):
        found["run"] = asdict(Pace()) | dict(values["run"])
    if isinstance(method := values.get("method"), Mapping) and "estimate_truncation" in method:
        found["method"] = {**method, "offload": method.get("offload", False)}
    return found


def refuse_another(place: Path, what: str, there: Mapping[str, Any], here: Mapping[str, Any], remedy: str) -> None:
    """Raise RunFolderError, naming what is not the same, where what is in ``place`` is of other settings."""
    here = {name: value for name, value in here.items() if name not in OF_DATA - there.keys()}  # from before
    if odd := different(completed(there), here):
        raise RunFolderError(f"{place} {what} with other settings: {'; '.join(odd)}{remedy}")


def parsed(text: str) -> dict[str, Any]:
    """The JSON of a configuration. Raises InputError where it is something else, or of a newer version."""
    try:
        values = json.loads(checks.text("text", text))
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise InputError(f"not JSON: {why}") from error
    if not isinstance(values, dict):
        raise InputError(f"not the configuration of a run of metaprox: {type(values).__name__}")
    if values.get("version", 1) not in (1, VERSION):
        raise InputError(
            f"a configuration of version {checks.shown(values['version'])}; this metaprox reads 1 and {VERSION}: "
            "install the one that wrote it"
        )
    return values
