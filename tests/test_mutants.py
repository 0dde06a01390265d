"""The mutation test itself: what it changes, which tests it runs, and what it says of survivors."""

import ast
import functools

import pytest

from mutants import report
from mutants.campaign import Result, all_mutants, order
from mutants.operators import mutants
from mutants.reach import spread
from mutants.targets import HELD, REQUIRED, REST, SOURCE

TEXT = '''"""Not + changed."""

LIMIT = 3  # é: columns are counted in bytes


@cached(1 + 1)
def largest(rows: list[1 + 1], keep: bool = False) -> int:
    """1 < 2."""
    assert len(rows) > 0
    with quiet():
        best = rows.amax(1, keepdim=True)
    if best <= LIMIT and keep:
        raise ValueError("more than" + "that")
    return best
'''
CHANGES = {
    "LIMIT = 3 # é: columns are counted in bytes": {"LIMIT = 4 # é: columns are counted in bytes"},
    "def largest(rows: list[1 + 1], keep: bool = False) -> int:": {
        "def largest(rows: list[1 + 1], keep: bool = True) -> int:"
    },
    "with quiet():": {'with __import__("contextlib").nullcontext():'},
    "best = rows.amax(1, keepdim=True)": {
        "best = rows.amin(1, keepdim=True)",
        "best = rows.amax(2, keepdim=True)",
        "best = rows.amax(1, keepdim=False)",
        "best = rows.amax(1)",
        "best = (rows)",
    },
    "if best <= LIMIT and keep:": {
        *("if True:", "if False:", "if best <= LIMIT or keep:", "if best < LIMIT and keep:"),
        "if best > LIMIT and keep:",
    },
}


def test_the_changes_are_these_and_no_others():
    found = mutants(TEXT)
    by_line = {line: {m.after for m in found if m.before == line} for line in {m.before for m in found}}
    assert by_line == CHANGES
    assert {m.function for m in found} == {"", "largest"}


def test_a_change_leaves_the_rest_of_the_text_as_it_is():
    source = TEXT.encode()
    for mutant in mutants(TEXT):
        changed = mutant.apply(source)
        ast.parse(changed)
        assert changed != source
        assert changed[: mutant.start] == source[: mutant.start]
        assert changed[len(changed) - len(source) + mutant.end :] == source[mutant.end :]


@pytest.mark.parametrize(
    ("file", "after"),
    [
        (
            "inner/progress.py",
            "enough = norms.amin(1) <= self.tol if isinstance(self.tol, Tensor) else self.tol(y, norms)",
        ),
        ("inner/solve.py", 'with __import__("contextlib").nullcontext():'),
        (
            "solvers/adaptive.py",
            "size = torch.maximum(length / turn * along.clamp(ALONG, 1.0).sqrt(), HALF * moved / turned)",
        ),
    ],
)
def test_what_survived_once_is_tried(file, after):
    assert after in {mutant.after for mutant in all_mutants([file])}


def test_all_changes_of_the_core_are_python_and_have_names_of_their_own():
    sources = {file: (SOURCE / file).read_bytes() for file in (*HELD, *REST)}
    assert {"inner/solve.py", "losses/gradients.py", "estimators/base.py", "solvers/adam.py"} <= sources.keys()
    found = all_mutants(list(sources))
    for mutant in found:
        ast.parse(mutant.apply(sources[mutant.file]))
    assert len({(m.file, m.function, m.before, m.after) for m in found}) == len(found) > 1500


def test_the_tests_that_run_are_those_that_reach_the_line_recent_killers_first():
    (mutant,) = mutants("def f(x):\n    return x + 1.0\n", "solve.py")[:1]
    rows = {"test_a.py::slow": 3.0, "test_b.py::b": 2.0, "test_solve.py::late": 1.0, "test_solve.py::own": 0.5}
    reach = {test: {"seconds": seconds, "lines": {"solve.py": [2]}} for test, seconds in rows.items()}
    reach["test_c.py::elsewhere"] = {"seconds": 0.1, "lines": {"solve.py": [7], "norms.py": [2]}}
    ordered = functools.partial(order, mutant, reach)
    assert ordered([], 100) == ["test_solve.py::own", "test_solve.py::late", "test_a.py::slow", "test_b.py::b"]
    assert ordered(["test_b.py::b", "test_c.py::elsewhere"], 3.6) == [
        *("test_b.py::b", "test_solve.py::own", "test_solve.py::late")
    ]


def test_tests_are_spread_over_the_lines():
    """Two that reach all lines together come before a slow one of both and one of what is reached already."""
    rows = {"both": (9.0, [1, 2, 3]), "one": (0.1, [1, 2]), "again": (0.2, [1, 2]), "other": (0.5, [3])}
    reach = {test: {"seconds": seconds, "lines": {"solve.py": lines}} for test, (seconds, lines) in rows.items()}
    assert spread(reach) == ["one", "other", "again", "both"]


def _result(outcome, after="b", file="inner/solve.py"):
    return Result(file, "f", "a", after, 1, outcome, "", 0.1)


def test_survivors_without_a_reason_and_too_few_killed_are_faults(monkeypatch):
    monkeypatch.setattr(report, "accepted", lambda: {("inner/solve.py", "f", "a", "b"): "faster, and no different"})
    killed = [_result("killed", f"b{i}") for i in range(18)] + [_result("timeout", "late")]
    assert report.verdict([*killed, _result("survived")]) == []
    assert report.share([*killed, _result("survived")]) == REQUIRED
    assert report.verdict([*killed, _result("survived", "c")]) == ["survived: inner/solve.py:1 a => c"]
    assert len(report.verdict([*killed[1:], _result("survived")])) == 1
    assert report.verdict([*killed, _result("unreached", "c", "vectors/norms.py")]) == [
        "survived: vectors/norms.py:1 a => c"
    ]
    table = report.table([*killed, _result("survived"), _result("survived", "c")])
    assert "`a` -> `b`: faster, and no different" in table
    assert "`a` -> `c`: NOT EXPLAINED" in table
    assert "| 21 | 19 | 18 | 2 | 90.5 |" in table


def test_every_reason_is_of_a_mutant_that_there_is():
    there = {(m.file, m.function, m.before, m.after) for m in all_mutants([*HELD, *REST])}
    assert report.accepted().keys() <= there
