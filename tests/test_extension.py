"""A solver, an estimator, a family and an experiment from somebody's own package: a file each, and no other changes."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import metaprox as mp
import metaprox.tasks
from metaprox import training
from metaprox.cli import main
from metaprox.tasks.known import families

SOLVER = '''
"""Steps of one length in every coordinate."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SignDescent:
    lr: float

    def init(self, y):
        return None

    def step(self, grad, y, state):
        return y - self.lr * torch.sign(grad), state
'''

ESTIMATOR = '''
"""FO-MAML, shortened."""

from dataclasses import dataclass

from metaprox.estimators import Estimator
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate
from metaprox.inner.proximal import proximal_solve


@dataclass(frozen=True)
class Shortened(Estimator):
    factor: float = 0.5

    def _check_problem(self, problem):
        return None

    def _estimate(self, gradients, keep_adapted):
        base = proximal_solve(gradients, self.solver, self._stopping(), self.on_nonfinite)
        query, shared = gradients.query_both(base.y, 0)
        grad = self.factor * query.grad
        return Estimate.of(base.y, grad, shared, query, Info.of(base, None, gradients.counts), base)
'''


KNOWN = ["banking77", "images", "mnist1d", "omniglot", "sinusoid", "tables", "text"]
FAMILY = '''
"""Lines through the origin."""

from dataclasses import dataclass

import torch

from metaprox.models import mean_squared_error
from metaprox.tasks import Family
from metaprox.tasks.base import stacked
from metaprox.tasks.draws import generator
from metaprox.tasks.pictures import curve


@dataclass(frozen=True)
class Lines(Family):
    """Lines of a slope up to ``steepest``.

    Args:
        steepest: the largest slope.
    """

    points: int = 6
    """Points of the support, and of the query."""
    steepest: float = 2.0

    defaults = {"meta_steps": 4, "meta_batch": 3, "lam": 1.0, "solver": "nesterov", "optimizer": "adam", "steps": 3}
    loss = staticmethod(mean_squared_error)

    def batch(self, ids):
        return stacked(self.line, ids)

    def line(self, task_id):
        rng = generator(self.seed, self.split, task_id)
        inputs = torch.from_numpy(rng.uniform(-1, 1, (2 * self.points, 1))).float()
        pair = inputs, inputs * rng.uniform(-self.steepest, self.steepest)
        return mp.Task(tuple(t[: self.points] for t in pair), tuple(t[self.points :] for t in pair))

    def model(self):
        return torch.nn.Linear(1, 1)

    def picture(self):
        return curve("A line", -1, 1)


import metaprox as mp
'''

EXPERIMENT = '''
"""Half of one."""

from matplotlib.figure import Figure

from metaprox.experiments import Experiment


def run(size, seed, remember):
    return {"half": remember("half", lambda: 0.5)}


def draw(results):
    return {"half": Figure()}


def measure(results):
    return {"half": results["half"]}


EXPERIMENT = Experiment("half", "Half of one is a half", run, draw, measure)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "somebody"
    (folder / "expected").mkdir(parents=True)
    (folder / "expected" / "half.json").write_text('{"both": {"half": [0.4, 0.6]}}')
    files = {"__init__": "", "solver": SOLVER, "estimator": ESTIMATOR, "family": FAMILY, "experiment": EXPERIMENT}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("somebody.solver"), importlib.import_module("somebody.estimator")
    for name in [name for name in importlib.sys.modules if name.split(".")[0] == "somebody"]:
        importlib.sys.modules.pop(name)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_solver_and_an_estimator_of_ones_own(own, backend):
    solver, estimator = own[0].SignDescent(0.1), own[1].Shortened
    loss = lambda params, target: 0.5 * ((params["w"] - target) ** 2).sum()  # noqa: E731
    problem = mp.ProximalProblem(loss, loss, lam=1.0)
    tasks = mp.Task(torch.tensor([[1.0, -1.0], [2.0, 0.5]]), torch.tensor([[3.0, 3.0], [0.0, 1.0]]))
    out = estimator(solver, steps=2, backend=backend)(problem, {"w": torch.zeros(2)}, tasks)
    reached = 0.2 * torch.sign(tasks.support)  # two steps towards the targets, which are farther away
    torch.testing.assert_close(out.adapted["w"], reached)
    torch.testing.assert_close(out.grad["w"], 0.5 * (reached - tasks.query).mean(0))
    meta = mp.FOBMAML(solver, 2, nu=0.01, backend=backend)(problem, {"w": torch.zeros(2)}, tasks)
    torch.testing.assert_close(meta.grad["w"], torch.zeros(2))  # branches take the same steps


