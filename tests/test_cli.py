"""The command line, run in this process: what it prints, writes and refuses."""

import base64
import json
import re

import pytest

import metaprox as mp
from metaprox import training
from metaprox.cli import main, parse
from metaprox.training.names import FAMILIES

SMALL = ["--hidden", "8", "--meta-steps", "20", "--meta-batch", "3", "--eval-every", "5"]
SMALL += ["--eval-tasks", "4", "--test-tasks", "5", "--steps", "3"]


DIVERGES = ["--inner-lr", "0.1", "--meta-steps", "6", "--eval-tasks", "2", "--test-tasks", "2"]


@pytest.fixture
def run(tmp_path, capsys):
    main(["train", "sinusoid", "--out", str(tmp_path / "run"), *SMALL])
    return tmp_path / "run", capsys.readouterr()


def test_train_writes_figures_and_one_self_contained_report(run):
    folder, printed = run
    assert "meta-step 20 of 20  training loss" in printed.out
    assert "before meta-training" in printed.out
    page = (folder / "report.html").read_text()
    figures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert len(figures) == 1 + 3 + 2  # panels of the three figures, of which each is a file too
    names = ("learning_curve", "inner_solves", "adaptation")
    whole = [(folder / "figures" / f"{name}.png").read_bytes() for name in names]
    assert all(one.startswith(b"\x89PNG") for one in figures + whole)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    after = training.RunFolder.open(folder).read_metrics()[-1]["loss"]
    assert f"{after['mean']:.3f} ± {after['ci95']:.3f}" in page
    assert re.search(r"scheme symmetric, perturbation of the\s+centre\.", page)


def test_evaluate_repeats_the_final_evaluation_and_takes_other_tasks(run, capsys):
    folder, _ = run
    main(["evaluate", str(folder), "--count", "5", "--as-json"])
    again = json.loads(capsys.readouterr().out)
    final = training.RunFolder.open(folder).read_metrics()[-1]
    assert again["loss"] == final["loss"]
    main(["evaluate", str(folder), "--count", "5", "--split", "validation", "--as-json"])
    assert json.loads(capsys.readouterr().out)["loss"]["mean"] != final["loss"]["mean"]
    main(["evaluate", str(folder), "--count", "5"])
    assert "query loss" in capsys.readouterr().out


def test_resume_of_a_finished_run_leaves_it_and_draws_its_report_again(run, capsys):
    folder, _ = run
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "report.html").unlink()
    main(["resume", str(folder)])
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert (folder / "report.html").exists()


def test_mnist1d_reports_accuracy(tmp_path, capsys):
    small = ["--hidden", "8", "--meta-steps", "4", "--meta-batch", "2", "--eval-tasks", "4", "--test-tasks", "5"]
    main(["train", "mnist1d", "--out", str(tmp_path / "run"), "--ways", "3", "--residual-correction", *small])
    assert "centre, residual correction." in (tmp_path / "run" / "report.html").read_text()
    printed = capsys.readouterr().out
    assert re.search(r"query accuracy\s*│ *\d+\.\d ± \d+\.\d %", printed)
    assert "accuracy" in next(line for line in printed.splitlines() if line.startswith("meta-step"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["mnist1d", "--ways", "11"], 2, "11-way tasks need 11 classes"),
        (["mnist1d", "--lam", "0"], 2, "lam must be a finite number > 0, got 0.0"),
        (["mnist1d", "--lam", "50"], 2, "lr is --inner-lr, or --branch-lr of a branch_solver; lam is --lam"),
        (["sinusoid", *DIVERGES], 1, "task 6: "),
    ],
)
def test_errors_are_one_message_and_a_status(tmp_path, capsys, arguments, status, message):
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments, "--out", str(tmp_path / "run")])
    assert caught.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith("metaprox: error: ")
    assert message in printed
    assert "Traceback" not in printed
    if status == 1:
        assert "at meta-step 3 of 6, training task 56" in printed
        assert "lr is --inner-lr" in printed


