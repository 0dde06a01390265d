"""Meta-training runs: configuration, loop, checkpoints, figures, report. Needs the extra ``metaprox[experiments]``."""

from metaprox.training.config import TrainConfig
from metaprox.training.folder import RunFolder
from metaprox.training.loop import Progress, load_weights, resume, train
from metaprox.training.report import write_report
from metaprox.training.setup import Setup, build

__all__ = ["Progress", "RunFolder", "Setup", "TrainConfig", "build", "load_weights", "resume", "train", "write_report"]
