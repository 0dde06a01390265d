"""The estimators' settings."""

import itertools

import numpy as np
import torch

import metaprox as mp
from bad_inputs import values
from bad_inputs.rows import Row, refused, taken

GD = mp.GradientDescent(0.5)
ALL = (mp.FOBMAML, mp.FOMAML, mp.IMAML, mp.MAML, mp.Reptile, mp.Tangent)


def without_none(some):
    return [value for value in some if value is not None]


def rows() -> list[Row]:
    found: list[Row] = []
    every = itertools.cycle(range(3))
    for method in ALL:
        third = next(every)
        found += refused(method, "solver", values.NO_SOLVERS, steps=3)
        found += refused(method, "compile", values.NO_SWITCHES[third::3], solver=GD, steps=3)
        found += refused(method, "backend", values.NO_CHOICES[third::3], solver=GD, steps=3)
        found += refused(method, "chunk_size", without_none(values.NO_COUNTS)[third::3], solver=GD, steps=3)
        found += taken(method, "steps", values.COUNTS, solver=GD)
        found += taken(method, "chunk_size", values.COUNTS, solver=GD, steps=3)
    found += refused(mp.FOBMAML, "steps", without_none(values.NO_COUNTS), solver=GD)
    found += _stopping()
    found += _branches()
    for name in ("cg_tol", "damping"):
        found += refused(mp.IMAML, name, values.NEGATIVE, solver=GD, steps=3)
        found += taken(mp.IMAML, name, values.NUMBERS, solver=GD, steps=3)
    found += refused(mp.IMAML, "cg_steps", values.NO_COUNTS, solver=GD, steps=3)
    return found + taken(mp.IMAML, "cg_steps", values.COUNTS, solver=GD, steps=3)


def _stopping() -> list[Row]:
    tol = {"tol": 0.5, "max_steps": 3}
    found = refused(mp.FOMAML, "tol", without_none(values.NOT_POSITIVE), solver=GD, max_steps=3)
    found += refused(mp.FOMAML, "max_steps", without_none(values.NO_COUNTS), solver=GD, tol=0.5)
    found += taken(mp.FOMAML, "tol", values.NUMBERS, solver=GD, max_steps=3)
    mixed = {
        "nothing": {},
        "both": tol | {"steps": 3},
        "tol alone": {"tol": 0.5},
        "max_steps alone": {"max_steps": 3},
        "steps and max_steps": {"steps": 3, "max_steps": 3},
    }
    found += [
        Row(f"FOMAML({name})", lambda s=settings: mp.FOMAML(GD, **s), r"steps=K, or tol=\.\.\. with max_steps")
        for name, settings in mixed.items()
    ]
    return [
        *found,
        Row("MAML(tol)", lambda: mp.MAML(GD, **tol), "MAML differentiates a fixed number of steps"),
        Row("FOBMAML()", mp.FOBMAML, "solver"),
        Row("FOBMAML(order)", lambda: mp.FOBMAML(GD, 3, order=2), "order"),
        Row("FOBMAML(positional scheme)", lambda: mp.FOBMAML(GD, 3, "symmetric"), "positional"),
    ]


def _branches() -> list[Row]:
    settings = {"solver": GD, "steps": 3}
    found = refused(mp.FOBMAML, "nu", without_none(values.NOT_POSITIVE), **settings)
    found += refused(mp.FOBMAML, "eps", without_none(values.NOT_POSITIVE), perturb="center", **settings)
    found += taken(mp.FOBMAML, "nu", values.NUMBERS, **settings)
    found += taken(mp.FOBMAML, "eps", values.NUMBERS, perturb="center", **settings)
    found += [
        Row(
            "FOBMAML(nu, eps)",
            lambda: mp.FOBMAML(**settings, nu=0.1, eps=0.1),
            "give nu=0.1, .* or eps=0.1, .* not both",
        ),
        Row(
            "FOBMAML(eps, loss)",
            lambda: mp.FOBMAML(**settings, perturb="loss", eps=0.1),
            "eps=0.1 is the step of perturb='center'",
        ),
        Row("FOBMAML(nu, center)", lambda: mp.FOBMAML(**settings, perturb="center", nu=0.1), "nu=0.1 is the step of"),
    ]
    found += refused(mp.FOBMAML, "scheme", [*values.NO_CHOICES, "forward ", 2], **settings)
    for name in ("estimate_error", "estimate_truncation", "offload"):
        found += refused(mp.FOBMAML, name, values.NO_SWITCHES, **settings)
        found += taken(mp.FOBMAML, name, values.SWITCHES, **settings)
    for method in (mp.FOBMAML, mp.Tangent):
        found += refused(method, "perturb", without_none(values.NO_CHOICES), **settings)
        found += refused(method, "start", values.NO_CHOICES, **settings)
        found += refused(method, "residual_correction", values.NO_SWITCHES, **settings)
        found += taken(method, "residual_correction", values.SWITCHES, **settings)
        found += refused(method, "branch_solver", without_none(values.NO_SOLVERS), **settings)
        found += refused(method, "branch_steps", without_none(values.NO_COUNTS), **settings)
        found += taken(method, "branch_steps", values.COUNTS, **settings)
    torch_solver = mp.TorchOptimizer(torch.optim.SGD)
    for method in (mp.MAML, mp.Tangent):
        found.append(
            Row(f"{method.__name__}(TorchOptimizer)", lambda m=method: m(torch_solver, 3), "does not allow.*FOBMAML")
        )
    return found + taken(mp.FOBMAML, "scheme", [(np.str_("forward"), "forward")], **settings)
