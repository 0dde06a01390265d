"""The search for settings: what is drawn, who goes on, what a kill costs, and where the best goes."""

import csv
import fcntl
import json
import sys

import pytest

import metaprox as mp
from metaprox import comparison, tuning
from metaprox.cli import main
from metaprox.training import Settings, read_variants, train
from metaprox.tuning import candidate, study
from metaprox.tuning.tune import measured

SMALL = Settings("sinusoid", hidden=(4,), shots=2, queries=2, meta_steps=9, meta_batch=2, eval_tasks=4, method="fomaml")


def search(settings=SMALL, space=(), label="fomaml", **rungs):
    return tuning.Search(label, settings, tuning.axes_of(settings, space), **rungs)


def rows(out):
    """The table of trials without the seconds, which no two runs share."""
    with (out / "trials.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_what_is_given_is_not_searched_and_what_is_asked_for_is():
    usual = {axis.name: axis for axis in tuning.axes_of(SMALL)}
    assert {name: axis.bounds for name, axis in usual.items() if axis.bounds} == {
        "inner_lr": pytest.approx((0.001, 0.1)),
        "lam": pytest.approx((0.05, 5.0)),
        "lr": pytest.approx((0.01, 1.0)),
    }
    assert usual["steps"].choices == (5, 10, 20)
    fixed = SMALL.but(lam=0.2, steps=3)
    assert [axis.name for axis in tuning.axes_of(fixed)] == ["inner_lr", "lr"]
    space = ("inner-lr=0.01:0.5", "optimizer=normalized,adam", "inner_batch=none,2", "train_shots=1:8")
    assert [str(axis) for axis in tuning.axes_of(fixed, space)] == [
        "inner_lr=0.01:0.5",
        "lr=0.01:1",
        "optimizer=normalized,adam",
        "inner_batch=None,2",
        "train_shots=1:8",
    ]
    own = {axis.name: axis for axis in tuning.axes_of(fixed, space)}
    assert own["train_shots"].whole
    assert not own["inner_lr"].whole
    assert own["inner_batch"].choices == (None, 2)
    assert own["inner_lr"].setting(0.0123456) == 0.0123


def test_settings_that_are_lists_are_no_axes():
    with pytest.raises(mp.InputError, match="hidden has no values that are single words or numbers"):
        tuning.axes_of(Settings("sinusoid"), ["hidden=8,16"])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (("lam",), "must be NAME=LOW:HIGH"),
        (("lam=",), "must be NAME=LOW:HIGH"),
        (("lamm=1:2",), "there is no setting 'lamm' here; there are"),
        (("nu=0.1:0.5",), "there is no setting 'nu'"),
        (("method=maml,fomaml",), "is given, and so not searched"),
        (("meta_batch=1,2",), "is given"),
        (("seed=1,2",), "the same for all that are compared"),
        (("lam=2:1",), "LOW < HIGH"),
        (("lam=0:1",), "each bound of lam, on a log scale, must be a finite number > 0"),
        (("lam=a:1",), "could not convert"),
        (("steps=1.5,2",), "invalid literal"),
        (("steps=2,2",), "each once"),
        (("train_shots=a,b",), "invalid literal"),
        (("hidden=8,16",), "is given"),
        (("lam=1:2", "lam=1:3"), "lam more than once"),
        (("lam=0.1,-1",), "lam must be a finite number >= 0, got -1"),
        (("optimizer=adam,adem",), "unknown optimizer 'adem'"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(space, words):
    with pytest.raises(mp.InputError, match=words):
        search(space=space)


def test_rungs_end_with_the_whole_run():
    assert search().rungs() == (1, 3, 9)
    assert search(SMALL.but(meta_steps=1000)).rungs() == (111, 333, 1000)
    assert search(levels=1).rungs() == (9,)
    assert search(SMALL.but(meta_steps=100), levels=2, reduction=4).rungs() == (25, 100)
    with pytest.raises(mp.InputError, match="meta_steps=9 are too few for 4 rungs, each 3 times as long"):
        search(levels=4)
    for name, value in (("eval_every", 3), ("checkpoint_every", 3), ("eval_split", "test"), ("test_tasks", 5)):
        with pytest.raises(mp.InputError, match=f"{name}=.* can't be given to a search"):
            search(SMALL.but(**{name: value}))


def promoted(values, reduction):
    """Who goes on where values come one after another and low is good: the rule of asynchronous successive halving."""
    seen, going = [], []
    for value in values:
        seen.append(value)
        going.append(value <= sorted(seen)[max(len(seen) // reduction - 1, 0)])
    return going


def test_only_the_best_go_on_and_a_run_that_does_ends_as_if_it_had_never_stopped(tmp_path):
    (found,) = tuning.tune([search()], tmp_path / "out", trials=8)
    assert [one.number for one in found.trials] == list(range(8))
    logged = [
        [record["loss"]["mean"] for record in map(json.loads, lines) if record.get("split") == "validation"]
        for lines in ((tmp_path / f"out/fomaml/{n:04}/metrics.jsonl").read_text().splitlines() for n in range(8))
    ]
    first = promoted([losses[0] for losses in logged], 3)
    assert 1 <= sum(first) < 8
    assert [one.meta_steps >= 3 for one in found.trials] == first
    second = promoted([losses[2] for losses, on in zip(logged, first, strict=True) if on], 3)
    assert [one.state == "finished" for one, on in zip(found.trials, first, strict=True) if on] == second
    best = found.best()
    assert best.value == min(one.value for one in found.trials if one.state == "finished")
    assert all("not among the best 1/3" in one.reason for one in found.trials if one.state == "pruned")
    # a run that was evaluated as often, and never stopped
    straight = SMALL.but(**best.found, eval_every=1, test_tasks=1)
    whole = [
        r["loss"]["mean"] for r in train(straight, tmp_path / "run").read_metrics() if r.get("split") == "validation"
    ]
    assert whole == logged[best.number]
    assert best.gradient_evaluations == 9 * 2 * (best.found["steps"] + 1)
    assert read_variants(tmp_path / "out/best.json") == {"fomaml": {"method": "fomaml", **best.found}}


def test_all_methods_begin_at_the_same_points_and_another_seed_at_others():
    both = [SMALL, SMALL.variant({"method": "reptile"}), SMALL.but(seed=1)]
    drawn = []
    for settings in both:
        one = search(settings, label=settings.given["method"])
        sampler = study.ByNumber(one.run({}).pace.seed)
        tried = study.optuna.create_study(sampler=sampler)
        drawn.append([[study._drawn(trial, axis) for axis in one.axes] for trial in (tried.ask(), tried.ask())])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def stop_at(monkeypatch, count):
    """Interrupt the search in its ``count``-th judgement: before that run has moved, or when it has."""
    judge, calls = candidate.judged_after, []

    def judged_after(run, path, rung):
        calls.append(rung)
        if len(calls) == count and count % 2:
            raise KeyboardInterrupt
        result = judge(run, path, rung)
        if len(calls) == count:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(study, "judged_after", judged_after)


def test_a_search_that_was_killed_goes_on_to_the_same_end(tmp_path, monkeypatch):
    tuning.tune([search()], tmp_path / "whole", trials=3)
    for count in (2, 5):
        out = tmp_path / str(count)
        with monkeypatch.context() as patch:
            stop_at(patch, count)
            with pytest.raises(KeyboardInterrupt):
                tuning.tune([search()], out, trials=3)
        (found,) = tuning.tune([search()], out, trials=3)
        assert rows(out) == rows(tmp_path / "whole")
        assert "running" not in {one.state for one in found.trials}
    assert not list(tmp_path.glob("*/fomaml/*/checkpoint*"))  # of trials that ended nothing is gone on with
    (more,) = tuning.tune([search()], tmp_path / "whole", trials=4)
    assert [row["number"] for row in rows(tmp_path / "whole")] == list("0123")
    assert len(more.trials) == 4


def test_what_another_process_runs_is_left_to_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            tuning.tune([search()], tmp_path, trials=2)
    with (tmp_path / "fomaml/0000/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (found,) = tuning.tune([search()], tmp_path, trials=2)
        assert [one.state for one in found.trials] == ["running", "finished"]
    (found,) = tuning.tune([search()], tmp_path, trials=2)
    assert found.trials[0].state != "running"


def test_machines_share_a_storage_and_go_on_with_their_own(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/search.db"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            tuning.tune([search()], tmp_path / "one", trials=3, storage=url)
    (found,) = tuning.tune([search()], tmp_path / "other", trials=3, storage=url)
    assert [one.state == "running" for one in found.trials] == [True, False, False]
    assert not (tmp_path / "other/fomaml/0000").exists()
    (found,) = tuning.tune([search()], tmp_path / "one", trials=3, storage=url)
    assert [one.state == "running" for one in found.trials] == [False, False, False]
    assert sorted(path.name for path in (tmp_path / "one/fomaml").iterdir()) == ["0000"]
    assert not (tmp_path / "one/journal.log").exists()
    with pytest.raises(mp.RunFolderError, match=r"'sinusoid-fomaml' is another search \(run.lam: 0.5 there, 0.1 here"):
        tuning.tune([search(SMALL.but(lam=0.1))], tmp_path / "third", trials=3, storage=url)
    tuning.tune([search(SMALL.but(lam=0.1))], tmp_path / "fourth", trials=1, storage=url, study="mine")
    with pytest.raises(mp.InputError, match="--storage 'nosuch://x' can't be opened"):
        tuning.tune([search()], tmp_path / "fifth", trials=1, storage="nosuch://x")


def test_a_folder_with_another_search_or_something_else_is_refused(tmp_path):
    tuning.tune([search()], tmp_path / "out", trials=1)
    before = sorted(tmp_path.rglob("*"))
    for other, words in (
        (search(SMALL.but(lam=0.1)), "run.lam: 0.5 there, 0.1 here"),
        (search(space=("lam=1:2",)), "axes: "),
        (search(levels=2), r"rungs: \[1, 3, 9\] there, \[3, 9\] here"),
    ):
        with pytest.raises(mp.RunFolderError, match=f"is another search for fomaml .*{words}"):
            tuning.tune([other], tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(mp.RunFolderError, match="is not empty, and no folder of a search"):
        tuning.tune([search()], tmp_path / "thesis")
    (tmp_path / "thesis" / "search.json").write_text("[1]")
    with pytest.raises(
        mp.RunFolderError, match=r"search.json is not the search.json of a search: it holds something else"
    ):
        tuning.tune([search()], tmp_path / "thesis")


def test_a_run_that_diverges_is_pruned_with_its_reason(tmp_path):
    mixed = search(SMALL.but(lam=0.1), space=("inner_lr=0.01,1e9",))
    (found,) = tuning.tune([mixed], tmp_path / "mixed", trials=6)
    for one in found.trials:
        assert (one.state == "diverged") == (one.found["inner_lr"] == 1e9)
    lost = [one for one in found.trials if one.state == "diverged"]
    assert 0 < len(lost) < 6
    assert all(one.value is None and one.meta_steps == 0 and "lr * lam" in one.reason for one in lost)
    assert found.best().found["inner_lr"] == 0.01
    with pytest.raises(mp.MetaproxError, match=r"all 2 candidates for fomaml diverged; the first: .* shorter steps"):
        tuning.tune([search(SMALL.but(lam=0.1), space=("inner_lr=1e8:1e9",))], tmp_path / "all", trials=2)
    with pytest.raises(mp.RunFolderError, match=r"no candidate of the search in .* has finished"):
        tuning.with_best(SMALL, tmp_path / "all")


def test_judged_by_accuracy_where_there_is_one():
    assert measured(SMALL.composition().trainer()) == "loss"
    assert measured(Settings("mnist1d", hidden=(4,)).composition().trainer()) == "accuracy"


def test_the_best_goes_into_train_and_compare(tmp_path, capsys):
    words = "--hidden 4 --shots 2 --queries 2 --meta-steps 9 --meta-batch 2 --eval-tasks 4"
    out = tmp_path / "out"
    options = ["--trials", "2", "--space", "lam=0.2:0.4", "--out", str(out)]
    main(["tune", "sinusoid", *words.split(), "--methods", "fomaml", "reptile", *options])
    printed = capsys.readouterr().out
    assert "fomaml, trial 1, inner_lr" in printed
    assert "reptile: " in printed
    assert f"train with them: metaprox train sinusoid --tuned {out}" in printed
    assert [row["method"] for row in rows(out)] == ["fomaml"] * 2 + ["reptile"] * 2
    assert len({tuple(row[name] for name in ("inner_lr", "lam", "lr", "steps")) for row in rows(out)}) == 2
    best = read_variants(out / "best.json")
    assert comparison.Plan.of(Settings("sinusoid"), best, [0]).contenders.keys() == {"fomaml", "reptile"}
    given = Settings("sinusoid", method="reptile", lr=0.3, meta_steps=2)
    tuned = tuning.with_best(given, out)
    assert tuned.given == {
        "tasks": "sinusoid",
        "hidden": [4],
        "shots": 2,
        "queries": 2,
        **(best["reptile"] | {"lr": 0.3}),
        "meta_steps": 2,
    }
    run = tmp_path / "run"
    few = ["--meta-steps", "2", "--test-tasks", "2", "--eval-tasks", "2"]
    main(["train", "sinusoid", "--method", "reptile", *few, "--tuned", str(out), "--out", str(run)])
    kept = json.loads((run / "config.json").read_text())
    assert kept["lam"] == best["reptile"]["lam"]
    assert kept["tasks"]["hidden"] == [4]
    for settings, words in (
        (Settings("sinusoid"), "has found settings of fomaml, reptile: say which by --method"),
        (Settings("sinusoid", method="maml"), "fomaml, reptile: got --method maml"),
        (Settings("mnist1d", method="reptile"), "was for sinusoid, not mnist1d"),
    ):
        with pytest.raises(mp.InputError, match=words):
            tuning.with_best(settings, out)
    with pytest.raises(mp.RunFolderError, match=r"is not the folder of a search: it has no search.json"):
        tuning.with_best(given, run)


def test_options_that_the_rungs_say_are_refused_on_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tune", "sinusoid", "--eval-every", "3", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "--eval-every can't be given here: runs are judged at the rungs" in capsys.readouterr().err


def test_without_optuna_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "metaprox.tuning.study")
    with pytest.raises(mp.MissingExtraError, match=r"metaprox tune needs optuna, .* pip install 'metaprox\[tune\]'"):
        tuning.tune([search()], tmp_path / "out")
    assert not (tmp_path / "out").exists()
