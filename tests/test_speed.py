"""Rows of the speed benchmark on few tasks of its smallest workload: meta-gradients are what they are held to."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import metaprox as mp

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("speed")

    def small(name, seed):
        load = importlib.import_module("workloads").workload(name, seed)
        return replace(load, tasks=mp.Task(*(tuple(leaf[:2] for leaf in part) for part in load.tasks)))

    monkeypatch.setattr(module, "workload", small)
    return module


def rows_of(speed):
    return [row for row in speed.ROWS if row.installed and row.name != importlib.import_module("speed_rows").COMPILED]


def row_of(speed, name):
    return next(row for row in speed.ROWS if row.name == name)


def unit():
    return importlib.import_module("speed_rows").UNIT


def test_every_row_has_the_meta_gradient_that_it_is_held_to(speed):
    results = speed.measure("sinusoid", 1, rows_of(speed), rounds=1, budget=0.0, seed=0)
    assert results[0]["ratio"] == results[0]["clock_ratio"] == 1.0
    errors = {row["row"]: row["error"] for row in results if row["error"] is not None}
    assert {"FO-B-MAML, loop", "FO-MAML, vmap", "MAML, torch.func by hand", "MAML, mixed mode by hand"} <= set(errors)
    assert max(errors.values()) < 1e-3
    limits = {row["row"]: row["limit_error"] for row in results if row["limit_error"] is not None}
    assert set(limits) == {"FO-B-MAML, loop", "FO-B-MAML, vmap", "FO-B-MAML, equation (2) by hand"}
    assert max(limits.values()) < 1e-2
    table = speed.markdown(results).splitlines()
    plain = [line.split(" | ")[1] for line in table if "one by one" in line]
    assert {unit().name, speed.FLOOR.name} < set(plain)
    assert [line.split(" | ")[1] for line in table[2:5]] == plain


def test_a_wrong_meta_gradient_shows(speed):
    right = row_of(speed, "FO-MAML, vmap")
    wrong = replace(right, prepare=importlib.import_module("speed_rows").scaled(right.prepare, 0.5))
    _, result = speed.measure("sinusoid", 1, [unit(), wrong], rounds=1, budget=0.0, seed=0)
    assert result["error"] == pytest.approx(0.5, abs=1e-6)


def test_a_peer_that_is_absent_or_cannot_is_said_so(speed, monkeypatch):
    def unable(load, steps):
        raise RuntimeError("not for this model")

    fomaml = row_of(speed, "FO-MAML, vmap")
    absent = replace(fomaml, name="absent", package="a-package-that-nobody-has")
    cannot = replace(fomaml, name="cannot", package="torch", prepare=unable)
    rows = importlib.import_module("speed_rows")
    monkeypatch.setitem(rows.HOW, "a-package-that-nobody-has", "pip install it")
    monkeypatch.setitem(rows.MODULES, "torch", "torch")
    results = speed.measure("sinusoid", 1, [unit(), absent, cannot], rounds=1, budget=0.0, seed=0)
    table = speed.markdown(results)
    assert "absent: not installed: pip install it" in table
    assert "cannot: can't: RuntimeError: not for this model" in table


def test_mixed_mode_has_the_gradient_of_the_unrolled_loop_of_several_steps(speed):
    load = speed.workload("sinusoid", 0).double()
    rows = importlib.import_module("speed_rows")
    hand, unrolled = (
        rows.gradient(row_of(speed, name).prepare, load, 5)
        for name in ("MAML, mixed mode by hand", "MAML, torch.func by hand")
    )
    for one, other in zip(hand, unrolled, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_of_the_loop_is_between_the_floor_and_maml(speed):
    from_rows = importlib.import_module("speed_memory").peak
    floor, loop, maml = (
        from_rows(name, "sinusoid", 1, 0) for name in (speed.FLOOR.name, "FO-B-MAML, loop", "MAML, loop")
    )
    assert floor < loop < maml


def test_a_large_model_is_timed_by_its_own_plain_gradients_and_its_vectors_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    large = importlib.import_module("large")
    rows = {row["form"]: row for row in large.measure(large.workload(600, 3, 2), rounds=2)}
    assert [rows[name]["gradients"] for name in large.FORMS] == [19, 11, 23, 15]
    assert all(row["ratio"] > 0.5 and row["calls"] == 2 for row in rows.values())
    assert [rows[name]["vectors"] for name in large.FORMS] == pytest.approx([4, 5.48, 5.48, 6.48], abs=0.05)
    assert large.markdown(list(rows.values())).count("\n") == 2 + len(large.FORMS)


def test_first_calls_are_measured_in_new_processes_with_an_empty_cache_and_with_that_one(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    first_call = importlib.import_module("first_call")
    told = []

    class Process:
        def __init__(self, checkout, cache):
            told.append(self)
            self.checkout, self.cache, self.asked, self.ended = checkout, cache, 0, False
            self.first = 20.0 if checkout == own else 16.0

        def later(self):
            self.asked += 1
            return 0.004 if self.checkout == own else 0.008

        def end(self):
            self.ended = True

    own = Path(first_call.__file__).parent.parent
    monkeypatch.setattr(first_call, "Process", Process)
    first_call.main(["--out", str(tmp_path), "--rounds", "2", "--slices", "3", "--beside", str(tmp_path)])
    mine, other = [(own, 0), (own, 3)], [(tmp_path, 0), (tmp_path, 3)]
    assert [(one.checkout, one.asked) for one in told] == mine + other + other + mine
    assert all(one.ended for one in told)
    caches = [one.cache for one in told]
    assert caches[::2] == caches[1::2]
    assert len(set(caches)) == 4
    table = (tmp_path / "table.md").read_text()
    for first, later, ratio in (("20.0", "4.0", "1.00"), ("16.0", "8.0", "0.50")):
        seconds = f"{first} ({first} to {first})"
        assert f"| {seconds} | {seconds} | {later} ({later} to {later}) | {ratio} ({ratio} to {ratio}) |" in table
