"""Experiments: parts of a stopped run are kept, checks can fail, kept results still pass."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import metaprox as mp
from metaprox import experiments
from metaprox.cli import main
from metaprox.experiments import base, bias, problems, search, tuning
from metaprox.training import Settings

EXPERIMENTS = experiments.experiments()
RESULTS = Path(__file__).parent.parent / "results"


def toy(fail_at=None, value=2.0):
    """Three parts; ``calls`` says which were computed."""
    calls = []

    def run(size, seed, remember):
        def part(number):
            if number == fail_at:
                raise KeyboardInterrupt
            calls.append(number)
            return {"number": number, "noise": float(torch.rand(()))}

        torch.manual_seed(seed)
        return {"parts": [remember(f"part {n}", lambda n=n: part(n)) for n in range(3)], "value": value}

    def draw(results):
        figure = Figure()
        figure.subplots().plot([part["number"] for part in results["parts"]])
        return {"toy": figure}

    return base.Experiment("toy", "A toy is a toy", run, draw, lambda results: {"value": results["value"]}), calls


@pytest.fixture
def bounds(monkeypatch):
    monkeypatch.setattr(base, "expected", lambda experiment, size: {"value": [1.0, 3.0]})


def test_stopped_run_keeps_its_finished_parts(tmp_path, bounds):
    experiment, calls = toy(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        experiments.reproduce(experiment, tmp_path)
    assert calls == [0, 1]
    kept = [json.loads(path.read_text())["noise"] for path in sorted((tmp_path / "toy" / "parts").iterdir())]
    experiment, calls = toy()
    outcome = experiments.reproduce(experiment, tmp_path)
    assert calls == [2]
    results = json.loads((outcome.folder / "results.json").read_text())
    assert [part["noise"] for part in results["parts"]][:2] == kept
    assert not (outcome.folder / "parts").exists()
    assert (results["size"], results["seed"]) == ("full", 0)


def test_parts_of_another_size_or_seed_are_not_taken(tmp_path, bounds):
    for size, seed in (("quick", 0), ("quick", 1), ("full", 0)):
        experiment, calls = toy(fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            experiments.reproduce(experiment, tmp_path, size, seed)
        assert calls == [0, 1]


def test_generators_and_threads_are_put_back(tmp_path, bounds):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    experiments.reproduce(toy()[0], tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_an_experiment_has_the_threads_asked_for_and_float32_whatever_the_default_is(tmp_path, bounds):
    def run(size, seed, remember):
        seen.append((torch.get_num_threads(), torch.rand(1).dtype))
        return {"value": 2.0, "parts": []}

    experiment, seen = replace(toy()[0], run=run), []
    torch.set_default_dtype(torch.float64)
    try:
        experiments.reproduce(experiment, tmp_path)
        experiments.reproduce(experiment, tmp_path, threads=2)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [(1, torch.float32), (2, torch.float32)]


@pytest.mark.parametrize("value", [0.5, 3.5, math.nan])
def test_a_check_outside_its_interval_fails_and_says_so(tmp_path, bounds, value):
    outcome = experiments.reproduce(toy(value=value)[0], tmp_path)
    assert not outcome.passed
    page = experiments.write_summary([outcome], tmp_path).read_text()
    assert "1 check failed." in page
    assert "FAIL" in page
    assert str(outcome.checks[0]) == f"FAIL: value: {value:.3g}, expected 1 to 3"


def test_a_check_inside_its_interval_passes(tmp_path, bounds):
    outcome = experiments.reproduce(toy()[0], tmp_path)
    assert outcome.passed
    page = experiments.write_summary([outcome], tmp_path).read_text()
    assert "all checks passed" in page
    assert "A toy is a toy" in page
    assert json.loads((outcome.folder / "checks.json").read_text()) == [
        {"name": "value", "value": 2.0, "low": 1.0, "high": 3.0, "passed": True}
    ]


def test_measures_and_bounds_must_match():
    with pytest.raises(KeyError, match=r"measured and expected differ in \['other', 'value'\]"):
        base.compare_with_expected({"value": 1.0}, {"other": [0.0, 1.0]})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_bounds_of_both_sizes_and_kept_results_that_pass(name, tmp_path):
    for size in ("quick", "full"):
        bounds = base.expected(EXPERIMENTS[name], size)
        assert bounds
        assert all(low <= high for low, high in bounds.values())
    kept = RESULTS / name / "results.json"
    results = json.loads(kept.read_text())
    assert results["size"] == "full"
    (tmp_path / name).mkdir()
    (tmp_path / name / "results.json").write_bytes(kept.read_bytes())
    outcome = experiments.judge(EXPERIMENTS[name], tmp_path)
    assert outcome.passed, [str(check) for check in outcome.checks]
    assert all(path.stat().st_size > 5000 for path in outcome.figures.values())


def test_reproduce_on_the_command_line(tmp_path, capsys):
    main(["reproduce", "--list"])
    listed = capsys.readouterr().out
    assert all(name in listed and experiment.claim in listed for name, experiment in EXPERIMENTS.items())
    main(["reproduce", "logistic-accuracy", "--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "logistic-accuracy: pass: error of FO-MAML: 1.35, expected 0.5 to 3" in printed
    assert (tmp_path / "report.html").exists()
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "logistic-accuracy", "--quick", "--out", str(tmp_path), "--seed", "-1"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "everything"])
    assert caught.value.code == 2
    assert "unknown experiment 'everything'; known: all, mnist1d-tuning, accuracy, bias" in capsys.readouterr().err


def test_a_candidate_is_judged_by_unseen_classes_at_the_end_of_its_run():
    """With an outer step too short to move anything, by the accuracy of the initial weights; 0 if it diverges."""
    run = Settings("mnist1d", hidden=(8,), meta_steps=2, meta_batch=2, eval_tasks=5, eval_split="test", lr=1e-9)
    start = run.composition().trainer().evaluate("validation", 5).metrics["accuracy"].mean
    assert search.validation_accuracy(run.composition()) == pytest.approx(start)
    assert search.validation_accuracy(run.but(inner_lr=1e6, steps=40).composition()) == 0.0


def test_best_candidates_are_those_of_the_highest_accuracy():
    rows = [("a", 0.1, 0.6), ("a", 0.2, 0.7), ("a", 0.4, 0.5), ("b", 0.1, 0.3), ("b", 0.2, 0.2)]
    found = [{"method": method, "lr": lr, "validation_accuracy": accuracy} for method, lr, accuracy in rows]
    assert search.best_candidates(found, ["lr"]) == {"a": {"lr": 0.2}, "b": {"lr": 0.1}}


SMALL = Settings("mnist1d", hidden=(8,), meta_batch=2, eval_tasks=5, seed=10)
HALVING = search.Halving((4, 2, 1), (2, 4, 6))
SPACE = search.Space({"method": "fomaml"}, no_lam=True, steps=(1, 2))


def found(rows):
    """Without the seconds."""
    return [
        (row["settings"], [{name: value for name, value in rung.items() if name != "seconds"} for rung in row["rungs"]])
        for row in rows
    ]


def test_halving_gives_every_method_the_same_budget_and_keeps_the_best(tmp_path):
    rows = HALVING.search("fomaml", SPACE, SMALL, base.Remember(tmp_path, "full_0"))
    assert sorted(len(row["rungs"]) for row in rows) == [1, 1, 2, 3]
    assert sum(row["rungs"][-1]["meta_steps"] for row in rows) == HALVING.meta_steps() == 4 * 2 + 2 * 2 + 2
    for row in rows:
        assert [rung["meta_steps"] for rung in row["rungs"]] == [2, 4, 6][: len(row["rungs"])]
        per_task = row["settings"]["steps"] + 1  # support gradients, and the query gradient of FO-MAML
        assert row["rungs"][0]["gradient_evaluations"] == 2 * 2 * per_task
    first = [row["rungs"][0]["validation_accuracy"] for row in rows]
    for row, accuracy in zip(rows, first, strict=True):
        assert len(row["rungs"]) == 1 or accuracy >= sorted(first)[2]
    winner = max(rows, key=lambda row: len(row["rungs"]))
    assert search.best(rows, 1) == [winner]


def test_the_last_rung_is_the_whole_run_under_one_schedule(tmp_path):
    """A candidate that goes on ends where the same run ends that was never stopped."""
    rows = HALVING.search("fomaml", SPACE, SMALL, base.Remember(tmp_path, "full_0"))
    (winner,) = search.best(rows, 1)
    straight = SMALL.variant(winner["settings"]).but(meta_steps=6).composition()
    assert search.validation_accuracy(straight) == winner["rungs"][-1]["validation_accuracy"]


def test_a_stopped_search_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = HALVING.search("fomaml", SPACE, SMALL, base.Remember(tmp_path / "whole", "full_0"))
    remember, judge = base.Remember(tmp_path / "stopped", "full_0"), search.judge
    for judged in (1, 3, 5):
        calls = []

        def stop(config, path, rung, calls=calls, judged=judged):
            calls.append(path)
            result = judge(config, path, rung)
            if len(calls) == judged:
                raise KeyboardInterrupt  # after the run, before its result was kept
            return result

        monkeypatch.setattr(search, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            HALVING.search("fomaml", SPACE, SMALL, remember)
    monkeypatch.setattr(search, "judge", judge)
    assert found(HALVING.search("fomaml", SPACE, SMALL, remember)) == found(whole)


def test_a_candidate_that_diverges_has_accuracy_0_and_the_cost_until_then(tmp_path):
    run = SMALL.but(meta_steps=4, branch_lr=1e6, branch_steps=40, lam=1e-7, eval_every=2, checkpoint_every=2)
    assert search.judge(run.composition(), tmp_path / "run", 2) == {
        "validation_accuracy": 0.0,
        "meta_steps": 0,
        "gradient_evaluations": 0,
        "seconds": 0.0,
    }


def test_candidates_are_the_same_points_for_every_method_and_lie_in_their_intervals():
    spaces = tuning.SPACES
    drawn = {label: space.candidates(24, 10) for label, space in spaces.items()}
    for label, candidates in drawn.items():
        low, high = spaces[label].inner_lr
        for candidate, other in zip(candidates, drawn["fobmaml"], strict=True):
            assert low <= candidate["inner_lr"] <= high
            assert candidate["lam"] == 0 or 0.01 <= candidate["lam"] <= 1
            assert spaces[label].outer[candidate["optimizer"]][0] <= candidate["lr"]
            assert candidate["lr"] <= spaces[label].outer[candidate["optimizer"]][1]
            if spaces[label].inner_lr == spaces["fobmaml"].inner_lr:
                assert candidate["inner_lr"] == other["inner_lr"]
        assert {candidate["steps"] for candidate in candidates} == set(spaces[label].steps)
        assert {candidate["optimizer"] for candidate in candidates} == set(spaces[label].outer)
        assert any(candidate["lam"] == 0 for candidate in candidates) == spaces[label].no_lam
    assert spaces["fobmaml"].candidates(24, 11) != drawn["fobmaml"]


def test_settings_of_the_package_are_those_of_the_kept_search():
    kept = RESULTS / "mnist1d-tuning" / "results.json"
    assert tuning.chosen() == tuning.chosen(kept)


def test_accuracy_takes_the_settings_of_a_whole_search_beside_it_or_those_of_the_package(tmp_path):
    packaged = tuning.chosen()
    assert packaged.keys() >= tuning.SPACES.keys()
    rows = [
        {"method": label, "settings": {"method": label, "lam": 0.3}, "rungs": [{"validation_accuracy": 0.5}]}
        for label in tuning.SPACES
    ]
    place = tmp_path / "results.json"
    assert tuning.chosen(place) == packaged
    place.write_text(json.dumps({"size": "quick", "rows": rows}))
    assert tuning.chosen(place) == packaged
    place.write_text(json.dumps({"size": "full", "rows": rows}))
    assert tuning.chosen(place) == {label: {"method": label, "lam": 0.3} for label in tuning.SPACES}


def test_slope_of_a_power_law():
    assert bias.slope([(x, 3 * x**0.7) for x in (1e-3, 1e-2, 0.5)]) == pytest.approx(0.7)


def test_perturbed_solutions_are_those_of_the_perturbed_problem():
    """The gradient of fhat + nu f + prox vanishes at y_nu."""
    tasks = problems.logistic_tasks(0, count=2)
    x = {"w": torch.zeros(20, dtype=torch.float64)}
    y = bias._perturbed(x, tasks, 0.3)
    for i in range(2):
        w = y[i].clone().requires_grad_()
        support, query = (tuple(leaf[i] for leaf in part) for part in tasks)
        value = problems.logistic_loss({"w": w}, support) + 0.3 * problems.logistic_loss({"w": w}, query)
        value = value + 0.5 * problems.LOGISTIC_LAM * w.square().sum()
        assert torch.autograd.grad(value, w)[0].norm() < 1e-12


def test_unknown_size_is_refused(tmp_path):
    with pytest.raises(mp.InputError, match="unknown size 'huge'; known: quick, full"):
        experiments.reproduce(toy()[0], tmp_path, "huge")
