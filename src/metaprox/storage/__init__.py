"""What is on disk: files that appear whole, are checked when they are read, and belong to one process at a time."""
