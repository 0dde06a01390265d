"""``mp.check`` on the configuration of a run."""

from collections.abc import Sequence
from pathlib import Path

from metaprox.checking import Check, check
from metaprox.errors import InputError, MetaproxError
from metaprox.training import checkpoint
from metaprox.training.config import TrainConfig
from metaprox.training.folder import RunFolder
from metaprox.training.loop import load_weights
from metaprox.training.setup import Setup, build

# What findings name, on the command line.
OPTIONS = (
    "inner step --inner-lr, mp.AdaptiveGradientDescent --solver adaptive, steps --steps, lam --lam, nu --nu, "
    "perturb='center' --perturb center, backend --backend"
)


def check_run(config: TrainConfig, folder: Path | None, ids: Sequence[int]) -> Check:
    """The verdict on the settings ``config`` before training, or on those of a run with its latest weights.

    ``ids``: the training tasks that are looked at. A run need not have finished: its last checkpoint will do.

    Raises:
        InputError: a setting is wrong, or there are both settings and a run. RunFolderError: there is no run.
    """
    if folder is None:
        setup = build(config)
    elif config == TrainConfig():
        setup = _latest(RunFolder.open(folder))
    else:
        raise InputError(f"{folder} has settings of its own: give a run folder or settings, not both")
    return check(setup.problem, setup.batch("train", ids), setup.estimator, count=len(ids))


def refuse_wrong(verdict: Check) -> None:
    """Raise MetaproxError, naming options of the command line, where something is wrong."""
    if not verdict.ok:
        names = ", ".join(finding.name for finding in verdict.wrong)
        raise MetaproxError(f"wrong: {names}. The options are: {OPTIONS}")


def _latest(folder: RunFolder) -> Setup:
    setup = build(folder.config())
    if folder.weights.exists():
        load_weights(folder, setup)
    else:
        checkpoint.load_weights(folder, setup)
    return setup
