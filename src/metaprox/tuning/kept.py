"""The files of a search: what it is, its trials as a table, and the best settings of each method."""

import csv
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from metaprox import checks
from metaprox.errors import InputError, RunFolderError
from metaprox.storage import checksums
from metaprox.storage.files import json_of, read_bytes, text_of
from metaprox.training import RunFolder, Settings, read_variants
from metaprox.tuning.search import Search

State = Literal["finished", "pruned", "diverged", "running"]
FILE, BEST, TRIALS = "search.json", "best.json", "trials.csv"


@dataclass(frozen=True)
class Trial:
    """What became of a candidate.

    value: of the measure, where it was judged last. meta_steps, gradient_evaluations and seconds: what it took.
    found: the settings that were drawn. reason: why it did not go on.
    """

    number: int
    state: State
    value: float | None = None
    meta_steps: int = 0
    gradient_evaluations: int = 0
    seconds: float = 0.0
    found: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """The trials of a search, and by what they were judged: "accuracy", or "loss", which is to be low."""

    search: Search
    measure: str
    trials: Sequence[Trial]

    def ranked(self) -> list[Trial]:
        """Those that were judged, the best first: those that ran furthest, and of these by the measure."""
        sign = 1 if self.measure == "loss" else -1
        judged = [one for one in self.trials if one.value is not None and one.state != "diverged"]
        return sorted(judged, key=lambda one: (-one.meta_steps, sign * (one.value or 0.0)))

    def best(self) -> Trial | None:
        """The best of those that finished."""
        return next((one for one in self.ranked() if one.state == "finished"), None)

    def settings(self, one: Trial) -> dict[str, Any]:
        """Of a method and its outer step, as ``metaprox compare --variants`` takes them."""
        options = self.search.settings.options()
        given = {
            name: value
            for name, value in self.search.settings.given.items()
            if name in options and options[name].group in ("method", "outer step")
        }
        return json.loads(json.dumps({"method": "fobmaml", **given, **one.found}, default=str))


def opened(out: Path, searches: Sequence[Search]) -> str:
    """Returns the own id of a folder ``out``, in which it is kept what the searches are, beside those that it has.

    Raises:
        RunFolderError: it holds another search of the same name, or something else.
    """
    kept: dict[str, Any] = _read(out) if (out / FILE).exists() else {"id": uuid.uuid4().hex, "searches": {}}
    if not kept["searches"] and out.exists() and any(out.iterdir()):
        raise RunFolderError(f"{out} is not empty, and no folder of a search: choose another --out")
    for one in searches:
        entry = {"given": json.loads(json.dumps(one.settings.given, default=str)), **described(one)}
        there = kept["searches"].setdefault(one.label, entry)
        if odd := differences(there, entry):
            raise RunFolderError(f"{out} is another search for {one.label} ({'; '.join(odd)}): choose another --out")
    RunFolder(out).made().write_text(FILE, json.dumps(checksums.sealed(kept), indent=1) + "\n")
    return str(kept["id"])


def described(search: Search) -> dict[str, Any]:
    """As JSON gives it back: searches of which this is equal are one."""
    return dict(json.loads(json.dumps(search.described())))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two searches differ in."""
    one, other = _flat(there), _flat(here)
    names = [name for name in {**other, **one} if one.get(name) != other.get(name) and not name.startswith("given")]
    return [f"{name}: {one.get(name)} there, {other.get(name)} here" for name in names]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def write(out: Path, found: Sequence[Found]) -> None:
    """The table of all trials, and the best settings by method."""
    folder = RunFolder(out)
    folder.write_text(TRIALS, _table(found))
    best = {one.search.label: one.settings(trial) for one in found if (trial := one.best()) is not None}
    if best:
        there = read_variants(out / BEST) if (out / BEST).exists() else {}
        folder.write_text(BEST, json.dumps(checksums.sealed(there | best), indent=1) + "\n")


def _table(found: Sequence[Found]) -> str:
    """As CSV: a row for each trial, a column for each setting that was searched."""
    names = list(dict.fromkeys(axis.name for one in found for axis in one.search.axes))
    own = ("number", "state", "value", "meta_steps", "gradient_evaluations", "seconds", "reason")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *own[:2], "measure", *own[2:], *names])
    for one in found:
        for trial in one.trials:
            row = asdict(trial)
            cells = [one.search.label, *(row[name] for name in own[:2]), one.measure, *(row[name] for name in own[2:])]
            writer.writerow([*cells, *(trial.found.get(name) for name in names)])
    return text.getvalue()


def with_best(settings: Settings, folder: str | Path) -> Settings:
    """Returns ``settings`` with what a search in ``folder`` found best, and the data that it searched on.

    What is given goes before what was found. Of several methods it is that of ``method``.

    Raises:
        RunFolderError: there is no search, or it has found nothing yet.
        InputError: it was for other tasks or methods.
    """
    folder = checks.path("tuned", folder)
    searches = _read(folder)["searches"]
    if not (folder / BEST).is_file():
        raise RunFolderError(f"no candidate of the search in {folder} has finished: go on with it, by metaprox tune")
    best = read_variants(folder / BEST)
    method = settings.given.get("method")
    fitting = [label for label, one in best.items() if method in (None, label, one["method"])]
    label = method if method in fitting else fitting[0] if len(fitting) == 1 else None
    if label is None:
        asked = "say which by --method" if method is None else f"got --method {method}"
        raise InputError(f"the search in {folder} has found settings of {', '.join(best)}: {asked}")
    entry = searches[label]
    if entry["given"]["tasks"] != settings.given["tasks"]:
        raise InputError(f"the search in {folder} was for {entry['given']['tasks']}, not {settings.given['tasks']}")
    data = {name: option.group for name, option in Settings(**entry["given"]).options().items()}
    same = {name: value for name, value in entry["given"].items() if data.get(name) == "data"}
    return Settings(**{**same, **best[label], **settings.given})


def _read(folder: Path) -> dict[str, Any]:
    """What search.json holds. Raises RunFolderError where there is none, or it is damaged."""
    place = folder / FILE
    if not place.is_file():
        raise RunFolderError(f"{folder} is not the folder of a search: it has no {FILE}")
    kept = json_of(place, text_of(place, read_bytes(place)))
    if not isinstance(kept, dict) or not kept.keys() >= {"id", "searches"}:
        raise RunFolderError(f"{place} is not the {FILE} of a search: it holds something else")
    return checksums.unsealed(place, kept)
