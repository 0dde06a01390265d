"""A run on trial: trained to a rung, and judged there on validation tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from metaprox.comparison import gradient_evaluations, train_or_resume
from metaprox.errors import NonFiniteError, with_notes
from metaprox.losses.counts import Counts
from metaprox.training import Composition, Progress, RunFolder, whole

COUNTS = tuple(field.name for field in fields(Counts))
COST = ("meta_steps", "gradient_evaluations", "seconds")  # of what is judged


@dataclass(frozen=True)
class Judged:
    """Of a run after a rung: means over the validation tasks by name, and its cost so far.

    values: empty where it has diverged, for which ``failure`` is the reason.
    """

    values: Mapping[str, float]
    meta_steps: int
    gradient_evaluations: int
    seconds: float
    failure: str | None = None


class _ReachedError(Exception):
    """A candidate is at the end of its rung."""


def judged_after(run: Composition, path: Path, rung: int) -> Judged:
    """Returns what ``eval_tasks`` validation tasks say of a run after ``rung`` of its meta-steps.

    The run is begun in ``path``, or goes on from its last checkpoint there, under the schedule of the whole run, and
    stays there; ``rung`` is a multiple of ``eval_every`` and ``checkpoint_every``, or the end.
    """

    def stop(now: Progress) -> None:
        if now.step == rung < now.total:
            raise _ReachedError

    found = _found(path, rung)
    if found.values:
        return found
    try:
        train_or_resume(run.but(eval_split="validation", test_tasks=1).trainer(), path, stop)
    except _ReachedError:
        pass
    except NonFiniteError as error:
        return _found(path, -1, with_notes(error))
    return _found(path, rung)


def _found(path: Path, rung: int, failure: str | None = None) -> Judged:
    """What the run has logged: its cost so far, and the validation after ``rung`` meta-steps where it got there."""
    records: list[dict[str, Any]] = []
    if (path / "metrics.jsonl").exists():
        folder = RunFolder.open(path)
        whole.check(folder)
        records = folder.read_metrics()
    steps = [record for record in records if record["kind"] == "step"]
    counts = (Counts(**{name: record[name] for name in COUNTS}) for record in steps)
    judged = [record for record in records if record.get("split") == "validation" and record["step"] == rung]
    means = {name: one["mean"] for record in judged[-1:] for name, one in record.items() if isinstance(one, dict)}
    return Judged(
        means,
        len(steps),
        sum(map(gradient_evaluations, counts)),
        steps[-1]["seconds"] if steps else 0.0,
        failure,
    )
