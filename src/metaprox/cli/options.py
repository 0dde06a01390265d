"""Options of a run on the command line: those of the family, method and other parts that are named, and no others."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro

from metaprox.errors import InputError
from metaprox.training import Settings
from metaprox.training.names import FAMILIES
from metaprox.training.options import CHOICES, GROUPS, Option
from metaprox.training.settings import owner

# What --help leaves to --help-all.
SELDOM = {"train_shots", "tol", "max_steps", "branch_steps", "branch_solver", "residual_correction", "start", "eps"}
SELDOM |= {"estimate_error", "estimate_truncation", "rtol", "inner_batch", "backend", "chunk_size", "on_nonfinite"}
SELDOM |= {"eval_split", "checkpoint_every", "keep_checkpoints", "keep_weights", "patience", "clip", "accumulate"}
SELDOM |= {"momentum", "offload", "validation_share", "test_share", "splits"}


@dataclass(frozen=True)
class WithSettings:
    """A command that takes a family of tasks and its settings; ``with_options`` gives it a field for each group."""

    def settings(self) -> Settings:
        """What was given."""
        values: dict[str, Any] = {}
        for group in GROUPS:
            values |= vars(getattr(self, _field(group)))
        return Settings(self.family, **{name: values[name] for name in self.given})  # type: ignore[attr-defined]


def is_family(word: str) -> bool:
    """Whether the word names a family, and not a folder."""
    return word in FAMILIES.names() or (":" in word and "/" not in word)


def with_options(
    command: type, arguments: Sequence[str], without: Mapping[str, str], full: bool = True, **shown: Any
) -> type:
    """Returns ``command`` with the options of what ``arguments`` name: a family first, then perhaps other parts.

    ``without``: options that it does not have, and what to do instead; ``full``: whether the help says all of each, or
    its first sentence; ``shown``: defaults of its own.

    Raises:
        InputError: an argument is an option of another part, or a part has one that the command has.
    """
    family, rest = arguments[0], arguments[1:]
    settings = Settings(family, **_choices(rest))
    options = {name: one for name, one in settings.options().items() if name not in without}
    own = {*command.__dataclass_fields__, "help"}  # type: ignore[attr-defined]
    negated = {f"no_{name}" for name, option in options.items() if option.hint is bool}
    if both := sorted((own | negated) & options.keys()):
        raise InputError(f"{options[both[0]].place} has the name of another option of the command: give it another")
    given = _given(rest, options)
    for name, word in given.items():
        if name in without:
            raise InputError(f"{word} can't be given here: {without[name]}")
        if name not in options and name not in own and (why := owner(name, settings.given)):
            raise InputError(f"{word} is a setting of {why}")
    defaults = settings.defaults() | shown
    groups: list[Any] = []
    without_prefix: Any = tyro.conf.OmitArgPrefixes
    for group in GROUPS:
        kind: Any = _group(group, options, defaults, full)
        hint: Any = Annotated[without_prefix[kind], tyro.conf.arg(name=group.replace(" ", "-"))]
        groups.append((_field(group), hint, field(default_factory=kind)))
    made = make_dataclass(command.__name__, groups, bases=(command,), frozen=True, kw_only=True)
    made.__doc__ = command.__doc__
    made.family, made.given = family, [name for name in given if name in options]  # type: ignore[attr-defined]
    return made


def _in_short(text: str) -> str:
    """The first sentence, and what stands in for a value that is not given."""
    first, *others = re.split(r"(?<=\.) (?=[A-Z\"])", text)
    return " ".join([first, *(one for one in others if one.startswith("Default"))])


def _field(group: str) -> str:
    return f"{group.replace(' ', '_')}_group"


def _choices(arguments: Sequence[str]) -> dict[str, str]:
    """The parts that the arguments name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in CHOICES.keys() - {"tasks"}:
        parser.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name)
    try:
        found, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:  # an option without its value, of which the real parser will tell
        return {}
    return {name: value for name, value in vars(found).items() if value is not None}


def _given(arguments: Sequence[str], options: Mapping[str, Option]) -> dict[str, str]:
    """Name -> word of the options that the arguments give, --no-residual-correction among them."""
    words = [word.split("=")[0] for word in arguments if word.startswith("--")]
    named = {word.removeprefix("--").replace("-", "_"): word for word in words}
    return {
        name if name in options or name.removeprefix("no_") not in options else name.removeprefix("no_"): word
        for name, word in named.items()
    }


def _group(group: str, options: Mapping[str, Option], defaults: Mapping[str, Any], full: bool) -> type:
    """The options of one group as a dataclass. In short, without ``full``, those that are seldom given are left out."""
    fields = []
    for name, option in options.items():
        if option.group != group or (not full and (name in SELDOM or option.part == "branch_solver")):
            continue
        hint, default = option.hint, None
        if hint is bool:
            default = bool(defaults.get(name))
        elif name in CHOICES:
            hint = str
        about = tyro.conf.arg(
            help=(option.help if full else _in_short(option.help)) or f"Setting {option.field} of the {option.part}.",
            metavar=None if hint is bool else _metavar(name, hint),
            help_behavior_hint=_shown(defaults.get(name)),
        )
        kind: Any = Annotated[hint if hint is bool else hint | None, about]
        fields.append((name, kind, field(default=default)))
    return make_dataclass(group.title().replace(" ", ""), fields, frozen=True)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"(default: {'on' if value else 'off'})"
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"(default: {text or 'none'})"


def _metavar(name: str, hint: Any) -> str:
    if name in CHOICES:
        return f"{{{','.join(CHOICES[name].names())},MODULE:CLASS}}"
    if get_origin(hint) in (Union, UnionType):
        return "|".join(dict.fromkeys(_metavar("", one) for one in get_args(hint) if one is not type(None)))
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, get_args(hint)))}}}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        one = _metavar("", kinds[0])
        return f"{one} [{one} ...]" if kinds[-1] is Ellipsis else " ".join(_metavar("", kind) for kind in kinds)
    return "PATH" if hint is Path else {int: "INT", float: "FLOAT"}.get(hint, "TEXT")
