"""metaprox reproduce: the experiments of the documentation."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from metaprox.errors import InputError, MetaproxError


@dataclass(frozen=True)
class Reproduce:
    """Run an experiment of the documentation again: raw numbers, a figure, and checks against what is expected.

    Without a name, list the experiments.

    Example: metaprox reproduce bias --quick --out results
    """

    name: tyro.conf.Positional[str] = ""
    """Experiment, or all, or one of your own, package.module:EXPERIMENT."""
    list: bool = False
    """List the experiments and what they show."""
    quick: bool = False
    """Small sizes: all in about ten minutes on two cores."""
    out: Path = Path("reproduced")
    """Folder for the results; each experiment has one of its own in it."""
    seed: int = 0
    """Seed of whatever is random."""

    def run(self, console: Console) -> None:
        """Print pass or fail for each check; status 1 if one failed."""
        from metaprox.experiments import experiment_of, experiments, has_results, judge, reproduce, write_summary

        if not self.name and self != Reproduce(list=self.list):
            raise InputError(f"name an experiment, or all: {', '.join(experiments())}")
        if self.list or not self.name:
            for name, experiment in experiments().items():
                console.print(f"{name:22} {experiment.claim}", highlight=False, soft_wrap=True)
            return
        outcomes = []
        chosen = list(experiments().values()) if self.name == "all" else [experiment_of(self.name)]
        for experiment in chosen:
            outcome = reproduce(experiment, self.out, "quick" if self.quick else "full", self.seed)
            outcomes.append(outcome)
            for check in outcome.checks:
                print(f"{experiment.name}: {check}", flush=True)
        known = {one.name: one for one in (*experiments().values(), *chosen)}
        there = [judge(other, self.out) for other in known.values() if has_results(other, self.out)]
        print(f"report of all results in {self.out}: {write_summary(there, self.out)}")
        failed = [outcome.experiment.name for outcome in outcomes if not outcome.passed]
        if failed:
            raise MetaproxError(f"checks failed in: {', '.join(failed)}")
