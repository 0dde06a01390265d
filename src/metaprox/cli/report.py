"""metaprox report: the page of a run anew, or of several runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from metaprox import comparison, reports, training
from metaprox.errors import InputError, RunFolderError

SIDE_BY_SIDE = Path("metaprox-report.html")


@dataclass(frozen=True)
class Report:
    """Write the page of a run anew, or of several runs side by side; those that have not finished as they stand.

    Side by side: settings that differ, training and validation against meta-steps, gradient evaluations and time,
    results with intervals, health, where and when. Nothing runs.

    Example: metaprox report runs/first runs/second
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders. That of a comparison stands for its runs; alone, and finished, it gets its own page anew."""
    out: Path | None = None
    """Page to write. Default: report.html in the folder of the run or comparison; side by side metaprox-report.html
    in the current folder."""

    def run(self, console: Console) -> None:
        """Write the page, and print where it is and how far runs are that have not finished."""
        if not self.runs:
            raise InputError("give the folder of a run, or of several: metaprox report RUN [RUN ...]")
        [first, *others] = self.runs
        if not others and (first / "comparison.json").is_file():
            page = reports.write_comparison(comparison.read(first), first, self.out)
        else:
            page = self._of_runs([path for given in self.runs for path in _runs_of(given)])
        console.print(f"report: {page}", soft_wrap=True, highlight=False)

    def _of_runs(self, paths: Sequence[Path]) -> Path:
        if len(paths) == 1:
            return reports.write_report(training.RunFolder.open(paths[0]), out=self.out)
        return reports.write_side_by_side(paths, self.out or SIDE_BY_SIDE)


def _runs_of(path: Path) -> list[Path]:
    """A run, or those of a comparison. Raises RunFolderError where it is neither; names the runs that it holds."""
    if (path / "config.json").is_file() or not path.is_dir():
        return [path]
    if found := sorted(one.parent for one in path.glob("*/seed_*/config.json")):
        return found
    inside = sorted(one.parent for one in path.glob("*/config.json"))
    some = ", ".join(map(str, inside[:3])) + (" and others" if len(inside) > 3 else "")
    held = f"; it holds runs, which can be given: {some}" if inside else ""
    raise RunFolderError(f"{path} is not a run folder, nor one of a comparison: it has no config.json{held}")
