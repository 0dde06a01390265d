"""The data of tasks: one task, batches of them, and data that does not fit at once."""
