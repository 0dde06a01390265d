"""The words of a command line before they are parsed: what is no option or no value is refused as it was typed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from metaprox.cli.usage import unknown
from metaprox.errors import InputError

HELP = ("-h", "--help")
NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}


def name_of(word: str) -> str:
    """The option ``--inner-lr=0.1`` is inner_lr."""
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def given(arguments: Sequence[str]) -> dict[str, str]:
    """Name -> word, as it was typed, of the options that the arguments give."""
    return {name_of(word): word.split("=")[0] for word in arguments if word.startswith("--")}


def refuse(command: type, called: str, arguments: Sequence[str]) -> None:
    """Raise InputError where an option is none of the command's, has no value, or one that is no such number."""
    hints = dict(_hints(command))
    switches = {f"no_{name}" for name, hint in hints.items() if bool in _kinds(hint)}
    for word, values in _with_values(arguments):
        name, typed = name_of(word), word.split("=")[0]
        if name not in hints:
            if name not in switches and typed not in HELP:
                known = switches if name.startswith("no_") else hints
                shown = [f"--{one.replace('_', '-')}" for one in sorted(known)]
                raise unknown("option", typed, shown, f"metaprox {called} --help")
            continue
        kinds = _kinds(hints[name])
        if bool in kinds:
            continue
        if not values:
            raise InputError(f"{typed} needs a value")
        listed = any(get_origin(kind) is tuple for kind in kinds)
        for value in values if listed else values[:1]:
            _refuse_value(typed, kinds, value)


def _refuse_value(typed: str, kinds: Sequence[Any], value: str) -> None:
    inner = [one for kind in kinds for one in (get_args(kind)[:1] if get_origin(kind) is tuple else (kind,))]
    choices = [str(one) for kind in inner if get_origin(kind) is Literal for one in get_args(kind)]
    numbers = [kind for kind in inner if kind in NUMBERS]
    none = ["None"] if type(None) in inner else []
    if len(numbers) + bool(choices) + len(none) < len({str(kind) for kind in inner}) or value in choices + none:
        return  # it may be any text
    if any(_is(kind, value) for kind in numbers):
        return
    *others, last = [NUMBERS[kind] for kind in numbers] + choices
    raise InputError(f"{typed} must be {' or '.join([', '.join(others), last] if others else [last])}, got {value!r}")


def _is(kind: Any, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _with_values(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the words up to the next."""
    found: list[tuple[str, list[str]]] = []
    for word in arguments:
        if word.startswith("--") and word != "--":
            found.append((word, [word.split("=", 1)[1]] if "=" in word else []))
        elif found:
            found[-1][1].append(word)
    return iter(found)


def _hints(command: type) -> Iterator[tuple[str, Any]]:
    """Option -> type, of the fields of a command and of its groups."""
    hints = get_type_hints(command, include_extras=True)
    for field in fields(command):
        hint = _bare(hints[field.name])
        if is_dataclass(hint):
            yield from _hints(hint)  # type: ignore[arg-type]
        else:
            yield field.name, hint


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have."""
    bare = _bare(hint)
    if get_origin(bare) in (Union, UnionType):
        return tuple(kind for one in get_args(bare) for kind in _kinds(one))
    return (bare,)


@contextmanager
def as_typed(words: Mapping[str, str]) -> Iterator[None]:
    """Around a command: an error about one of its options begins with the option as it was typed.

    Raises:
        InputError: what was raised within, with ``--inner-lr`` in place of ``inner_lr``.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        found = re.match(r"(?:unknown )?(\w+)(?=\[| (?:must|is|are|needs|has|can't|lies|'))", text)
        if found and found[1] in words:
            error.args = (f"{text[: found.start(1)]}{words[found[1]]}{text[found.end(1) :]}", *error.args[1:])
        raise
