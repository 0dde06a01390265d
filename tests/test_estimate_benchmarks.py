"""The benchmarks of the error's estimate: what their tables say is what was measured."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(("count", "ranks"), [(9, (1, 7)), (20, (5, 14)), (100, (39, 60))])
def test_interval_of_the_median_is_the_one_of_the_sign_test(module, count, ranks):
    """Ranks as the tables of the sign test have them: of 9 values the second and the eighth."""
    values = [float(value) for value in reversed(range(count))]
    assert module("estimate").median_interval(values) == tuple(map(float, ranks))


@pytest.mark.filterwarnings("ignore::metaprox.HealthWarning")
def test_time_with_the_estimate_is_a_ratio_of_neighbours(module):
    estimate, workloads = module("estimate"), module("workloads")
    found = estimate.ratios(workloads.workload("sinusoid", 0), estimate.Way("vmap"), 1, 0.0)
    assert len(found["ratios"]) == estimate.LEAST
    assert 0.2 < sorted(found["ratios"])[estimate.LEAST // 2] < 5
    row = {"workload": "sinusoid", "steps": 1, "way": "vmap", "seconds_without": 0.01, "ratios": [1.02] * 9}
    assert "| sinusoid | 1 | vmap | 10.0 | +2.0 % (+2.0 to +2.0) | +2.0 to +2.0 | 9 |" in estimate.table([row])


def test_a_convex_problem_reaches_its_rtol_and_more_steps_are_more_accurate(module):
    affordable = module("affordable")
    found = affordable.rows("logistic regression", 0)
    errors = [one["error"] for one in found if one["rtol"] is None]
    assert errors[:5] == sorted(errors[:5], reverse=True)
    asked = found[-1]
    assert asked["reached"] == 1.0
    assert asked["error"] < affordable.RTOL
    assert asked["gradients"] < 100
    assert "| 100 %, " in affordable.table(found)
