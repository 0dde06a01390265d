"""What the command line says of itself, and of words that it does not take."""

import re
import subprocess
import sys

import pytest

from metaprox import __version__, cli
from metaprox.training.names import FAMILIES


def ended(capsys, arguments):
    """The status with which ``arguments`` end, and what they print, on both streams."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


def test_every_command_is_in_the_overview_once_with_what_it_does(capsys):
    status, out, _ = ended(capsys, ["--help"])
    assert status == 0
    assert [name for names in cli.GROUPS.values() for name in names] == re.findall(r"^  ([a-z]\S*)", out, re.MULTILINE)
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(cli.COMMANDS)
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_an_example_that_it_takes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cli.example(cli.COMMANDS[name])
    assert found.startswith(f"Example: metaprox {name}")
    assert callable(cli.parse(found.split()[2:]).run)


def test_examples_are_in_the_help(capsys):
    assert "Example: metaprox train mnist1d --out runs/digits" in ended(capsys, ["train", "mnist1d", "--help"])[1]
    assert "Example: metaprox train mnist1d --out runs/digits" in ended(capsys, ["train", "--help"])[1]
    assert "Example: metaprox predict topics questions.csv" in ended(capsys, ["predict", "--help"])[1]


@pytest.mark.parametrize("family", FAMILIES.names())
def test_help_in_short_is_part_of_the_whole(capsys, family):
    listed = [
        set(re.findall(r"^(?:│ | *)(--[a-z0-9-]+)", ended(capsys, ["train", family, word])[1], re.MULTILINE))
        for word in ("--help", "--help-all")
    ]
    assert listed[0] < listed[1]
    assert {"--out", "--method", "--inner-lr", "--lam", "--meta-steps"} <= listed[0]
    assert {"--tol", "--branch-lr", "--patience"} <= listed[1] - listed[0]


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_as_a_module_and_as_a_program(word):
    done = subprocess.run([sys.executable, "-m", "metaprox", word], capture_output=True, text=True, check=True)
    assert done.stdout.startswith({"--version": f"metaprox {__version__}\n", "--help": "usage: metaprox COMMAND"}[word])


MNIST = ["train", "mnist1d", "--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "metaprox needs a command: train, "),
        (["trian"], "unknown command trian; did you mean train? metaprox --help lists them"),
        (["--out", "x"], "unknown command --out; metaprox --help lists them"),
        (
            [*MNIST, "--hiden", "3"],
            "unknown option --hiden; did you mean --hidden? metaprox train mnist1d --help lists",
        ),
        (["resume", "x", "--tensorbord"], "unknown option --tensorbord; did you mean --tensorboard? metaprox resume"),
        ([*MNIST, "--no-estimate-eror"], "unknown option --no-estimate-eror; did you mean --no-estimate-error? "),
        ([*MNIST, "--hidden"], "--hidden needs a value"),
        (["train", "mnist1d", "--hidden", "--out", "x"], "--hidden needs a value"),
        (["train", "mnist1d", "--out"], "--out needs a value"),
        (["compare", "mnist1d", "--seeds", "--out", "x"], "--seeds needs a value"),
        (["check", "a/folder", "--ids"], "--ids needs a value"),
        ([*MNIST, "--inner_lr", "x"], "--inner_lr must be a number, got 'x'"),
        ([*MNIST, "--inner-lr=x"], "--inner-lr must be a number, got 'x'"),
        ([*MNIST, "--hidden", "8", "x"], "--hidden must be an integer, got 'x'"),
        ([*MNIST, "--perturb", "centre"], "--perturb must be loss or center, got 'centre'"),
        ([*MNIST, "--chunk-size", "x"], "--chunk-size must be an integer or auto, got 'x'"),
        (["evaluate", "x", "--count", "1.5"], "--count must be an integer, got '1.5'"),
        ([*MNIST, "--inner_lr", "-1"], "--inner_lr must be a finite number > 0, got -1.0"),
        ([*MNIST, "--meta-steps=0"], "--meta-steps must be an integer >= 1, got 0"),
        ([*MNIST, "--hidden", "8", "0"], "--hidden[1] must be an integer >= 1, got 0"),
        ([*MNIST, "--method", "foo"], "unknown --method 'foo'; known: fobmaml"),
        (["reproduce", "--quick"], "name an experiment, or all: "),
        (["reproduce", "nosuch"], "unknown experiment 'nosuch'; known: all, "),
    ],
)
def test_what_is_not_taken_is_named_as_it_was_typed_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = ended(capsys, arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"metaprox: error: {message}")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_values_of_all_kinds_are_taken():
    words = ["--hidden", "8", "16", "--lam", "1e-1", "--chunk-size", "None", "--tol", "None", "--backend", "loop"]
    given = cli.parse([*MNIST, *words, "--solver", "adam", "--inner-betas", "0.5", "0.9"]).settings().given
    assert given["hidden"] == (8, 16)
    assert given["inner_betas"] == (0.5, 0.9)
    assert (given["lam"], given["chunk_size"], given["backend"]) == (0.1, None, "loop")


def test_reproduce_without_a_name_lists(capsys):
    cli.main(["reproduce"])
    without = capsys.readouterr().out
    cli.main(["reproduce", "--list"])
    assert capsys.readouterr().out == without
    assert re.search(r"^bias +The error falls", without, re.MULTILINE)


def test_evaluating_an_unfinished_run_says_how_far_it_is(tmp_path, capsys):
    place = tmp_path / "run"
    words = ["--hidden", "8", "--meta-steps", "6", "--meta-batch", "2", "--eval-tasks", "2", "--test-tasks", "2"]
    cli.main(["train", "sinusoid", "--out", str(place), "--checkpoint-every", "2", *words])
    (place / "weights.safetensors").unlink()
    for path in list(place.glob("checkpoint-*6.safetensors")):
        path.unlink()
    status, _, err = ended(capsys, ["evaluate", str(place)])
    assert status == 1
    assert err.endswith("has not finished; resume it (4 of 6 meta-steps are saved)\n")
    for path in place.glob("checkpoint-*"):
        path.unlink()
    assert ended(capsys, ["evaluate", str(place)])[2].endswith("resume it (0 of 6 meta-steps are saved)\n")


def test_env_names_what_computes(capsys):
    cli.main(["env"])
    printed = capsys.readouterr().out
    for name, version in (("metaprox", __version__), ("Python", sys.version.split()[0]), ("torch", "2.")):
        assert re.search(rf"^{name} {re.escape(version)}", printed, re.MULTILINE)
    assert re.search(r"^needed: .*numpy \d", printed, re.MULTILINE) or "not installed: metaprox" in printed
