"""Which tests run which lines, and how long they take: each file of tests is traced once, until a text changes."""

import functools
import hashlib
import heapq
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mutants.child import in_child, run_pytest
from mutants.targets import CACHE, HELD, REST, ROOT, SOURCE, test_files

LONGEST = 1800.0  # seconds for a file of tests
ROUNDS, LEAST = 12, 0.02  # of ``spread``; seconds that a test is taken to last at least
QUICK = 0.3  # seconds: slower tests come last, though no other may reach a line
Reach = dict[str, dict[str, Any]]  # by test: seconds, and by file of the core the lines that it runs


def reach(source: Path, scratch: Path, say: Any, *, stale: bool = False) -> Reach:
    """Of all tests that pass, those first that reach much together in little time.

    stale: take what was traced before the package changed; lines may have moved a little.
    """
    CACHE.mkdir(exist_ok=True)
    found: Reach = {}
    for path in test_files():
        tests = f"{path.stem}-{_digest(path.read_bytes())}"
        kept = CACHE / f"{tests}-{_digest(_sources())}.json"
        if stale:
            kept = next(CACHE.glob(f"{tests}-*.json"), kept)
        if not kept.exists():
            began = time.monotonic()
            run = functools.partial(_traced, str(path), source)
            rows = in_child(run, source, LONGEST, scratch)
            say(f"{path.name}: {len(rows or ())} tests, {time.monotonic() - began:.0f} s")
            if rows is None:
                continue
            for old in CACHE.glob(f"{path.stem}-*.json"):
                old.unlink()
            kept.write_text(json.dumps(rows))
        found |= json.loads(kept.read_text())
    quick = {test: row for test, row in found.items() if row["seconds"] <= QUICK}
    return {test: found[test] for test in dict.fromkeys([*spread(quick), *spread(found)])}


def spread(found: Reach) -> list[str]:
    """The tests, ordered so that the first ones reach all lines, the next ones all of them again, and so on.

    Each time greedily, by lines per second that no other of the round has reached.
    """
    lines = {t: {(file, line) for file, those in row["lines"].items() for line in those} for t, row in found.items()}
    cost = {test: LEAST + row["seconds"] for test, row in found.items()}
    ordered: list[str] = []
    left = sorted(found)
    for _ in range(ROUNDS):
        missing = set[tuple[str, int]]().union(*(lines[test] for test in left))
        heap = sorted((-len(lines[test]) / cost[test], test) for test in left)
        while heap:  # what a test adds can only become less
            _, test = heapq.heappop(heap)
            gain = len(lines[test] & missing) / cost[test]
            if heap and -heap[0][0] > gain:
                heapq.heappush(heap, (-gain, test))
            elif gain:
                ordered.append(test)
                missing -= lines[test]
            else:
                break
        left = [test for test in left if test not in set(ordered)]
    return ordered + sorted(left, key=lambda test: (cost[test], test))


@functools.cache
def _sources() -> bytes:
    return b"".join(path.read_bytes() for path in [*sorted(SOURCE.rglob("*.py")), ROOT / "tests" / "conftest.py"])


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]


def _traced(file: str, source: Path) -> Reach:
    tracer = _Tracer(source / "metaprox")
    run_pytest([file], tracer)
    return tracer.rows


class _Tracer:
    """A pytest plugin that records the lines of the core that each passing test runs, if any."""

    def __init__(self, package: Path) -> None:
        self.files = {str(package / name): name for name in (*HELD, *REST)}
        self.rows: Reach = {}
        self.seen: dict[str, set[int]] = {}
        self.began, self.passed = 0.0, True

    def _global(self, frame: FrameType, event: str, arg: Any) -> Any:
        lines = self.seen.get(frame.f_code.co_filename)
        if lines is None:
            return None
        lines.add(frame.f_lineno)
        return self._local

    def _local(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.seen[frame.f_code.co_filename].add(frame.f_lineno)
        return self._local

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.seen = {file: set() for file in self.files}
        self.began, self.passed = time.monotonic(), True
        threading.settrace(self._global)
        sys.settrace(self._global)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        lines = {self.files[file]: sorted(lines) for file, lines in self.seen.items() if lines}
        if self.passed:
            self.rows[item.nodeid] = {"seconds": round(time.monotonic() - self.began, 3), "lines": lines}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed = self.passed and report.outcome == "passed"
