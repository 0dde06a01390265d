"""Meta-training runs: their parts, the trainer, checkpoints, folders. Needs what the command line does."""

from metaprox.errors import needs_extra

with needs_extra("metaprox.training"):
    from metaprox.training.callbacks import Callback, TensorBoard
    from metaprox.training.checking import check_run
    from metaprox.training.composition import Composition
    from metaprox.training.doors import (
        composed,
        composition_of,
        configuration_of,
        latest,
        resume,
        train,
        trainer_of,
    )
    from metaprox.training.folder import RunFolder
    from metaprox.training.outer import Outer
    from metaprox.training.pace import Pace
    from metaprox.training.presets import PRESETS, preset, read_variants
    from metaprox.training.records import Progress
    from metaprox.training.serving import adapt_run, items_of, learner_of, predictions
    from metaprox.training.settings import Settings
    from metaprox.training.stopping import Stopped
    from metaprox.training.stream import Stream
    from metaprox.training.trainer import Trainer

__all__ = [
    "PRESETS",
    "Callback",
    "Composition",
    "Outer",
    "Pace",
    "Progress",
    "RunFolder",
    "Settings",
    "Stopped",
    "Stream",
    "TensorBoard",
    "Trainer",
    "adapt_run",
    "check_run",
    "composed",
    "composition_of",
    "configuration_of",
    "items_of",
    "latest",
    "learner_of",
    "predictions",
    "preset",
    "read_variants",
    "resume",
    "train",
    "trainer_of",
]
