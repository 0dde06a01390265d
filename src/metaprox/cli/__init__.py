"""The command line: metaprox train, resume, tune, evaluate, adapt and so on; a file for each command."""

import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import metaprox
from metaprox.errors import InputError, needs_extra

with needs_extra("the command line"):
    import tyro
    from rich.console import Console

    from metaprox.cli.adapt import Adapt, Predict
    from metaprox.cli.check import Check, CheckRun
    from metaprox.cli.compare import Compare, Recount
    from metaprox.cli.ending import ending_in_one_line
    from metaprox.cli.env import Env
    from metaprox.cli.evaluate import Evaluate
    from metaprox.cli.options import is_family, with_options
    from metaprox.cli.reads import with_columns
    from metaprox.cli.report import Report
    from metaprox.cli.reproduce import Reproduce
    from metaprox.cli.train import Resume, Train
    from metaprox.cli.tune import Tune
    from metaprox.cli.usage import example, first_line, overview, unknown
    from metaprox.cli.words import HELP, as_typed, given, refuse
    from metaprox.comparison.plan import NOT_SHARED
    from metaprox.distributed.start import several
    from metaprox.tasks import families
    from metaprox.tuning import OF_THE_RUNGS

OF_A_FAMILY: dict[str, type] = {"train": Train, "tune": Tune, "check": Check, "compare": Compare}
OF_A_FOLDER: dict[str, type] = {"evaluate": Evaluate, "adapt": Adapt, "predict": Predict}
OTHERS: dict[str, type] = {
    "resume": Resume,
    "report": Report,
    "recount": Recount,
    "reproduce": Reproduce,
    "env": Env,
}
COMMANDS = OF_A_FAMILY | OF_A_FOLDER | OTHERS
GROUPS = {
    "A run": ("train", "resume", "evaluate", "report", "check", "tune"),
    "What it has learned, put to use": ("adapt", "predict"),
    "Methods against each other": ("compare", "recount"),
    "metaprox itself": ("reproduce", "env"),
}
# Options that a command has in another form, and defaults of its own.
WITHOUT: dict[str, Mapping[str, str]] = {"compare": NOT_SHARED, "tune": OF_THE_RUNGS}
SHOWN: dict[str, dict[str, Any]] = {"compare": {"eval_split": "test"}}


class Command(Protocol):
    """What the arguments ask for."""

    def run(self, console: Console) -> None:
        """Do it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What can't be done ends it with a message and status 1, 2 for bad input; Ctrl-C, 130."""
    shown, warnings.formatwarning = warnings.formatwarning, _warning
    own, words = sys.argv, sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [own[0] if arguments is None else "metaprox", *words]  # as runs keep it
    sys.path.insert(0, "")  # families, methods and solvers of one's own: package.module:Class of the current folder
    try:
        with ending_in_one_line(), as_typed(given(words)):
            command = parse(words)
            if several() and not getattr(command, "in_processes", False):
                raise InputError(
                    "this is one of several processes, which train and resume alone are for: start one process"
                )
            command.run(Console(markup=False, emoji=False))
    finally:
        sys.path.remove("")
        sys.argv = own
        warnings.formatwarning = shown


def _warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    """A warning as the command line shows it."""
    return f"metaprox: warning: {message}\n"


def parse(arguments: Sequence[str]) -> Command:
    """Returns the command that the arguments ask for; --help and --version print, and end the process.

    Raises:
        InputError: they name no command, lack a family, or name a part or an option that isn't.
    """
    name, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if name in HELP:
        print(overview({group: {one: COMMANDS[one] for one in those} for group, those in GROUPS.items()}))
        sys.exit(0)
    if name == "--version":
        print(f"metaprox {metaprox.__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS, "metaprox --help") if name else _no_command()
    if name in OF_A_FAMILY and rest and is_family(rest[0]):
        full = not any(word in HELP for word in rest)
        rest = ["--help" if word == "--help-all" else word for word in rest]
        command = with_options(OF_A_FAMILY[name], rest, WITHOUT.get(name, {}), full, **SHOWN.get(name, {}))
        return _parsed(command, f"{name} {rest[0]}", rest[1:], full)
    if name == "check" and rest and not rest[0].startswith("-"):
        _refuse_settings(rest)
        return _parsed(CheckRun, name, rest)
    if name in OF_A_FAMILY:
        _ask_for_a_family(name, rest)
    if name in OF_A_FOLDER:
        folder = next((word for word in rest if not word.startswith("-")), "")
        return _parsed(with_columns(OF_A_FOLDER[name], folder), name, rest)
    return _parsed(OTHERS[name], name, rest)


def _no_command() -> InputError:
    return InputError(f"metaprox needs a command: {', '.join(COMMANDS)}; metaprox --help says what each does")


def _parsed(command: type, called: str, arguments: Sequence[str], full: bool | None = None) -> Command:
    """``full``: whether the help has all options; None for the commands whose help always does."""
    refuse(command, called, arguments)
    about = inspect.getdoc(command) or ""
    if full is False:
        about += f"\n\nThis is in short: metaprox {called} --help-all has all options, and more on each."
    markers = (tyro.conf.FlagCreatePairsOff,) if full is None else ()
    parsed: Command = tyro.cli(command, prog=f"metaprox {called}", description=about, args=arguments, config=markers)
    return parsed


def _refuse_settings(words: Sequence[str]) -> None:
    """Raise InputError where there are settings beside a run folder."""
    odd = [word for word in words[1:] if word.startswith("--") and word.split("=")[0] not in ("--ids", "--help")]
    if odd:
        raise InputError(
            f"{words[0]} is no family of tasks ({', '.join(families())}), and a run folder has settings of its own: "
            f"give a run folder or a family with settings, not both; {odd[0]} is a setting"
        )


def _ask_for_a_family(name: str, rest: Sequence[str]) -> None:
    """Say how the command is used, and which families there are; ends the process."""
    known = {kind: (family.__doc__ or "").split("\n")[0].replace("``", "") for kind, family in families().items()}
    lines = [
        f"usage: metaprox {name} FAMILY [OPTIONS]",
        "",
        first_line(OF_A_FAMILY[name]),
        "",
        "families of tasks:",
        *(f"  {kind:12} {text}" for kind, text in known.items()),
        "  or one of your own, package.module:Class, a subclass of metaprox.tasks.Family",
        "",
        f"metaprox {name} {next(iter(known))} --help shows the options there are with it.",
        example(OF_A_FAMILY[name]),
    ]
    asked = any(word in ("-h", "--help") for word in rest)
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    if not asked:
        got = f", got {rest[0]!r}" if rest else ""
        raise InputError(f"metaprox {name} needs a family of tasks first: {', '.join(known)}{got}")
    sys.exit(0)
