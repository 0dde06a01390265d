"""``python -m metaprox``, and ``torchrun -m metaprox``: the command line."""

from metaprox.cli import main

main()
