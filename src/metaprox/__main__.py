"""The program ``metaprox``, ``python -m metaprox``, and ``torchrun -m metaprox``: the command line."""

import sys

from metaprox.errors import MissingExtraError


def main() -> None:
    """Run the command line; where a package that it is made of is missing, say so in one line, with status 1."""
    try:
        from metaprox.cli import main as command_line
    except MissingExtraError as error:
        sys.exit(f"metaprox: error: {error}")
    command_line()


if __name__ == "__main__":
    main()