SMALL = ["--eval-every", "2", "--eval-tasks", "2", "--test-tasks", "3"]


def test_a_family_of_ones_own_is_on_the_command_line(own, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "somebody.family:Lines", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "--steepest FLOAT The largest slope. (default: 2.0)" in text
    assert "--points INT Points of the support, and of the query. (default: 6)" in text
    assert "(default: nesterov)" in text
    assert not {"--ways", "--hidden", "--shots", "--gamma"} & set(text.split())
    out = tmp_path / "run"
    main(["train", "somebody.family:Lines", "--steepest", "5", "--out", str(out), *SMALL])
    assert "meta-step 4 of 4" in capsys.readouterr().out
    composition = training.composition_of(training.RunFolder.open(out))
    assert type(composition.family).__name__ == "Lines"
    assert composition.family.steepest == 5
    assert composition.estimator.solver == mp.Nesterov(0.1)
    assert composition.lam == 1.0
    assert (out / "figures" / "adaptation.png").exists()
    assert json.loads((out / "config.json").read_text())["tasks"]["class"] == "somebody.family:Lines"
    main(["evaluate", str(out), "--count", "3", "--as-json"])
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == training.RunFolder.open(out).read_metrics()[-1]["loss"]
    main(["compare", "somebody.family:Lines", "--methods", "fomaml", "reptile", "--seeds", "0", "1", *SMALL,
          "--out", str(tmp_path / "both")])  # fmt: skip
    assert "run 4 of 4: reptile, seed 1: done" in capsys.readouterr().out


def test_a_file_in_the_folder_of_families_is_a_family(own, tmp_path, capsys, monkeypatch):
    """As if somebody had put it there: nothing else is told of it."""
    dropped = tmp_path / "dropped"
    dropped.mkdir()
    (dropped / "lines.py").write_text(FAMILY)
    monkeypatch.setattr(metaprox.tasks, "__path__", [*metaprox.tasks.__path__, str(dropped)])
    families.cache_clear()
    try:
        assert list(families()) == [*KNOWN, "lines"]
        main(["train", "lines", "--points", "3", "--out", str(tmp_path / "run"), *SMALL])
        assert (tmp_path / "run" / "report.html").exists()
        assert training.Settings("lines", points=3).composition().family.points == 3
        with pytest.raises(mp.InputError, match="points=3 is a setting of lines, but tasks='sinusoid'"):
            training.Settings("sinusoid", points=3)
    finally:
        importlib.sys.modules.pop("metaprox.tasks.lines", None)
        families.cache_clear()


def test_a_method_and_a_solver_of_ones_own_are_on_the_command_line(own, tmp_path, capsys):
    parts = ["--method", "somebody.estimator:Shortened", "--solver", "somebody.solver:SignDescent"]
    with pytest.raises(SystemExit):
        main(["train", "sinusoid", *parts, "--help"])
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "--factor FLOAT" in text
    assert "--inner-lr FLOAT" in text
    assert not {"--scheme", "--nu", "--branch-steps"} & set(text.split())
    small = ["--hidden", "4", "--meta-steps", "2", "--meta-batch", "2", *SMALL]
    main(
        ["train", "sinusoid", *parts, "--factor", "0.25", "--inner-lr", "0.02", *small, "--out", str(tmp_path / "run")]
    )
    found = training.composition_of(training.RunFolder.open(tmp_path / "run")).estimator
    assert (found.factor, found.solver) == (0.25, own[0].SignDescent(0.02))


def test_an_experiment_of_ones_own(own, tmp_path, capsys):
    main(["reproduce", "somebody.experiment:EXPERIMENT", "--out", str(tmp_path / "out")])
    assert "half: pass: half: 0.5, expected 0.4 to 0.6" in capsys.readouterr().out
    assert "Half of one is a half" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("somebody.nothing:Lines", "can't be imported: No module named 'somebody.nothing'"),
        ("somebody.family:Circles", "can't be imported: module 'somebody.family' has no attribute 'Circles'"),
        (
            "somebody.solver:SignDescent",
            "must be a dataclass that is a metaprox.tasks.Family, got the class SignDescent",
        ),
        (":Lines", "can't be imported"),
    ],
)
def test_what_is_no_family_is_refused(own, word, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", word, "--out", "/nowhere/run"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_names_that_two_parts_would_have_are_refused(own, capsys):
    text = FAMILY.replace("steepest", "momentum")
    module = importlib.import_module("somebody.family")
    exec(compile(text, module.__file__, "exec"), vars(module))
    with pytest.raises(mp.InputError, match="are both the option momentum: give your own another name"):
        training.Settings("somebody.family:Lines", optimizer="normalized")


def test_defaults_of_a_family_are_options_of_a_run(own):
    module = importlib.import_module("somebody.family")
    exec(compile(FAMILY.replace('"meta_batch"', '"meta_bach"'), module.__file__, "exec"), vars(module))
    with pytest.raises(mp.InputError, match="defaults of Lines has 'meta_bach', which is no option of a run"):
        training.Settings("somebody.family:Lines").composition()


def test_a_setting_without_a_default_is_asked_for(own):
    module = importlib.import_module("somebody.solver")
    exec(compile(SOLVER.replace("    lr: float", "    length: float"), module.__file__, "exec"), vars(module))
    with pytest.raises(mp.InputError, match="inner_length is needed: SignDescent has no default for it"):
        training.Settings("sinusoid", solver="somebody.solver:SignDescent").composition()


KINDS = FAMILY.replace(
    "    steepest: float = 2.0\n",
    """    steepest: float = 2.0
    flag: bool = False
    on: bool = True
    place: Path = Path("here")
    pairs: tuple[tuple[int, float], ...] = ((1, 0.5),)
    words: list[str] = field(default_factory=lambda: ["a", "b"])
    limit: int | None = 5
    version: int = 1
""",
).replace("import dataclass\n", "import dataclass, field\nfrom pathlib import Path\nfrom typing import ClassVar\n")


def module_of(tmp_path, name, text):
    """A module of somebody's package, as written."""
    (tmp_path / "somebody" / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return f"somebody.{name}"


def test_settings_of_every_kind_come_back_as_they_went(own, tmp_path, capsys):
    place = module_of(tmp_path, "kinds", KINDS)
    out = tmp_path / "run"
    given = ["--flag", "--no-on", "--place", "/there", "--words", "x", "--limit", "None", "--pairs", "3", "0.25"]
    main(["train", f"{place}:Lines", *given, "--version", "2", "--out", str(out), *SMALL])
    found = training.composition_of(training.RunFolder.open(out)).family
    assert (found.flag, found.on, found.place, found.words) == (True, False, Path("/there"), ["x"])
    assert (found.pairs, found.limit, found.version) == (((3, 0.25),), None, 2)
    written = training.Settings(f"{place}:Lines", pairs=[[3, 0.25]], place="/there", words=("x",), limit=None)
    again = replace(written.composition().family, flag=True, on=False, version=2)
    assert again == found
    assert written.but(limit=None).composition().family.limit == 5  # what was given is taken back
    for version, differs in ((2, False), (3, True)):
        made = training.Settings(f"{place}:Lines", version=version, **_run_of(out)).composition()
        made = replace(made, family=replace(found, version=version))
        if differs:
            with pytest.raises(mp.RunFolderError, match="version: 2 there, 3 here"):
                made.trainer().resume(out)
        else:
            made.trainer().resume(out)


def _run_of(out):
    return dict(json.loads((out / "config.json").read_text())["run"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("@dataclass(frozen=True)", "@dataclass"), "TypeError: cannot inherit non-frozen dataclass from a frozen"),
        (("@dataclass(frozen=True)\n", ""), "has fields that are no settings: put @dataclass(frozen=True) above it"),
        (("import torch\n", "raise OSError('no disk')\n"), "can't be imported: OSError: no disk ("),
        (("import torch\n", "import torch, nothing_of_this_name\n"), "No module named 'nothing_of_this_name'"),
        (("def model(self)", "def models(self)"), "is abstract: it has no model"),
        (
            ("steepest: float", "steepest: 'Unknown'"),
            "the fields of Lines can't be read: name 'Unknown' is not defined",
        ),
        (("steepest: float", "out: float"), "'out' of the family of tasks has the name of another option"),
        (("steepest: float", "no_residual_correction: float"), "has the name of another option of the command"),
        (("steepest: float", "tasks: float"), "'tasks' of the family of tasks has the name of the option for"),
        (("steepest: float", "lam: float"), "'lam' of the run and the field 'lam' of the family of tasks are both"),
        (
            ("steepest: float = 2.0", "steepest: object = print"),
            "Lines.steepest=the builtin_function_or_method print",
        ),
        (
            ("steepest: float = 2.0", "steepest: object = __import__('metaprox').Nesterov(0.1)"),
            "Lines.steepest=Nesterov(",
        ),
        (("    defaults = {", "    defaults = 3, {"), "defaults of Lines must be a dict, got a tuple"),
        (
            ("    loss =", "    def __post_init__(self):\n        raise ValueError('too steep')\n\n    loss ="),
            "too steep",
        ),
    ],
)
def test_a_family_that_can_not_be_is_refused_and_leaves_nothing(own, tmp_path, capsys, change, message):
    assert change[0] in FAMILY
    place = module_of(tmp_path, "odd", FAMILY.replace(*change))
    with pytest.raises(SystemExit) as caught:
        main(["train", f"{place}:Lines", "--out", str(tmp_path / "run"), *SMALL])
    printed = capsys.readouterr().err
    assert message in printed
    assert caught.value.code == 2
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_a_part_gives_is_of_its_kind(own, tmp_path):
    text = FAMILY.replace("return torch.nn.Linear(1, 1)", "return 'linear'")
    with pytest.raises(mp.InputError, match=r"what Lines.model\(\) gives must be a Module, got 'linear'"):
        training.Settings(f"{module_of(tmp_path, 'wordy', text)}:Lines").composition().trainer()
    text = (
        "from dataclasses import dataclass\nfrom metaprox.training import Outer\n\n\n@dataclass(frozen=True)\n"
        "class Nothing(Outer):\n    def of(self, params):\n        return None\n"
    )
    nothing = f"{module_of(tmp_path, 'nothing', text)}:Nothing"
    with pytest.raises(mp.InputError, match=r"what Nothing.of\(\) gives must be an Optimizer, got None"):
        training.Settings("sinusoid", optimizer=nothing).composition().trainer()


def test_a_class_that_no_name_leads_to_is_refused_before_it_trains(own, tmp_path, capsys):
    text = (
        FAMILY
        + "\n\ndef make():\n    @dataclass(frozen=True)\n    class Local(Lines):\n        pass\n    return Local\n"
    )
    place = module_of(tmp_path, "local", text + "\n\nLocal = make()\n")
    with pytest.raises(SystemExit):
        main(["train", f"{place}:Local", "--out", str(tmp_path / "run"), *SMALL])
    assert "'somebody.local:make.<locals>.Local' is defined in a function" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_defaults_of_a_family_hold_until_something_else_is_said(own, tmp_path):
    """A tolerance in place of steps, and a solver of the branches with its step."""
    more = '"tol": 1e-3, "max_steps": 4, "branch_solver": "adam0", "branch_lr": 0.3, "residual_correction": True}'
    place = module_of(tmp_path, "tolerant", FAMILY.replace('"steps": 3}', more))
    found = training.Settings(f"{place}:Lines").composition().estimator
    assert (found.steps, found.tol, found.max_steps) == (None, 1e-3, 4)
    assert found.branch_solver == mp.Adam(0.3, (0.0, 0.999))
    assert found.residual_correction
    other = (
        training.Settings(f"{place}:Lines", steps=5, branch_lr=0.2, residual_correction=False).composition().estimator
    )
    assert (other.steps, other.tol, other.max_steps) == (5, None, None)
    assert other.branch_solver == mp.Adam(0.2, (0.0, 0.999))
    assert not other.residual_correction


def test_a_run_of_ones_own_is_read_where_its_module_is_and_refused_by_name_elsewhere(
    own, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    main(["train", f"{module_of(tmp_path, 'lines', FAMILY)}:Lines", "--out", str(out), *SMALL])
    for name in [name for name in importlib.sys.modules if name.split(".")[0] == "somebody"]:
        importlib.sys.modules.pop(name)
    monkeypatch.setattr(importlib.sys, "path", [one for one in importlib.sys.path if one != str(tmp_path)])
    monkeypatch.chdir("/")
    why = (
        "tasks 'somebody.lines:Lines' can't be imported: No module named 'somebody', neither from the current folder "
        "nor in PYTHONPATH"
    )
    for command in ("evaluate", "check"):
        with pytest.raises(SystemExit):
            main([command, str(out)])
        assert why in capsys.readouterr().err
    with pytest.warns(UserWarning, match=f"The picture of a task is left out: .*{why}"):
        main(["resume", str(out)])  # a finished run, of which only the page is made anew
    monkeypatch.chdir(tmp_path)
    main(["evaluate", str(out), "--count", "2"])
