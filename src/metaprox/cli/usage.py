"""What ``metaprox --help`` says, and what is said of a command that there is not."""

import difflib
import inspect
import shutil
import textwrap
from collections.abc import Iterable, Mapping

from metaprox.errors import InputError

ABOUT = "Meta-learn the parameters of PyTorch models with first derivatives only (FO-B-MAML)."


def overview(groups: Mapping[str, Mapping[str, type]]) -> str:
    """Every command with the first line of its docstring, by what it is for."""
    lines = ["usage: metaprox COMMAND ...", "", ABOUT]
    for group, commands in groups.items():
        lines += ["", f"{group}:", *(_wrapped(name, first_line(command)) for name, command in commands.items())]
    return "\n".join([*lines, "", "metaprox COMMAND --help says more, with an example."])


def _wrapped(name: str, text: str) -> str:
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, initial_indent=f"  {name:10} ", subsequent_indent=" " * 13)


def first_line(command: type) -> str:
    """What a command does."""
    return inspect.getdoc(command).split("\n")[0]  # type: ignore[union-attr]


def example(command: type) -> str:
    """The last line of a command's docstring, "Example: ...", as it stands."""
    return inspect.getdoc(command).split("\n")[-1]  # type: ignore[union-attr]


def unknown(kind: str, word: str, known: Iterable[str], help_of: str) -> InputError:
    """That there is no command or option ``word``: what it may have been meant to be, and where all of them are."""
    close = difflib.get_close_matches(word, list(known), n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return InputError(f"unknown {kind} {word}; {meant}{help_of} lists them")
