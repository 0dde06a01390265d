"""Settings of runs, their folders and comparisons."""

import json
from pathlib import Path

import numpy as np

from bad_inputs import values
from bad_inputs.rows import Row, refused, taken
from metaprox import training
from metaprox.training import Plan, TrainConfig

COUNTS = ("ways", "steps", "cg_steps", "eval_every", "eval_tasks", "test_tasks", "checkpoint_every", "threads")
OPTIONAL = ("shots", "queries", "meta_steps", "meta_batch", "branch_steps", "chunk_size")
CHOICES = ("tasks", "method", "solver", "scheme", "perturb", "optimizer", "eval_split", "backend", "compile")
NO_PATHS = [5, None, 0.5, b"x", ["a"], True, ""]
CONFIG = TrainConfig(tasks="sinusoid", meta_steps=1)
VARIANTS = {"a": {"method": "fomaml"}, "b": {"method": "maml"}}


def without_none(some):
    return [value for value in some if value is not None]


def plan(**changes):
    defaults = {"shared": CONFIG, "variants": VARIANTS, "seeds": (0,), "budget": "steps"}
    return Plan.of(**defaults | changes)


def train(**changes):
    """A run; only bad ones are asked for."""
    return training.train(**{"config": CONFIG, "out": Path("/nowhere/run")} | changes)


def read_text(text):
    return TrainConfig.from_json(text)


def rows() -> list[Row]:
    found: list[Row] = []
    for place, name in enumerate(COUNTS):
        method = {"method": "imaml"} if name == "cg_steps" else {}
        found += refused(TrainConfig, name, values.NO_COUNTS[place % 3 :: 3], **method)
        found += taken(TrainConfig, name, values.COUNTS[:2], **method)
    for place, name in enumerate(OPTIONAL):
        found += refused(TrainConfig, name, without_none(values.NO_COUNTS)[place % 3 :: 3])
    for place, name in enumerate(CHOICES):
        some = [v for v in values.NO_CHOICES if v is not None][place % 3 :: 3]
        found += refused(TrainConfig, name, [*some, "no"])
    for name in ("inner_lr", "branch_lr", "nu", "eps", "gamma"):
        found += refused(TrainConfig, name, without_none(values.NOT_POSITIVE)[::3])
    for name in ("lam", "damping", "lr"):
        found += refused(TrainConfig, name, without_none(values.NEGATIVE)[1::3])
    found += refused(TrainConfig, "momentum", values.NO_FRACTIONS)
    found += refused(TrainConfig, "seed", [-1, 1.5, "0", None, True, values.NAN, 2**64])
    found += refused(TrainConfig, "residual_correction", values.NO_SWITCHES)
    found += refused(TrainConfig, "hidden", [5, "88", {8: 8}, 0.5, True])
    found += [
        Row(f"TrainConfig(hidden={v})", lambda v=v: TrainConfig(hidden=v), r"hidden\[0\] must be an integer >= 1")
        for v in ([0], [1.5], ["8"], (None,), [[8]], (True,))
    ]
    found += refused(TrainConfig, "device", [5, None, 0.5, ["cpu"], b"cpu"]) + refused(
        TrainConfig, "data", without_none(NO_PATHS)
    )
    found += refused(TrainConfig, "encoder", ["half", 1, ["lora"], True]) + refused(
        TrainConfig, "adapt", ["body", 1, ["head"]]
    )
    found += taken(TrainConfig, "lam", values.NUMBERS) + taken(
        TrainConfig, "hidden", [([8, 8], (8, 8)), (np.array([8, 8]), (8, 8))]
    )
    return found + _files() + _plans() + _json()


def _files() -> list[Row]:
    found = refused(train, "out", NO_PATHS) + refused(
        train, "config", [None, 5, {"tasks": "sinusoid"}, "sinusoid", TrainConfig]
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
    found += refused(training.write_report, "folder", [None, "run", Path("run"), 5])
    found += [
        Row(f"preset({v!r})", lambda v=v: training.preset(v), "unknown method")
        for v in (None, 5, ["maml"], "sgd", {}, b"maml")
    ]
    devices = ["gpu9", "meta", "cuda:77", "", "cpu:x"]
    return found + [
        Row(f"build(device={d!r})", lambda d=d: training.build(TrainConfig(device=d)), "device .* can't be used here")
        for d in devices
    ]


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
    found += refused(training.compare, "plan", [None, 5, "plan", CONFIG], out="/nowhere/out")
    named = {
        "one": ({"a": {"method": "maml"}}, "at least two methods"),
        "a number": (VARIANTS | {5: {}}, "5 names a folder"),
        "a slash": (VARIANTS | {"a/b": {}}, "names a folder"),
        "seed": (VARIANTS | {"c": {"seed": 1}}, "seed and tasks are the same"),
        "typo": (VARIANTS | {"c": {"lamda": 1}}, "unknown settings.*lamda"),
        "bad value": (VARIANTS | {"c": {"method": "maml", "lam": -1}}, "lam must be"),
    }
    return found + [Row(f"plan: {name}", lambda v=v: plan(variants=v), pattern) for name, (v, pattern) in named.items()]


def _json() -> list[Row]:
    texts = {
        "no JSON": ("{", "not JSON"),
        "a list": ("[1]", "unknown list"),
        "unknown": ('{"lamda": 1}', "unknown.*lamda"),
        "a string": ('{"steps": "5"}', "steps must be an integer >= 1, got '5'"),
        "a float": ('{"steps": 2.5}', "steps must be an integer"),
        "null": ('{"steps": null}', "steps must be an integer"),
        "NaN": ('{"lam": NaN}', "lam must be a finite number"),
        "a switch": ('{"residual_correction": "no"}', "residual_correction must be True or False"),
    }
    found = [Row(f"from_json: {name}", lambda t=t: read_text(t), pattern) for name, (t, pattern) in texts.items()]
    text = json.dumps({"hidden": [8]})
    return [*found, Row("from_json: a tuple", lambda: read_text(text), reference=lambda: TrainConfig(hidden=(8,)))]
