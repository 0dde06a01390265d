"""metaprox check: a verdict on a configuration or a run."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from metaprox import training


@dataclass(frozen=True)
class Check:
    """Look for what is wrong with a configuration, on a few training tasks: losses, steps, solves, meta-gradient."""

    run_folder: tyro.conf.Positional[Path | None] = None
    """Run folder, whose settings and latest weights are looked at. Without one: the settings given here, untrained."""
    ids: tuple[int, ...] = (0, 1, 2)
    """Training tasks that are looked at, by number."""
    config: tyro.conf.OmitArgPrefixes[training.TrainConfig] = field(default_factory=training.TrainConfig)

    def run(self, console: Console) -> None:
        """Print the verdict; status 1 where something is wrong."""
        verdict = training.check_run(self.config, self.run_folder, self.ids)
        print(verdict)
        training.refuse_wrong(verdict)
