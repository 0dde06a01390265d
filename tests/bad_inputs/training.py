"""Settings of runs, their parts and folders, reports and comparisons."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bad_inputs import values
from bad_inputs.rows import Row, refused, taken
from metaprox import comparison, reports, training
from metaprox.comparison import Plan
from metaprox.training import Composition, Pace, Settings

# What a run has options of: others are those of a method, solver or optimizer that is not chosen.
WITH = {
    "cg_steps": {"method": "imaml"},
    "damping": {"method": "imaml"},
    "gamma": {"optimizer": "clipped"},
    "branch_lr": {"branch_solver": "anderson"},
    "branch_memory": {"branch_solver": "anderson"},
    "inner_memory": {"solver": "anderson"},
    "inner_betas": {"solver": "adam"},
    "inner_eps": {"solver": "adam"},
    "inner_momentum": {"solver": "nesterov"},
    "eps": {"perturb": "center"},
    "max_steps": {"tol": 0.1},
    "tol": {"max_steps": 9},
    "data": {"tasks": "banking77"},
    "encoder": {"tasks": "banking77"},
    "adapt": {"tasks": "banking77"},
    "tokens": {"tasks": "banking77"},
}
COUNTS = ("ways", "steps", "cg_steps", "eval_every", "eval_tasks", "test_tasks", "checkpoint_every", "threads")
COUNTS += ("shots", "queries", "train_shots", "meta_steps", "meta_batch", "inner_batch", "max_steps", "inner_memory")
COUNTS += ("branch_memory",)
CHOICES = ("method", "solver", "branch_solver", "scheme", "perturb", "start", "optimizer", "eval_split", "backend")
CHOICES += ("compile", "on_nonfinite", "encoder", "adapt")
NO_PATHS = [5, None, 0.5, b"x", ["a"], True, ""]
SETTINGS = Settings("sinusoid", meta_steps=1)
VARIANTS = {"a": {"method": "fomaml"}, "b": {"method": "maml"}}


def given(some):
    """None is what is not given."""
    return [value for value in some if value is not None]


def run(tasks="mnist1d", **options):
    """The parts of a run."""
    return Settings(tasks, **options).composition()


def bad(name, some):
    return refused(run, name, given(some), **WITH.get(name, {}))


def plan(**changes):
    defaults = {"shared": SETTINGS, "variants": VARIANTS, "seeds": (0,), "budget": "steps"}
    return Plan.of(**defaults | changes)


def train(**changes):
    """A run; only bad ones are asked for."""
    return training.train(**{"run": SETTINGS, "out": Path("/nowhere/run")} | changes)


def read(text):
    """The parts of a run whose config.json holds ``text``."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(text)
        return training.composition_of(training.RunFolder.open(folder))


def changed(**changes):
    """A configuration with other values."""
    return json.dumps(run("sinusoid").configuration() | changes)


def rows() -> list[Row]:
    return _options() + _parts() + _files() + _plans() + _json()


def _options() -> list[Row]:
    found: list[Row] = []
    for place, name in enumerate(COUNTS):
        found += bad(name, values.NO_COUNTS[place % 3 :: 3])
        if name in {"ways", "steps", "cg_steps", "eval_every", "train_shots", "inner_batch", "inner_memory"}:
            found += taken(run, name, values.COUNTS[:2], **WITH.get(name, {}))
    for name in ("branch_steps", "chunk_size", "tokens"):
        found += bad(name, values.NO_COUNTS[2::2])  # with 0 branch_steps there are none, which has a meaning
    for place, name in enumerate(CHOICES):
        found += bad(name, [*values.NO_CHOICES[place % 3 :: 3], "no"])
    found += refused(run, "tasks", [*values.NO_CHOICES, "no"])
    for name in ("inner_lr", "branch_lr", "nu", "eps", "gamma", "tol", "inner_eps"):
        found += bad(name, values.NOT_POSITIVE[::3])
    for name in ("lam", "damping", "lr"):
        found += bad(name, values.NEGATIVE[1::3])
    found += bad("momentum", values.NO_FRACTIONS) + bad("inner_momentum", values.NO_FRACTIONS[::3])
    found += bad("seed", [-1, 1.5, "0", True, values.NAN, 2**64])
    found += bad("residual_correction", values.NO_SWITCHES) + bad("estimate_error", values.NO_SWITCHES[::2])
    found += bad("hidden", [5, "88", {8: 8}, 0.5, True]) + bad("inner_betas", [5, "88", 0.5, (0.1,), (1, 2, 3), True])
    found += [
        Row(f"run(hidden={v})", lambda v=v: run(hidden=v), r"hidden\[0\] must be an integer >= 1")
        for v in ([0], [1.5], ["8"], (None,), [[8]], (True,))
    ]
    found += [
        Row(f"run(inner_betas={v})", lambda v=v: run(solver="adam", inner_betas=v), r"inner_betas\[0\] must lie in")
        for v in ((1.0, 0.5), ("a", 0.5), (None, 0.5))
    ]
    found += bad("device", [5, 0.5, ["cpu"], b"cpu"]) + bad("data", NO_PATHS)
    found += taken(run, "lam", values.NUMBERS)
    found += taken(run, "hidden", [([8, 8], (8, 8)), (np.array([8, 8]), (8, 8))])
    return found + [
        Row(f"Settings({name}={value!r})", lambda n=name, v=value: Settings("sinusoid", **{n: v}), pattern)
        for name, value, pattern in FOREIGN
    ]


