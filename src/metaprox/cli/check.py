"""metaprox check: a verdict on settings or a run."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from metaprox.cli.options import WithSettings
from metaprox.errors import MetaproxError
from metaprox.training import Settings, check_run

# What findings name, on the command line.
OPTIONS = (
    "inner step --inner-lr, mp.AdaptiveGradientDescent --solver adaptive, steps --steps, lam --lam, nu --nu, "
    "perturb='center' --perturb center, backend --backend"
)


@dataclass(frozen=True, kw_only=True)
class Check(WithSettings):
    """Look for what is wrong with settings, on a few training tasks: losses, steps, solves, meta-gradient.

    With a run folder in place of the family: with the settings of the run, at its latest weights.

    Example: metaprox check sinusoid --inner-lr 0.05
    """

    ids: tuple[int, ...] = (0, 1, 2)
    """Training tasks that are looked at, by number."""

    def run(self, console: Console) -> None:
        """Print the verdict; status 1 where something is wrong."""
        _judge(self.settings(), self.ids)


@dataclass(frozen=True)
class CheckRun:
    """Look for what is wrong with a run, at its latest weights, on a few training tasks.

    Example: metaprox check runs/digits
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder."""
    ids: tuple[int, ...] = (0, 1, 2)
    """Training tasks that are looked at, by number."""

    def run(self, console: Console) -> None:
        """Print the verdict; status 1 where something is wrong."""
        _judge(self.run_folder, self.ids)


def _judge(run: Settings | Path, ids: tuple[int, ...]) -> None:
    verdict = check_run(run, ids)
    print(verdict)
    if not verdict.ok:
        names = ", ".join(finding.name for finding in verdict.wrong)
        raise MetaproxError(f"wrong: {names}. The options are: {OPTIONS}")
