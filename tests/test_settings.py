"""Settings by name, the parts that they make, and both on disk."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metaprox as mp
from metaprox import training
from metaprox.cli import main
from metaprox.tasks import MNIST1D, Sinusoid
from metaprox.training.names import METHODS, OPTIMIZERS, SOLVERS
from metaprox.training.options import Chosen
from metaprox.training.stored import refuse_another

RESULTS = Path(__file__).parents[1] / "results"
Settings, Composition = training.Settings, training.Composition


@settings(deadline=None)
@given(
    tasks=st.sampled_from(["mnist1d", "sinusoid"]),
    method=st.sampled_from(METHODS.names()),
    solver=st.sampled_from(SOLVERS.names()),
    branch=st.sampled_from([None, *SOLVERS.names()]),
    optimizer=st.sampled_from(OPTIMIZERS.names()),
    tol=st.sampled_from([None, 1e-3]),
    more=st.fixed_dictionaries(
        {}, optional={"seed": st.integers(0, 9), "inner_lr": st.floats(0.01, 0.5), "inner_batch": st.integers(1, 5)}
    ),
)
def test_a_composition_is_what_its_settings_and_its_configuration_say(
    tasks, method, solver, branch, optimizer, tol, more
):
    chosen = {"method": method, "solver": solver, "optimizer": optimizer, **more}
    if method == "fobmaml":
        chosen["branch_solver"] = branch
    if method != "maml" and tol:
        chosen |= {"tol": tol, "max_steps": 7}
    if method == "tangent":
        chosen["residual_correction"] = True
    composition = Settings(tasks, **chosen).composition()
    assert Settings(**composition.settings()).composition() == composition
    on_disk = json.loads(json.dumps(composition.configuration()))
    assert Composition.of(on_disk) == composition
    assert composition.pace.seed == composition.family.seed == more.get("seed", 0)
    assert composition.trainer().tasks["test"] == composition.family.of_split("test")


def test_defaults_are_those_of_the_family_and_of_the_parts():
    waves = Settings("sinusoid").composition()
    assert waves == Composition(
        Sinusoid(),
        mp.FOBMAML(mp.GradientDescent(0.01), 10, compile=waves.estimator.compile),
        0.5,
        OPTIMIZERS.of("normalized")(0.1, 0.9),
        training.Pace(meta_steps=4000, meta_batch=25),
    )
    digits = Settings(MNIST1D, perturb="center", optimizer="adam", solver="anderson", compile="off").composition()
    assert digits.family == MNIST1D()
    assert digits.estimator == mp.FOBMAML(mp.Anderson(0.1), 10, perturb="center")
    assert digits.optimizer == OPTIMIZERS.of("adam")(0.001)  # the family's step is for another optimizer
    assert Settings("mnist1d", optimizer="adam", lr=0.4).composition().optimizer.lr == 0.4


def test_branches_are_solved_as_the_base_where_nothing_else_is_said():
    estimator = lambda **given: Settings("sinusoid", **given).composition().estimator  # noqa: E731
    assert estimator(solver="anderson", inner_memory=3).branch_solver is None
    assert estimator(solver="anderson", inner_memory=3, branch_lr=0.2).branch_solver == mp.Anderson(0.2, 3)
    assert estimator(inner_lr=0.03, branch_solver="anderson").branch_solver == mp.Anderson(0.03)
    assert estimator(solver="adam0", branch_lr=0.2).branch_solver == mp.Adam(0.2, (0.0, 0.999))
    assert estimator(solver="adam", branch_solver="adam0").branch_solver == mp.Adam(0.01, (0.0, 0.999))
    assert estimator(solver="adam", inner_betas=(0.5, 0.9)).solver == mp.Adam(0.01, (0.5, 0.9))


def test_the_step_of_the_family_is_not_for_a_solver_that_finds_its_own():
    estimator = lambda **given: Settings("sinusoid", **given).composition().estimator  # noqa: E731
    free = estimator(solver="adaptive")
    assert (free.solver, free.branch_solver) == (mp.AdaptiveGradientDescent(), None)
    assert estimator(solver="adaptive", inner_lr=0.05).solver == mp.AdaptiveGradientDescent(0.05)
    assert estimator(solver="adaptive", branch_solver="anderson").branch_solver == mp.Anderson(0.01)
    assert estimator(branch_solver="adaptive").branch_solver == mp.AdaptiveGradientDescent(0.01)
    whole = Settings("sinusoid", solver="adaptive").composition()
    assert Settings(**whole.settings()).composition() == whole


def test_a_tolerance_takes_the_place_of_steps():
    found = Settings("mnist1d", tol=1e-3, max_steps=40).composition().estimator
    assert (found.steps, found.tol, found.max_steps) == (None, 1e-3, 40)
    with pytest.raises(mp.InputError, match="steps"):
        Settings("mnist1d", tol=1e-3, max_steps=40, steps=3).composition()


def test_none_is_a_value_only_where_nothing_else_would_say_it():
    assert Settings("sinusoid", chunk_size=None).composition().estimator.chunk_size is None
    assert Settings("sinusoid", chunk_size=None).but(chunk_size=None).composition().estimator.chunk_size == "auto"
    assert Settings("sinusoid", lam=None, steps=None, momentum=None).given == {"tasks": "sinusoid"}
    whole = Settings("sinusoid", chunk_size=None).composition()
    assert Settings(**whole.settings()).composition() == whole


def test_what_a_file_does_not_hold_is_refused_before_it_trains():
    composition = Settings("sinusoid").composition()
    solver = mp.TorchOptimizer(lambda params: params)
    other = replace(composition, estimator=mp.FOBMAML(solver, 3, backend="loop"))
    with pytest.raises(mp.InputError, match=r"TorchOptimizer.factory=the function .* can't be kept in config.json"):
        other.trainer()
    for bad in (None, [], "x", 3):
        with pytest.raises(mp.InputError, match="not the configuration of a run: "):
            Composition.of(bad)


def test_settings_of_version_1_are_read():
    """Of a run that is kept here, and of one with everything that had a place whether it had a meaning or not."""
    kept = json.loads((RESULTS / "default-variants" / "symmetric, loss" / "seed_0" / "config.json").read_text())
    flat = {
        "tasks": "mnist1d", "ways": 5, "shots": 5, "queries": 15, "train_shots": None, "data": None, "encoder": None,
        "adapt": None, "hidden": [128, 128], "seed": 3, "method": "maml", "lam": 0.1, "solver": "adam0",
        "inner_lr": 0.1, "steps": 10, "inner_batch": None, "branch_solver": None, "branch_lr": None,
        "branch_steps": None, "scheme": "symmetric", "perturb": "loss", "nu": None, "eps": None,
        "residual_correction": False, "cg_steps": 5, "damping": 0.0, "optimizer": "adam", "lr": 0.4, "momentum": 0.9,
        "gamma": 0.1, "meta_steps": 1000, "meta_batch": 16, "eval_every": 100, "eval_tasks": 200,
        "eval_split": "validation", "test_tasks": 600, "checkpoint_every": 100, "backend": "auto", "chunk_size": None,
        "compile": "on", "on_nonfinite": "raise", "device": "cpu", "threads": 1,
    }  # fmt: skip
    found = Settings.of_version_1(flat).composition()
    assert found.estimator == mp.MAML(mp.Adam(0.1, (0.0, 0.999)), 10, compile=True)
    assert (found.family, found.lam, found.pace.seed) == (MNIST1D(seed=3), 0.1, 3)
    assert found.optimizer == OPTIMIZERS.of("adam")(0.4)
    assert "version" not in kept
    given = {"nu": 0.1, "compile": "on", "eval_every": 250, "eval_split": "test"}
    assert Settings.of_version_1(kept).composition() == Settings("mnist1d", **given).composition()
    with pytest.raises(mp.InputError, match="unknown colour"):
        Settings.of_version_1(flat | {"colour": "red"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "a configuration of version 3; this metaprox reads 1 and 2: install the one that wrote it"),
        ({"version": "2"}, "a configuration of version '2'"),
        ({"lam": "much"}, "lam must be a finite number >= 0, got 'much'"),
        ({"colour": 1}, "odd colour"),
        ({"tasks": {"class": "circles"}}, "unknown tasks 'circles'"),
        ({"tasks": {"ways": 5}}, "not the configuration of a run: KeyError: 'class'"),
        ({"tasks": [1]}, "not the configuration of a run"),
        ({"tasks": {"class": "mnist1d", "colour": 1}}, "mnist1d has no setting colour"),
        ({"method": {"class": "sgd"}}, "unknown method 'sgd'"),
        ({"run": {"meta_steps": 0}}, "meta_steps must be an integer >= 1, got 0"),
        # What is named is built only if it is a part: nothing is called.
        ({"tasks": {"class": "subprocess:Popen", "args": ["touch", "made"]}}, "must be a dataclass that is a metaprox"),
        (
            {"method": {"class": "os:system", "command": "touch made"}},
            "must be a dataclass that is a metaprox.Estimator",
        ),
        (
            {"optimizer": {"class": "metaprox.tasks.sinusoid:Sinusoid"}},
            "must be a dataclass that is a metaprox.training",
        ),
    ],
)
def test_damaged_configurations_are_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    folder = training.RunFolder.claimed(tmp_path / "run")
    folder.configure(Settings("mnist1d").composition().configuration() | change)
    with pytest.raises(mp.RunFolderError, match=message) as caught:
        training.composition_of(folder)
    assert str(folder.path / "config.json") in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_the_seed_of_a_composition_is_that_of_its_tasks():
    composition = Settings("sinusoid", seed=4).composition()
    other = composition.but(seed=5)
    assert other.family == replace(composition.family, seed=5)
    assert replace(composition, family=Sinusoid(seed=9, split="test")).family == Sinusoid(seed=4)


OPTIONS = {
    "mnist1d": {"--ways", "--shots", "--queries", "--train-shots", "--hidden"},
    "sinusoid": {"--shots", "--queries", "--train-shots", "--hidden"},
    "banking77": {
        "--ways",
        "--shots",
        "--queries",
        "--train-shots",
        "--data",
        "--tokens",
        "--encoder",
        "--adapt",
        "--head",
        "--model",
    },
}


@pytest.mark.parametrize("family", OPTIONS)
def test_help_shows_what_the_family_and_the_method_have_and_nothing_else(family, capsys):
    groups = {}
    for method in METHODS.names():
        with pytest.raises(SystemExit):
            main(["train", family, "--solver", "gd", "--method", method, "--help-all"])
        lines = capsys.readouterr().out.splitlines()
        title = ""
        for line in lines:
            words = line.replace("│", " ").split()  # there are lines around the groups, or not
            if found := re.search(r"(data|method|outer-step|run) options", line):
                title = found[0]
            elif words and re.fullmatch("--[a-z][a-z-]+,?", words[0]):
                groups.setdefault((method, title), set()).add(words[0].removesuffix(","))
    for method in METHODS.names():
        assert groups[method, "data options"] == OPTIONS[family]
        names = {field.name for field in fields(METHODS.of(method)) if field.init} - {"solver", "reduce"}
        own = {f"--{name.replace('_', '-')}" for name in names}
        shared = {"--lam", "--method", "--solver", "--inner-batch", "--inner-lr", "--compile"}
        branched = {"--branch-lr"} if "--branch-solver" in own else set()
        shown = groups[method, "method options"] | (groups[method, "run options"] & own) | {"--compile"}
        assert shown == own | shared | branched
        assert groups[method, "outer-step options"] == {"--optimizer", "--lr", "--momentum"}


def test_a_choice_of_parts_that_are_none_is_refused():
    for part in ("method", "solver", "optimizer", "branch_solver"):
        for bad in ("none", 5, ["gd"], ""):
            with pytest.raises(mp.InputError, match="unknown"):
                Settings("sinusoid", **{part: bad})
    with pytest.raises(mp.InputError, match="unknown tasks 'imagenet'; known: banking77, images, mnist1d"):
        Settings("imagenet")
    assert Chosen.by({"tasks": "sinusoid", "method": "maml"}).branch_solver is None


@pytest.mark.parametrize("method", ["fobmaml", "maml"])
def test_a_run_from_before_there_was_a_switch_has_it_off(method):
    here = Settings("sinusoid", method=method).composition().configuration()
    there = {**here, "method": {name: value for name, value in here["method"].items() if name != "offload"}}
    refuse_another(Path("run"), "is a checkpoint of a run", there, here, "")
    assert Composition.of(there).estimator == Composition.of(here).estimator
    if method == "fobmaml":
        other = Settings("sinusoid", offload=True).composition().configuration()
        with pytest.raises(mp.RunFolderError, match=r"with other settings: .*offload: False there, True here"):
            refuse_another(Path("run"), "is a checkpoint of a run", there, other, "")
