"""One page with the figures and checks of all experiments that were run."""

from collections.abc import Sequence
from pathlib import Path

from metaprox.experiments.base import Outcome
from metaprox.reports.page import render
from metaprox.training import RunFolder, starts


def write_summary(outcomes: Sequence[Outcome], out: Path) -> Path:
    """Write ``out``/report.html: a section for each experiment, with pass or fail for each check."""
    sections = [
        {
            "name": outcome.experiment.name,
            "claim": outcome.experiment.claim,
            "size": outcome.size,
            "seeds": f"Seed {outcome.seed}",
            "starts": starts.read(RunFolder(outcome.folder).starts),
            "figures": outcome.shown,
            "checks": [
                {
                    "name": check.name,
                    "value": f"{check.value:.3g}",
                    "expected": f"{check.low:.3g} to {check.high:.3g}",
                    "passed": check.passed,
                }
                for check in outcome.checks
            ],
        }
        for outcome in outcomes
    ]
    failed = sum(not check.passed for outcome in outcomes for check in outcome.checks)
    return RunFolder(out).write_text("report.html", render("reproduction.html.jinja", sections=sections, failed=failed))
