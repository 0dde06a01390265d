"""The command line: metaprox train, resume, check, evaluate, compare, recount, reproduce; a file for each."""

import sys
from collections.abc import Callable, Sequence

from metaprox.errors import InputError, MetaproxError, needs_extra

with needs_extra("the command line"):
    import tyro
    from rich.console import Console

    from metaprox.cli.check import Check
    from metaprox.cli.compare import Compare, Recount
    from metaprox.cli.evaluate import Evaluate
    from metaprox.cli.reproduce import Reproduce
    from metaprox.cli.train import Resume, Train

Command = Train | Resume | Check | Evaluate | Compare | Recount | Reproduce
COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train,
    "resume": Resume,
    "check": Check,
    "evaluate": Evaluate,
    "compare": Compare,
    "recount": Recount,
    "reproduce": Reproduce,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. An error of metaprox ends it with one message and status 1, or 2 for bad input."""
    try:
        parse(arguments).run(Console())
    except MetaproxError as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"metaprox: error: {error}{notes}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def parse(arguments: Sequence[str] | None) -> Command:
    """The command that the arguments (of this process, if None) ask for."""
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="metaprox",
        description="Meta-learn the parameters of PyTorch models with first derivatives only (FO-B-MAML).",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
