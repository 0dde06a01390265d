"""``python -m metaprox.cli``: the command line, where its script is not on the path."""

from metaprox.cli import main

main()
