"""A campaign of faults against runs: kills, signals, damaged files, full disks, hostile files: ``python tests/faults``.

Each trial is a small run in a process of its own, to which something is done. It is survived where the run, perhaps
gone on with or after the remedy that the message names, ends bit for bit as the undisturbed one; or, where nothing can
be gone on with, where it ended in one line that names the file. Everything is drawn from one seed.
"""
