"""``mp.check`` on the settings of a run."""

from collections.abc import Sequence
from pathlib import Path

from metaprox.checking import Check, check
from metaprox.training.doors import latest
from metaprox.training.folder import RunFolder
from metaprox.training.settings import Settings


def check_run(run: Settings | Path, ids: Sequence[int]) -> Check:
    """Returns the verdict on settings before training, or on a run folder with its latest weights.

    ``ids``: the training tasks that are looked at. A run need not have finished: its last checkpoint will do.

    Raises:
        InputError: a setting is wrong. RunFolderError: there is no run.
    """
    trainer = run.composition().trainer() if isinstance(run, Settings) else latest(RunFolder.open(run))
    return check(trainer.evaluated or trainer.problem, trainer.batch("train", ids), trainer.estimator, count=len(ids))
