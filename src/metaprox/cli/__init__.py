"""The command line: metaprox train, resume, tune, evaluate, adapt and so on; a file for each command."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from metaprox.errors import InputError, needs_extra

with needs_extra("the command line"):
    import tyro
    from rich.console import Console

    from metaprox.cli.adapt import Adapt, Predict
    from metaprox.cli.check import Check, CheckRun
    from metaprox.cli.compare import Compare, Recount
    from metaprox.cli.ending import ending_in_one_line
    from metaprox.cli.evaluate import Evaluate
    from metaprox.cli.options import is_family, with_options
    from metaprox.cli.reads import with_columns
    from metaprox.cli.report import Report
    from metaprox.cli.reproduce import Reproduce
    from metaprox.cli.train import Resume, Train
    from metaprox.cli.tune import Tune
    from metaprox.comparison.plan import NOT_SHARED
    from metaprox.distributed.start import several
    from metaprox.tasks import families
    from metaprox.tuning import OF_THE_RUNGS

OF_A_FAMILY: dict[str, type] = {"train": Train, "tune": Tune, "check": Check, "compare": Compare}
OTHERS: dict[str, type] = {"resume": Resume, "report": Report, "recount": Recount, "reproduce": Reproduce}
OF_A_FOLDER: dict[str, type] = {"evaluate": Evaluate, "adapt": Adapt, "predict": Predict}
ORDER = (
    *("train", "resume", "tune", "check", "evaluate", "adapt", "predict"),
    *("compare", "report", "recount", "reproduce"),
)
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
    own, given = sys.argv, sys.argv[1:] if arguments is None else list(arguments)
    sys.argv = [own[0] if arguments is None else "metaprox", *given]  # as runs keep it
    sys.path.insert(0, "")  # families, methods and solvers of one's own: package.module:Class of the current folder
    try:
        with ending_in_one_line():
            command = parse(given)
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
    """The command that the arguments ask for. Raises InputError where they lack a family, or name a part that isn't."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", arguments)
    if name in OF_A_FAMILY and rest and is_family(rest[0]):
        command = with_options(OF_A_FAMILY[name], rest, WITHOUT.get(name, {}), **SHOWN.get(name, {}))
        return _parsed(command, f"{name} {rest[0]}", rest[1:])
    if name == "check" and rest and not rest[0].startswith("-"):
        _refuse_settings(rest)
        return _parsed(CheckRun, name, rest)
    if name in OF_A_FAMILY:
        _ask_for_a_family(name, rest)
    if name in OF_A_FOLDER and rest:
        folder = next((word for word in rest if not word.startswith("-")), "")
        return _parsed(with_columns(OF_A_FOLDER[name], folder), name, rest, tyro.conf.FlagCreatePairsOff)
    if name in OTHERS:
        return _parsed(OTHERS[name], name, rest, tyro.conf.FlagCreatePairsOff)
    commands: dict[str, Callable[..., Command]] = {key: (OF_A_FAMILY | OTHERS | OF_A_FOLDER)[key] for key in ORDER}
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="metaprox",
        description="Meta-learn the parameters of PyTorch models with first derivatives only (FO-B-MAML).",
        args=arguments,
    )


def _parsed(command: type, called: str, arguments: Sequence[str], *markers: Any) -> Command:
    parsed: Command = tyro.cli(command, prog=f"metaprox {called}", args=arguments, config=markers)
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
        *((OF_A_FAMILY[name].__doc__ or "").split("\n")[0:1]),
        "",
        "families of tasks:",
        *(f"  {kind:12} {text}" for kind, text in known.items()),
        "  or one of your own, package.module:Class, a subclass of metaprox.tasks.Family",
        "",
        f"metaprox {name} {next(iter(known))} --help shows the options there are with it.",
    ]
    asked = any(word in ("-h", "--help") for word in rest)
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    if not asked:
        got = f", got {rest[0]!r}" if rest else ""
        raise InputError(f"metaprox {name} needs a family of tasks first: {', '.join(known)}{got}")
    sys.exit(0)
