"""Intervals over seeds and over tasks: known quantiles, formulas, coverage, and what a diverged seed counts for."""

import math

import pytest
import torch

import metaprox as mp
from metaprox.comparison.results import Runs
from metaprox.comparison.statistics import Estimate, OfSeed, student


@pytest.mark.parametrize(
    ("freedom", "level", "expected"),
    [
        (1, 0.95, 12.706204736),
        (2, 0.95, 4.302652730),
        (3, 0.95, 3.182446305),
        (4, 0.95, 2.776445105),
        (5, 0.95, 2.570581836),
        (9, 0.95, 2.262157163),
        (30, 0.95, 2.042272456),
        (100, 0.95, 1.983971519),
        (4, 0.99, 4.604094871),
        (1, 0.5, 1.0),
        (2, 0.5, math.sqrt(2 / 3)),
        (100_000, 0.95, 1.959987708),
    ],
)
def test_quantiles_of_student_are_those_of_the_tables(freedom, level, expected):
    assert student(freedom, level) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("freedom", "level"), [(0, 0.95), (1.5, 0.95), (3, 1.0)])
def test_bad_arguments_of_student_are_refused(freedom, level):
    with pytest.raises(mp.InputError):
        student(freedom, level)


def test_both_intervals_by_hand():
    """The case of three seeds at 0.2, 0.9 and 2.4: +1.2 +- 2.8 over seeds, whatever the tasks say."""
    found = Estimate.of([OfSeed(0.2, 3.0, 900), OfSeed(0.9, 4.0, 1600), OfSeed(2.4, 0.0, 100)])
    assert found.mean == pytest.approx(3.5 / 3)
    assert found.over_seeds == pytest.approx(4.302652730 * 1.1239810 / math.sqrt(3), rel=1e-6)
    assert found.over_tasks == pytest.approx(1.96 * math.sqrt(0.01 + 0.01) / 3)
    assert (found.seeds, found.tasks) == (3, 2600)


def test_one_seed_has_no_interval_over_seeds_and_one_task_none_over_tasks():
    found = Estimate.of([OfSeed.of(torch.tensor([1.0, 3.0]))])
    assert found.over_seeds is None
    assert found.over_tasks == pytest.approx(1.96)
    assert Estimate.of([OfSeed.of(torch.tensor([1.0])), OfSeed.of(torch.tensor([2.0, 4.0]))]).over_tasks is None


def test_intervals_over_seeds_cover_as_often_as_they_say_and_those_over_tasks_do_not():
    """Seeds of spread 1 with 400 tasks of spread 1 each: 95 % of the former hold the truth, few of the latter."""
    generator = torch.Generator().manual_seed(0)
    hits = {"over_seeds": 0, "over_tasks": 0}
    for _ in range(2000):
        means = torch.randn(5, 1, generator=generator)
        values = means + torch.randn(5, 400, generator=generator)
        found = Estimate.of([OfSeed.of(of_seed) for of_seed in values])
        for kind in hits:
            hits[kind] += abs(found.mean) < getattr(found, kind)
    assert hits["over_seeds"] / 2000 == pytest.approx(0.95, abs=0.015)
    assert hits["over_tasks"] / 2000 < 0.2


@pytest.mark.parametrize(
    ("metric", "finished", "before", "counts"),
    [
        ("accuracy", [0.7, 0.6], 0.3, 0.3),
        ("accuracy", [0.7, 0.2], 0.3, 0.2),  # a method that harms gains nothing from diverging
        ("loss", [1.0, 2.0], 5.0, 5.0),
        ("loss", [1.0, 9.0], 5.0, 9.0),
        ("accuracy", [], 0.3, 0.3),
    ],
)
def test_a_diverged_seed_counts_as_the_worse_of_its_start_and_the_worst_seed(metric, finished, before, counts):
    values = {seed: torch.full((4,), mean, dtype=torch.float64) for seed, mean in enumerate(finished)}
    by_seed = Runs(values, {9: before}).by_seed(metric)
    assert by_seed[9] == OfSeed(pytest.approx(counts), None, 0)
    found = Estimate.of(list(by_seed.values()))
    assert found.mean == pytest.approx((sum(finished) + counts) / (len(finished) + 1))
    assert found.over_tasks is None


def test_without_a_result_before_meta_training_there_is_none_at_all():
    assert Runs({0: torch.ones(3)}, {1: None}).by_seed("loss") is None
