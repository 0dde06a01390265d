"""Meta-training runs: configuration, loop, checkpoints, figures, report. Needs the extra ``metaprox[experiments]``."""

from metaprox.training.checking import check_run, refuse_wrong
from metaprox.training.comparison import Budget, Plan, compare
from metaprox.training.comparison.report import COLUMNS, IN_A_TERMINAL, comparison_table, legend, write_comparison
from metaprox.training.comparison.results import read as read_comparison
from metaprox.training.comparison.results import recount
from metaprox.training.config import TrainConfig
from metaprox.training.folder import RunFolder
from metaprox.training.loop import Progress, load_weights, resume, train
from metaprox.training.methods import preset, read_variants
from metaprox.training.report import write_report
from metaprox.training.setup import Setup, build

__all__ = [
    "COLUMNS",
    "IN_A_TERMINAL",
    "Budget",
    "Plan",
    "Progress",
    "RunFolder",
    "Setup",
    "TrainConfig",
    "build",
    "check_run",
    "compare",
    "comparison_table",
    "legend",
    "load_weights",
    "preset",
    "read_comparison",
    "read_variants",
    "recount",
    "refuse_wrong",
    "resume",
    "train",
    "write_comparison",
    "write_report",
]
