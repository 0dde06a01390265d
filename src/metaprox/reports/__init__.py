"""Runs and comparisons for people: figures, tables, pages. Needs what the command line does."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.reports"):
    from metaprox.reports.comparison import COLUMNS, IN_A_TERMINAL, comparison_table, legend, write_comparison
    from metaprox.reports.run import final_table, show, write_report

__all__ = [
    "COLUMNS",
    "IN_A_TERMINAL",
    "comparison_table",
    "final_table",
    "legend",
    "show",
    "write_comparison",
    "write_report",
]