def test_check_prints_a_verdict_on_settings_and_on_a_run(run, capsys):
    folder, _ = run
    main(["check", "sinusoid", "--hidden", "8", "--steps", "3", "--ids", "4"])
    untrained = capsys.readouterr().out
    assert untrained.startswith("Check on 1 task: nothing wrong")
    main(["check", str(folder), "--ids", "4"])
    trained = capsys.readouterr().out
    assert trained.startswith("Check on 1 task: nothing wrong")
    assert trained != untrained
    (folder / "weights.safetensors").unlink()  # as of a run that was stopped: its last checkpoint is its first
    main(["check", str(folder), "--ids", "4"])
    assert capsys.readouterr().out == untrained
    with pytest.raises(SystemExit) as caught:
        main(["check", str(folder), "--lam", "2"])
    assert caught.value.code == 2
    refusal = capsys.readouterr().err
    assert "give a run folder or a family with settings, not both; --lam is a setting" in refusal
    assert f"{folder} is no family of tasks (banking77, images, mnist1d, omniglot, sinusoid, tables, text)" in refusal


def test_check_ends_with_status_1_and_the_options_where_something_is_wrong(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "mnist1d", "--hidden", "8", "--lam", "0.05", "--inner-lr", "30", "--ids", "0", "--steps", "2"])
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "WRONG  steps" in printed.out
    assert printed.err.startswith("metaprox: error: wrong: steps, ")
    assert "The options are: inner step --inner-lr" in printed.err


def test_every_option_has_help(capsys):
    commands = [[command, family] for command in ("train", "check", "compare") for family in FAMILIES.names()]
    others = ("resume", "evaluate", "report", "recount", "reproduce", "adapt", "predict", "env")
    commands += [*([command] for command in others), ["check", "a/folder"]]
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help-all" if command[-1] in FAMILIES.names() else "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        options = re.split(r"\n(?:│|  ?) ?(?=--[a-z]|-h)", text)[1:]  # with lines around them, or without
        assert len(options) > (25 if command[-1] in FAMILIES.names() else 0)
        for option in options:
            described = re.sub(r"[│╭╰─╮╯\s]+", " ", option)
            assert len(re.findall(r"[a-z]{3,}", described)) > 3, f"{command}: {described}"


def test_missing_run_is_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(tmp_path)])
    assert caught.value.code == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert issubclass(mp.RunFolderError, OSError)


@pytest.mark.parametrize("command", ["train", "check", "compare"])
def test_without_a_family_a_command_says_which_there_are(capsys, command):
    for arguments in ([], ["--hidden", "8"]):
        with pytest.raises(SystemExit) as caught:
            main([command, *arguments])
        assert caught.value.code == 2
        printed = capsys.readouterr().err
        assert (
            f"metaprox {command} needs a family of tasks first: banking77, images, mnist1d, omniglot, sinusoid, tables"
            in printed
        )
        assert f"usage: metaprox {command} FAMILY [OPTIONS]" in printed
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "families of tasks:" in capsys.readouterr().out


def test_help_and_errors_name_the_family(capsys):
    with pytest.raises(SystemExit):
        main(["train", "sinusoid", "--help"])
    assert "usage: metaprox train sinusoid [-h]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["train", "sinusoid", "--colour", "red"])
    assert caught.value.code == 2
    assert "metaprox train sinusoid --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "3"], "--seed can't be given here: give --seeds"),
        (["--method=maml"], "--method can't be given here: name methods in --methods or --variants"),
        (["--cg-steps", "3"], "--cg-steps is a setting of imaml, but method='fobmaml'"),
        (["--branch-memory", "3"], "--branch-memory is a setting of anderson, but branch_solver='gd'"),
    ],
)
def test_what_a_comparison_does_not_take_says_what_it_does(tmp_path, capsys, option, message):
    with pytest.raises(SystemExit) as caught:
        main(["compare", "sinusoid", *option, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"metaprox: error: {message}\n"


def test_a_switch_can_be_turned_on_and_off(tmp_path):
    for words, expected in (
        ([], (False, True)),
        (["--residual-correction", "--no-estimate-error"], (True, False)),
        (["--no-residual-correction", "--estimate_error"], (False, True)),
        (["--residual-correction", "--no-residual-correction"], (False, True)),
    ):
        command = parse(["train", "sinusoid", *words, "--out", "x"])
        found = command.settings().composition().estimator
        assert (found.residual_correction, found.estimate_error) == expected
    assert parse(["train", "sinusoid", "--chunk-size", "None", "--out", "x"]).settings().given["chunk_size"] is None
    assert parse(["train", "sinusoid", "--lam", "None", "--out", "x"]).settings().given == {"tasks": "sinusoid"}


def test_ctrl_c_ends_in_one_line(tmp_path, capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(SystemExit) as caught:
        main(["train", "sinusoid", "--out", str(tmp_path / "run")])
    assert caught.value.code == 130
    assert re.fullmatch("metaprox: stopped. metaprox resume goes on with a run.*\n", capsys.readouterr().err)