FOREIGN = [
    ("lamda", 1, "unknown setting 'lamda'; known: tasks, .*, lam,"),
    ("ways", 3, "ways=3 is a setting of banking77, images, mnist1d, omniglot and text, but tasks='sinusoid'"),
    ("cg_steps", 3, "cg_steps=3 is a setting of imaml, but method='fobmaml'"),
    ("gamma", 0.1, "gamma=0.1 is a setting of clipped, but optimizer='normalized'"),
    ("inner_memory", 2, "inner_memory=2 is a setting of anderson, but solver='gd'"),
    ("branch_memory", 2, "branch_memory=2 is a setting of anderson, but branch_solver='gd'"),
    ("split", "test", "unknown setting 'split'"),
]


def _parts() -> list[Row]:
    """Objects in the places of others."""
    one = run("sinusoid")
    parts = {name: getattr(one, name) for name in ("family", "estimator", "lam", "optimizer", "pace")}
    found: list[Row] = []
    for name in ("family", "estimator", "optimizer", "pace"):
        found += refused(Composition, name, [None, 5, "sinusoid", type(parts[name])], **parts)
    found += refused(Composition, "lam", values.NEGATIVE[::4], **parts)
    found += refused(Composition, "inner_batch", given(values.NO_COUNTS)[::3], **parts)
    found += refused(Composition, "device", [None, 5, b"cpu"], **parts)
    found += refused(Pace, "seed", [None, -1, "0"]) + refused(Pace, "eval_split", ["dev", None, 1])
    for name in ("meta_steps", "meta_batch", "eval_every", "eval_tasks", "test_tasks", "checkpoint_every", "threads"):
        found += refused(Pace, name, values.NO_COUNTS[::3])
    found += refused(SETTINGS.variant, "changes", [None, 5, "method", ["method"]], where="Settings.variant")
    trainer = one.trainer()
    found += refused(trainer.evaluate, "split", ["dev", None, 5], where="Trainer.evaluate", count=2)
    found += refused(trainer.evaluate, "count", values.NO_COUNTS[::3], where="Trainer.evaluate", split="test")
    devices = ["gpu9", "meta", "cuda:77", "", "cpu:x"]
    return found + [
        Row(f"trainer(device={d!r})", lambda d=d: run(device=d).trainer(), "device .* can't be used here")
        for d in devices
    ]


def _files() -> list[Row]:
    found = refused(train, "out", NO_PATHS) + refused(
        train, "run", [None, 5, {"tasks": "sinusoid"}, "sinusoid", Settings]
    )
    for call, name in (
        (training.RunFolder.open, "path"),
        (training.read_variants, "path"),
        (training.RunFolder, "path"),
    ):
        found += refused(call, name, NO_PATHS, where=getattr(call, "__qualname__", "RunFolder"))
    found += [Row(f"resume({value!r})", lambda v=value: training.resume(v), "out must be a path") for value in NO_PATHS]
    missing = {"str": "/nowhere", "Path": Path("/nowhere")}
    found += [
        Row(f"RunFolder.open({n})", lambda p=p: training.RunFolder.open(p), "/nowhere is not a run folder")
        for n, p in missing.items()
    ]
    found += [
        Row(f"read_variants({n})", lambda p=p: training.read_variants(p), "variants /nowhere")
        for n, p in missing.items()
    ]
    found += [
        Row(f"check_run({n})", lambda p=p: training.check_run(p, [0]), "/nowhere is not a run folder")
        for n, p in missing.items()
    ]
    found += [
        Row(f"check_run({v!r})", lambda v=v: training.check_run(v, [0]), "must be")
        for v in (None, 5, {"tasks": "sinusoid"})
    ]
    found += refused(reports.write_report, "folder", [None, "run", Path("run"), 5])
    found += [
        Row(f"preset({v!r})", lambda v=v: training.preset(v), "unknown method")
        for v in (None, 5, ["maml"], "sgd", {}, b"maml")
    ]
    return found


