"""What an experiment is, and how one is run: raw numbers, figures, checks against what is expected."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from metaprox import checks
from metaprox.errors import HealthWarning
from metaprox.reports import style
from metaprox.reports.page import Shown
from metaprox.training import RunFolder, starts

Size = Literal["quick", "full"]


@dataclass(frozen=True)
class Remember:
    """Keeps the finished parts of a run in the experiment's folder, so that a stopped run goes on with them."""

    folder: Path
    run: str

    def __call__(self, part: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, as JSON gives it back; computed once."""
        name = f"{self.run}_{part}.json".replace(" ", "-").replace("/", "-")
        parts = self.folder / "parts"
        if not (parts / name).exists():
            parts.mkdir(parents=True, exist_ok=True)
            RunFolder(parts).write_text(name, json.dumps(compute()))
        return json.loads((parts / name).read_text(encoding="utf-8"))

    def forget(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.folder / "parts", ignore_errors=True)


@dataclass(frozen=True)
class Experiment:
    """One claim, and what it takes to see it.

    name: as in ``metaprox reproduce NAME``. claim: a sentence. run: (size, seed, remember) -> the raw numbers, as JSON.
    draw: raw numbers -> file name -> figure. measure: raw numbers -> the few that the claim is judged by. table: raw
    numbers -> a Markdown table, where there is one to keep. after: experiments whose results it takes, where there are
    some. What is expected lies in the folder ``expected`` beside the file of ``run``, as name.json.
    """

    name: str
    claim: str
    run: Callable[[Size, int, Remember], dict[str, Any]]
    draw: Callable[[dict[str, Any]], dict[str, Figure]]
    measure: Callable[[dict[str, Any]], dict[str, float]]
    table: Callable[[dict[str, Any]], str] | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """A measured number and the interval in which it is expected."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}: {self.name}: {self.value:.3g}, expected {self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class Outcome:
    """What one run of an experiment left in ``folder``."""

    experiment: Experiment
    size: Size
    seed: int
    folder: Path
    figures: dict[str, Path]
    shown: list[Shown]
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def reproduce(experiment: Experiment, out: Path, size: Size = "full", seed: int = 0, *, threads: int = 1) -> Outcome:
    """Run an experiment in ``out``/name: results.json, figures and checks.json.

    A run that was stopped goes on with the parts that it had finished; they lie in ``parts`` and are deleted at the
    end. Runs with ``threads`` of torch, and with float32 where nothing else is said; puts torch's threads, default type
    and generator back afterwards.

    Returns:
        Where it lies, its figures, and which of the checks hold.
    """
    checks.choice("size", size, ("quick", "full"))
    checks.count("seed", seed, least=0)
    checks.count("threads", threads)
    folder = RunFolder(checks.path("out", out) / experiment.name).made()
    starts.append(folder.starts)
    remember = Remember(folder.path, f"{size}_{seed}")
    before = torch.get_num_threads(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)  # what is not healthy is what experiments look at
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        try:
            raw = experiment.run(size, seed, remember)
        finally:
            torch.set_num_threads(before[0])
            torch.set_default_dtype(before[1])
    results = {"experiment": experiment.name, "size": size, "seed": seed, "torch": torch.__version__, **raw}
    folder.write_text("results.json", json.dumps(results, indent=1) + "\n")
    outcome = judge(experiment, out)
    remember.forget()
    return outcome


def has_results(experiment: Experiment, out: Path) -> bool:
    """Whether ``out`` holds the results of a run of it."""
    return (out / experiment.name / "results.json").is_file()


def judge(experiment: Experiment, out: Path) -> Outcome:
    """Draw and check again from the results.json of an earlier run."""
    folder = RunFolder(checks.path("out", out) / experiment.name)
    results = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    figures, shown = {}, []
    for name, figure in experiment.draw(results).items():
        figures[name] = folder.path / f"{name}.png"
        style.save(figure, figures[name])
        shown.append(Shown.of(f"{experiment.claim}: {name}", figure))
    if experiment.table:
        folder.write_text("table.md", experiment.table(results))
    found = compare_with_expected(experiment.measure(results), expected(experiment, results["size"]))
    rows = [asdict(check) | {"passed": check.passed} for check in found]
    folder.write_text("checks.json", json.dumps(rows, indent=1) + "\n")
    return Outcome(experiment, results["size"], results["seed"], folder.path, figures, shown, found)


def expected(experiment: Experiment, size: Size) -> dict[str, list[float]]:
    """Measure -> [low, high], from the file beside the experiment: what holds for both sizes, and for this one."""
    package = experiment.run.__module__.rpartition(".")[0]
    file = resources.files(package).joinpath("expected", f"{experiment.name}.json")
    bounds: dict[str, dict[str, list[float]]] = json.loads(file.read_text(encoding="utf-8"))
    return bounds.get("both", {}) | bounds.get(size, {})


def compare_with_expected(measured: Mapping[str, float], bounds: Mapping[str, list[float]]) -> list[Check]:
    """A check for each bound. Every measure needs one, and every bound a measure: a name in one alone is an error."""
    if measured.keys() != bounds.keys():
        raise KeyError(f"measured and expected differ in {sorted(measured.keys() ^ bounds.keys())}")
    return [Check(name, float(measured[name]), low, high) for name, (low, high) in bounds.items()]
