"""All rows: a fault, how often it is tried, and the trial; which returns what is wrong, or None."""

import errno
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from faults import damage, kept
from faults.damage import Folders
from faults.stops import Undisturbed, stopped, together

BOTH = ("config.json", "data.json", "starts.jsonl", "checksums.json")


@dataclass
class Row:
    """A fault; ``trial(rng)`` returns (how many times it was tried, what is wrong or None)."""

    fault: str
    times: int
    trial: Callable[[random.Random], tuple[int, str | None]]
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    def run(self, seed: int) -> None:
        """At least ``times`` of it."""
        rng = random.Random(f"{seed} {self.fault}")
        while self.tried < self.times:
            count, wrong = self.trial(rng)
            self.tried += count
            self.lost += [wrong] if wrong else []
            if len(self.lost) > 5:
                return


def _once(trial, *given):
    return lambda rng: (1, trial(*given, rng))


def rows(place: Path, share: float = 1.0) -> list[Row]:
    """``share``: of the trials of ``make faults``."""
    undisturbed = Undisturbed(place)
    folders = Folders(place, undisturbed)
    names = iter(range(10**6))

    def stops(kind, numbers, rng):
        count, wrong = stopped(kind, numbers, rng, place / f"stopped-{next(names)}", undisturbed)
        return max(count, 1), wrong

    def crowd(kind, rng):
        return 3, together(kind, 3, rng, place / f"crowd-{next(names)}", undisturbed)

    kills, asks = [signal.SIGKILL], [signal.SIGTERM, signal.SIGINT]
    often = (("settings", 90), ("script", 90), ("data", 20))
    found = [Row(f"SIGKILL, {kind}", n, partial(stops, kind, kills)) for kind, n in often]
    found += [Row("SIGKILL, comparison", 40, partial(stops, "comparison", kills))]
    found += [Row(f"SIGTERM and SIGINT, {kind}", 30, partial(stops, kind, asks)) for kind in ("settings", "script")]
    found += [Row("SIGTERM and SIGINT, comparison", 15, partial(stops, "comparison", asks))]
    found += [Row(f"three at once, {kind}", 9, partial(crowd, kind)) for kind in undisturbed.seconds]
    every = {
        "finished": [*BOTH, "weights.safetensors", "test_tasks.json", "metrics.jsonl"],
        "half": [*BOTH, "checkpoint-*", "metrics.jsonl"],
    }
    for which, files in every.items():
        for name in files:
            found.append(Row(f"a bit of {name}, {which} run", 20, _once(damage.flipped, folders, which, name)))
            found.append(Row(f"{name} cut or filled, {which} run", 12, _once(damage.cut, folders, which, name)))
            if (name, which) != ("metrics.jsonl", "half"):  # without which a run goes on, once it is deleted
                found.append(Row(f"{name} lost, {which} run", 2, _once(damage.lost, folders, which, name)))
    for name in ("report.html", "figures/*"):
        found.append(Row(f"{name} damaged, lost or a folder", 10, _once(kept.page, folders, name)))
    for kind, files in kept.FILES.items():
        for name in files:
            found.append(Row(f"{name} damaged or lost, {kind}", 20, _once(kept.kept, folders, kind, name)))
    found += [Row("hostile checkpoints with right checksums", 60, _once(damage.hostile, folders))]
    others = ["checkpoint", "weights.safetensors", "edited config.json", "edited config.json without checksums"]
    found += [Row(f"of another run: {name}", 2, _once(damage.another, folders, name)) for name in others]
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES):
        name = errno.errorcode[number]
        found.append(Row(f"the disk refuses with {name}", 12, _once(damage.refusing_disk, folders, number)))
    found += [Row("folder removed during a run", 4, _once(damage.removed, folders))]
    found += [Row("standard output on a full disk", 1, _once(damage.full_output, folders))]
    odd = [Row(f"path {name[:20]!r}", 1, _once(damage.odd_path, folders, name)) for name in damage.ODD_NAMES]
    odd += [Row(f"label {name[:20]!r}", 1, _once(damage.odd_label, folders, name)) for name in damage.ODD_LABELS]
    for row in found:
        row.times = max(1, round(share * row.times))
    return found + odd


def table(done: list[Row]) -> str:
    """In Markdown."""
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    shown = [(row.fault.replace("|", "\\|"), row.tried, len(row.lost)) for row in done]
    shown.append(("all", sum(row.tried for row in done), sum(len(row.lost) for row in done)))
    return "\n".join([*lines, *(f"| {name} | {n} | {n - lost} | {lost} |" for name, n, lost in shown)]) + "\n"