def _plans() -> list[Row]:
    found = refused(plan, "seeds", [5, None, "01", {0: 1}, 0.5])
    found += [
        Row(f"plan(seeds={v})", lambda v=v: plan(seeds=v), r"seeds\[0\] must be an integer >= 0")
        for v in ([-1], [0.5], ["0"], [None])
    ]
    found += [
        Row(f"plan(seeds={v})", lambda v=v: plan(seeds=v), "seeds must be given, each once")
        for v in ([], [1, 1], (1, np.int64(1)))
    ]
    found += taken(plan, "seeds", [(np.arange(2), (0, 1)), ([0, 1], (0, 1)), (range(2), (0, 1))])
    found += refused(plan, "budget", values.NO_CHOICES[:4])
    found += refused(plan, "variants", [5, None, "ab", ["fomaml", "maml"], {"a": "fomaml", "b": "maml"}])
    found += refused(plan, "shared", [None, 5, {"tasks": "sinusoid"}, "sinusoid"])
    found += refused(comparison.compare, "plan", [None, 5, "plan", SETTINGS], out="/nowhere/out")
    found += refused(comparison.compare, "jobs", values.NO_COUNTS[::3], plan=plan(), out="/nowhere/out")
    found += refused(comparison.compare, "out", NO_PATHS, plan=plan())
    found += refused(Plan.of_trainers, "make", [None, 5, [plan], {"a": 1, "b": 2}], where="of_trainers", seeds=(0,))
    named = {
        "one": ({"a": {"method": "maml"}}, "at least two methods"),
        "a number": (VARIANTS | {5: {}}, "5 names a folder"),
        "a slash": (VARIANTS | {"a/b": {}}, "names a folder"),
        "seed": (VARIANTS | {"c": {"seed": 1}}, "seed and tasks are the same"),
        "typo": (VARIANTS | {"c": {"lamda": 1}}, "unknown setting 'lamda'"),
        "no name": (VARIANTS | {"c": {5: 1}}, "unknown setting 5"),
        "bad value": (VARIANTS | {"c": {"method": "maml", "lam": -1}}, "lam must be"),
    }
    return found + [Row(f"plan: {name}", lambda v=v: plan(variants=v), pattern) for name, (v, pattern) in named.items()]


def _json() -> list[Row]:
    pace = run("sinusoid").configuration()["run"]
    texts = {
        "no JSON": ("{", "not JSON"),
        "a list": ("[1]", "not the configuration of a run of metaprox: list"),
        "no tasks": ('{"lamda": 1}', "it names no tasks"),
        "unknown": ('{"tasks": "mnist1d", "lamda": 1}', "unknown.*lamda"),
        "a string": ('{"tasks": "mnist1d", "steps": "5"}', "steps must be an integer >= 1, got '5'"),
        "a float": ('{"tasks": "mnist1d", "steps": 2.5}', "steps must be an integer"),
        "NaN": ('{"tasks": "mnist1d", "lam": NaN}', "lam must be a finite number"),
        "a switch": ('{"tasks": "mnist1d", "residual_correction": "no"}', "residual_correction must be True or False"),
        "tasks as a number": ('{"tasks": 5}', "unknown tasks 5"),
        "tasks as a list": ('{"tasks": ["mnist1d"]}', "unknown tasks"),
        "version 2, unknown": (changed(lamda=1), "odd lamda"),
        "version 2, a string": (changed(lam="1"), "lam must be a finite number"),
        "version 2, a float": (changed(run=pace | {"meta_steps": 2.5}), "meta_steps must be an integer"),
        "version 2, null": (changed(run=None), "not the configuration of a run"),
        "version 2, no class": (changed(tasks={"ways": 5}), "not the configuration of a run.*class"),
        "version 2, no such class": (changed(method={"class": "sgd"}), "unknown method 'sgd'"),
        "version 2, a class of another kind": (changed(optimizer={"class": "json:JSONDecoder"}), "must be a dataclass"),
        "version 2, an odd field": (changed(optimizer={"class": "sgd", "gamma": 1}), "sgd has no setting gamma"),
        "version 2, a solver that is none": (changed(method={"class": "maml", "solver": 5}), "not the configuration"),
        "version 2, no solver": (changed(method={"class": "maml"}), "not the configuration"),
        "version 3": (changed(version=3), "version 3; this metaprox reads 1 and 2"),
        "a version in words": (changed(version="two"), "version 'two'; this metaprox reads 1 and 2"),
        "a version that is a list": (changed(version=[2]), r"version \[2\]; this metaprox reads 1 and 2"),
        "a version that is null": (changed(version=None), "version None; this metaprox reads 1 and 2"),
    }
    found = [Row(f"config.json: {name}", lambda t=t: read(t), pattern) for name, (t, pattern) in texts.items()]
    same = {
        "hidden as a list": ('{"tasks": "mnist1d", "hidden": [8]}', lambda: run(hidden=(8,))),
        "null": ('{"tasks": "mnist1d", "steps": null}', run),
        "version 2": (changed(), lambda: run("sinusoid")),
    }
    return found + [
        Row(f"config.json: {name}", lambda t=t: read(t), reference=wanted) for name, (t, wanted) in same.items()
    ]
