"""Run the tests that reach a mutant, those likely to kill it first, until one fails."""

import compileall
import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mutants.child import in_child, run_pytest
from mutants.operators import Mutant, mutants
from mutants.reach import Reach
from mutants.targets import ROOT, SLOWEST, SOURCE

CLEAN = 40  # tests that are tried on the unchanged package first
FIRST, FIRST_FILES = 12, 5  # tests, from so many files, that are tried before the others are even collected


@dataclass(frozen=True)
class Result:
    """What became of a mutant: "killed", "timeout" (killed too), "survived", or "unreached" by any test."""

    file: str
    function: str
    before: str
    after: str
    line: int
    outcome: str
    killer: str
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The same for as long as the line is, wherever it moves."""
        return self.file, self.function, self.before, self.after

    @property
    def killed(self) -> bool:
        return self.outcome in ("killed", "timeout")

    def row(self) -> dict[str, Any]:
        return asdict(self)


def all_mutants(files: Sequence[str]) -> list[Mutant]:
    return [mutant for file in files for mutant in mutants((SOURCE / file).read_text(), file)]


@contextmanager
def copied() -> Any:
    """A folder to work in, with a copy of the package in ``src``."""
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        shutil.copytree(SOURCE, Path(folder, "src", "metaprox"), ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder, quiet=1)
        yield Path(folder)


def run(chosen: Sequence[Mutant], reach: Reach, *, jobs: int, seconds: float, say: Callable[[Result], None]) -> None:
    """Tell ``say`` what becomes of each mutant; files are spread over ``jobs`` processes."""
    by_file: dict[str, list[Mutant]] = {}
    for mutant in chosen:
        by_file.setdefault(mutant.file, []).append(mutant)
    parts = list(by_file.values())
    if jobs == 1:
        for part in parts:
            _run_file(part, reach, seconds, say)
        return
    parts.sort(key=len, reverse=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        for results in pool.map(functools.partial(_results_of, reach=reach, seconds=seconds), parts):
            for result in results:
                say(result)


def _results_of(part: list[Mutant], reach: Reach, seconds: float) -> list[Result]:
    results: list[Result] = []
    _run_file(part, reach, seconds, results.append)
    return results


def _run_file(part: list[Mutant], reach: Reach, seconds: float, say: Callable[[Result], None]) -> None:
    killers: list[str] = []  # the latest first
    with copied() as folder:
        place = folder / "src" / "metaprox" / part[0].file
        source = place.read_bytes()
        assert _outcome(list(reach)[:CLEAN], reach, folder)[0] == "survived", "the tests fail without a change"
        Path(cache_from_source(place)).unlink()  # and none is written: a change may leave size and time as they are
        for mutant in part:
            began = time.monotonic()
            place.write_bytes(mutant.apply(source))
            tests = order(mutant, reach, killers, seconds)
            outcome, killer = _outcome(tests, reach, folder) if tests else ("unreached", "")
            if killer in reach:
                killers = [killer, *(test for test in killers if test != killer)]
            took = round(time.monotonic() - began, 1)
            known = mutant.file, mutant.function, mutant.before, mutant.after
            say(Result(*known, mutant.lines[0], outcome, killer, took))


def order(mutant: Mutant, reach: Reach, killers: Sequence[str], seconds: float) -> list[str]:
    """The tests to run, for about ``seconds``: recent killers, those of the module itself, the rest in their order."""
    hits = _hits(mutant, reach)
    own = sorted((test for test in hits if _about(test.split("::")[0], mutant.file)), key=lambda t: reach[t]["seconds"])
    tests, left = [], seconds
    for test in dict.fromkeys([*killers, *own, *reach]):
        if test in hits and reach[test]["seconds"] <= left:
            left -= reach[test]["seconds"]
            tests.append(test)
    return tests


@functools.cache
def _about(test_file: str, file: str) -> bool:
    """Whether the tests of ``test_file`` are of ``file`` itself, by their name or by what they import."""
    module = Path(file).with_suffix("").parts
    if Path(test_file).stem in {f"test_{part}" for part in module}:
        return True
    path = ROOT / test_file
    return path.exists() and f"from metaprox.{'.'.join(module)} import" in path.read_text()


def _hits(mutant: Mutant, reach: Reach) -> set[str]:
    """Tests that run the mutant's statement; of the whole file where it runs only when that is imported."""
    span = range(mutant.lines[0], mutant.lines[1] + 1)
    quick = {test: row["lines"] for test, row in reach.items() if row["seconds"] <= SLOWEST}
    hits = {test for test, lines in quick.items() if not set(span).isdisjoint(lines.get(mutant.file, ()))}
    return hits or {t for t, lines in quick.items() if mutant.file in lines or _about(t.split("::")[0], mutant.file)}


def _outcome(tests: list[str], reach: Reach, folder: Path) -> tuple[str, str]:
    limit = 40 + 6 * sum(reach[test]["seconds"] for test in tests)
    answer = in_child(functools.partial(_killer, tests), folder / "src", limit, folder)
    if answer is None:
        return "timeout", ""
    return ("killed", answer) if answer else ("survived", "")


def _killer(tests: list[str]) -> str:
    """The first test that fails, "import" where the package can't be, or ""; in two parts, to begin early."""
    sys.dont_write_bytecode = True
    first, files = list[str](), set[str]()
    for test in tests:
        file = test.split("::")[0]
        if len(first) < FIRST and (file in files or len(files) < FIRST_FILES):
            first.append(test)
            files.add(file)
    for part in (first, [test for test in tests if test not in set(first)]):
        if part:
            plugin = _Chosen(part)
            code = run_pytest(sorted({str(ROOT / test.split("::")[0]) for test in part}), plugin, "-x")
            if code:
                return plugin.failed or "import"
    return ""


class _Chosen:
    """A pytest plugin that runs these tests in this order, and keeps which one failed."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.rank = {test: index for index, test in enumerate(tests)}
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid
