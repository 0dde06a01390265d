"""What is searched: an axis for each setting, on a log scale or by choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from metaprox import checks
from metaprox.errors import InputError
from metaprox.training import Settings
from metaprox.training.options import Option

DECADE = 10.0  # an axis that is not given reaches from the default over this to the default times this
SEARCHED = ("inner_lr", "lam", "lr")
DIGITS = 3  # of a number that is drawn
HELP = "NAME=LOW:HIGH (log scale) or NAME=A,B,C"


@dataclass(frozen=True)
class Axis:
    """A setting that is searched: between two ``bounds`` on a log scale, or one of ``choices``.

    whole: whether it is an integer.
    """

    name: str
    bounds: tuple[float, float] | None = None
    choices: tuple[Any, ...] = ()
    whole: bool = False

    def __post_init__(self) -> None:
        if self.bounds is None:
            if len(set(self.choices)) < len(self.choices) or not self.choices:
                raise InputError(f"{self.name} must have values to choose from, each once, got {list(self.choices)}")
            return
        low, high = (checks.positive(f"each bound of {self.name}, on a log scale,", one) for one in self.bounds)
        if not low < high:
            raise InputError(f"the bounds of {self.name} must be LOW:HIGH with LOW < HIGH, got {low:g}:{high:g}")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that can be drawn: the bounds, or all choices."""
        return self.choices or self.bounds or ()

    def setting(self, value: Any) -> Any:
        """The value that a run gets for one that was drawn: of a number, so many digits as matter."""
        return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and self.bounds else value

    def __str__(self) -> str:
        if self.bounds is None:
            return f"{self.name}={','.join(map(_written, self.choices))}"
        return f"{self.name}={self.bounds[0]:g}:{self.bounds[1]:g}"


def axes_of(settings: Settings, given: Sequence[str] = ()) -> tuple[Axis, ...]:
    """Returns what is searched of a run with these settings.

    inner step, lam and outer step, a decade down and up from their defaults, and the inner steps: half the default, the
    default, or twice. A setting that is given is not searched, and ``given`` axes, as ``HELP`` says, take the place of
    these or come to them.

    Raises:
        InputError: an axis is not written so, or its setting is given as well, or there is none of its name.
    """
    own = [_parsed(text, settings) for text in given]
    names = [axis.name for axis in own]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--space has {', '.join(twice)} more than once: give each setting one axis")
    found = {axis.name: axis for axis in _usual(settings) if axis.name not in settings.given}
    found |= {axis.name: axis for axis in own}
    if not found:
        raise InputError(f"nothing is left to search: leave out some of the settings given, or give --space {HELP}")
    return tuple(found.values())


def _usual(settings: Settings) -> list[Axis]:
    defaults = settings.defaults()
    found = [
        Axis(name, bounds=(defaults[name] / DECADE, defaults[name] * DECADE))
        for name in SEARCHED
        if defaults.get(name)  # lam = 0 has no scale
    ]
    steps = defaults.get("steps")
    halves = dict.fromkeys((max(1, steps // 2), steps, 2 * steps)) if steps else {}
    return [*found, *([Axis("steps", choices=tuple(halves), whole=True)] if halves else [])]


def _parsed(text: str, settings: Settings) -> Axis:
    """An axis as a person writes it."""
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not name or not values:
        raise InputError(f"--space {text!r} must be {HELP}")
    known = settings.options()
    if name not in known:
        raise InputError(f"--space {text!r}: there is no setting {name!r} here; there are: {', '.join(known)}")
    if name in settings.given:
        raise InputError(f"--space {text!r}: {name}={settings.given[name]!r} is given, and so not searched")
    option = known[name]
    if option.group not in ("method", "outer step", "data"):
        raise InputError(f"--space {text!r}: {name} is a setting of the run, the same for all that are compared")
    whole = int in _kinds(option.hint) and float not in _kinds(option.hint)
    try:
        if ":" in values:
            low, high = (int(one) if whole else float(one) for one in values.split(":"))
            return Axis(name, (low, high), whole=whole)
        return Axis(name, choices=tuple(_value(one.strip(), option) for one in values.split(",")), whole=whole)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--space {text!r} must be {HELP}: {error}") from error


def _value(word: str, option: Option) -> Any:
    """A choice as the option has it. Raises ValueError where it can't be."""
    kinds = _kinds(option.hint)
    if word.lower() == "none" and NoneType in kinds:
        return None
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if int in kinds and float not in kinds and str not in kinds:
        return int(word)
    if float in kinds:
        number = float(word)
        if not math.isfinite(number):
            raise ValueError(f"{word} is not finite")
        return number
    if str in kinds or any(get_origin(kind) is Literal for kind in kinds):
        return word
    raise ValueError(f"{option.name} has no values that are single words or numbers")


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for one in get_args(hint) for kind in _kinds(one))
    return (hint,)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def shown(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name} {_written(value)}" for name, value in settings.items())
