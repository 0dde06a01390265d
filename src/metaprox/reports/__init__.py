"""Runs and comparisons for people: figures, tables, pages. Needs what the command line does."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.reports"):
    from metaprox.reports.comparison import COLUMNS, IN_A_TERMINAL, comparison_table, legend, write_comparison
    from metaprox.reports.run import final_table, show, write_report
    from metaprox.reports.side_by_side import write_side_by_side
    from metaprox.reports.view import RunView

__all__ = [
    "COLUMNS",
    "IN_A_TERMINAL",
    "RunView",
    "comparison_table",
    "final_table",
    "legend",
    "show",
    "write_comparison",
    "write_report",
    "write_side_by_side",
]
