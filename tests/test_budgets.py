"""training-budgets: how outer steps are tuned, and which runs are lost."""

import math
from dataclasses import replace

import pytest

from metaprox.experiments import budgets
from metaprox.experiments.base import Remember
from metaprox.experiments.budgets_settings import TRAININGS, VARIANTS, variants_of


def tuned(tmp_path, loss, *, name="sinusoid", seeds=1):
    """(step, what was tried, the calls): where ``loss(seed, lr)`` is what a run comes to; None: it diverges."""
    calls = []

    def run_with(seed, steps, lr, *, split):
        calls.append((seed, steps, lr, split))
        value = loss(seed, lr)
        return {"died": None if value is not None else {"meta_step": 1}, "result": {"mean": value or 0.0}}

    training = replace(TRAININGS[name], tuning_seeds=seeds)
    step, tried = budgets._outer_step("part", run_with, 7, 10, training, Remember(tmp_path, "full_0"))
    return step, tried, calls


@pytest.mark.parametrize("best", [0.0125, 0.05, 0.1, 0.2, 0.8])
def test_the_step_of_the_least_loss_is_found_wherever_it_lies_and_is_at_no_edge(tmp_path, best):
    step, tried, calls = tuned(tmp_path, lambda seed, lr: abs(math.log(lr / best)))
    assert step == pytest.approx(best)
    assert min(map(float, tried)) < step < max(map(float, tried))
    assert all(call[:2] + call[3:] == (10, 7, "validation") for call in calls)
    assert len(calls) == len(tried)


def test_accuracy_is_to_be_high_and_a_step_that_diverges_is_never_chosen(tmp_path):
    accuracy = {0.1: 0.3, 0.2: 0.4, 0.4: 0.6, 0.8: None}
    step, tried, _ = tuned(tmp_path, lambda seed, lr: accuracy[lr], name="MNIST-1D, MLP")
    assert step == 0.4
    assert tried == {"0.2": 0.4, "0.4": 0.6, "0.8": -math.inf}


def test_several_seeds_choose_by_their_mean(tmp_path):
    losses = {(10, 0.05): 3.0, (10, 0.1): 2.0, (10, 0.2): 1.0, (10, 0.4): 4.0}
    losses |= {(11, 0.05): 3.0, (11, 0.1): 1.0, (11, 0.2): 3.0, (11, 0.4): 4.0}
    step, tried, calls = tuned(tmp_path, lambda seed, lr: losses[seed, lr], seeds=2)
    assert step == 0.1
    assert tried == {"0.05": -3.0, "0.1": -1.5, "0.2": -2.0}
    assert {call[0] for call in calls} == {10, 11}


def test_steps_that_all_diverge_end_the_search(tmp_path):
    _, tried, calls = tuned(tmp_path, lambda seed, lr: None)
    assert set(tried.values()) == {-math.inf}
    assert len(calls) <= 2 * budgets.FARTHEST + 1


def test_variants_of_a_problem_are_known_and_have_the_default_first(tmp_path):
    for name in TRAININGS:
        assert variants_of(name)[0] == budgets.FIRST
        assert set(budgets.OTHERS) <= set(variants_of(name))
        assert set(variants_of(name)) <= set(VARIANTS)


def test_a_run_is_lost_where_it_answers_alike_whatever_it_is_given():
    assert TRAININGS["sinusoid"].lost(3.6)
    assert not TRAININGS["sinusoid"].lost(2.9)
    assert TRAININGS["MNIST-1D, conv"].lost(0.2)
    assert not TRAININGS["MNIST-1D, conv"].lost(0.3)
    assert TRAININGS["sinusoid"].lost(math.inf)
