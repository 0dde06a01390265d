"""Which nu is right when the losses run in bfloat16? The error of the meta-gradient for each scheme and step.

A SiLU MLP 4-16-16-1, 4 tasks of 16 + 16 points of a random sine ridge, lam = 0.5, 20 steps of gradient descent of 0.1.
The model runs under ``torch.autocast("cpu", torch.bfloat16)`` inside the loss; parameters, inner solutions and their
difference are float32. The truth is ``mp.Tangent`` in float64 with the same solve: the error is that of the difference
and of the precision, and not that of 20 steps. ||g - truth|| / ||truth||, median over seeds.

The step is nu for perturb="loss" and eps for "center". (machine epsilon)^(1/(p+1)) for a scheme of order p balances
truncation and rounding. The first table has it for both dtypes, and a grid of steps; the second the default step after
20 and 200 steps, which sees that the losses are coarser, and what ``info.rounding_error`` says of it.

Prints both tables, and writes results.json and table.md.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

import metaprox as mp
from measures import provenance
from metaprox.estimators.stencil import stencil
from metaprox.losses.choose import BackendName
from metaprox.models import mean_squared_error

torch.set_num_threads(1)
LAM = 0.5
SOLVER, STEPS = mp.GradientDescent(0.1), 20
SCHEMES = ("forward", "symmetric", "central4")
PERTURB = ("loss", "center")
GRID = (0.01, 0.03, 0.1, 0.3, 1.0)


def default_step(scheme: str, dtype: torch.dtype) -> float:
    """The step that balances the truncation of ``scheme`` and the rounding of ``dtype``."""
    return stencil(scheme).default_step(torch.finfo(dtype).eps)


def autocast_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The model in bfloat16, and the loss of its outputs in float32."""
    inputs, targets = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(inputs)
    return nn.functional.mse_loss(outputs.float(), targets)


def case(seed: int) -> tuple[nn.Module, mp.Task]:
    """A model and 4 tasks, functions of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 1))
        inputs, ridges = torch.randn(2, 4, 16, 4), torch.randn(4, 4, 1)
    return model, mp.Task(*zip(inputs, (inputs @ ridges).sin(), strict=True))


@functools.cache
def truth(seed: int, perturb: str, steps: int = STEPS) -> Tensor:
    model, tasks = case(seed)
    wide = mp.Task(*(tuple(leaf.double() for leaf in part) for part in tasks))
    problem = mp.ProximalProblem.from_module(model.double(), mean_squared_error, LAM)
    return flat(mp.Tangent(SOLVER, steps, perturb=perturb)(problem, problem.live_parameters(), wide))


def flat(result: mp.MetaGradient) -> Tensor:
    return torch.cat([g.flatten().double() for g in result.grad.values()])


def error(
    seed: int, scheme: str, perturb: str, step: float, *, autocast: bool = True, backend: BackendName = "vmap"
) -> float:
    """Relative error of FO-B-MAML in float32, its model in bfloat16 or not; infinite where the branches diverge."""
    model, tasks = case(seed)
    problem = mp.ProximalProblem.from_module(model, autocast_loss if autocast else mean_squared_error, LAM)
    name = "nu" if perturb == "loss" else "eps"
    meta = mp.FOBMAML(SOLVER, STEPS, scheme=scheme, perturb=perturb, backend=backend, **{name: step})
    try:
        estimate = flat(meta(problem, problem.live_parameters(), tasks))
    except mp.NonFiniteError:
        return math.inf
    exact = truth(seed, perturb)
    return float((estimate - exact).norm() / exact.norm())


def by_default(seed: int, scheme: str, perturb: str, steps: int, *, autocast: bool) -> tuple[float, float]:
    """The relative error at the default step, and the median over tasks of what is said of rounding."""
    model, tasks = case(seed)
    problem = mp.ProximalProblem.from_module(model, autocast_loss if autocast else mean_squared_error, LAM)
    out = mp.FOBMAML(SOLVER, steps, scheme=scheme, perturb=perturb)(problem, problem.live_parameters(), tasks)
    exact = truth(seed, perturb, steps)
    return float((flat(out) - exact).norm() / exact.norm()), float(out.info.rounding_error.median())


def defaults(seeds: list[int]) -> list[dict[str, object]]:
    """A row for each number of steps, place of the perturbation, scheme and precision, float32 first."""
    rows = []
    for steps, perturb, scheme in itertools.product((STEPS, 10 * STEPS), PERTURB, SCHEMES):
        for autocast in (False, True):
            found = [by_default(seed, scheme, perturb, steps, autocast=autocast) for seed in seeds]
            errors, said = zip(*found, strict=True)
            row = {"steps": steps, "perturb": perturb, "scheme": scheme, "autocast": autocast}
            medians = {"median": statistics.median(errors), "median_said": statistics.median(said)}
            rows.append(row | {"errors": errors, "rounding_said": said} | medians)
    return rows


def markdown_of_defaults(rows: list[dict[str, object]]) -> str:
    """One line for each number of steps, place of the perturbation and scheme."""
    lines = [["steps", "perturb", "scheme", "all float32", "bfloat16", "of which rounding, by info"]]
    for wide, narrow in zip(rows[::2], rows[1::2], strict=True):
        cells = [cell(wide["median"]), cell(narrow["median"]), cell(narrow["median_said"])]
        lines.append([str(narrow["steps"]), narrow["perturb"], narrow["scheme"], *cells])
    joined = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([joined[0], "|" + "---|" * len(lines[0]), *joined[1:]])


def measure(seeds: list[int]) -> list[dict[str, object]]:
    """A row for each scheme, place of the perturbation, step and precision, with the errors of all seeds."""
    rows = []
    for perturb in PERTURB:
        for scheme in SCHEMES:
            narrow, single = (default_step(scheme, dtype) for dtype in (torch.bfloat16, torch.float32))
            for autocast, steps in ((False, (single,)), (True, (single, narrow, *GRID))):
                for step in steps:
                    errors = [error(seed, scheme, perturb, step, autocast=autocast) for seed in seeds]
                    row = {"perturb": perturb, "scheme": scheme, "autocast": autocast, "step": step}
                    rows.append(row | {"errors": errors, "median": statistics.median(errors)})
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    """One line for each scheme and place of the perturbation."""
    header = ["perturb", "scheme", "all float32, its balance", "bfloat16, float32's balance", "bfloat16, its own"]
    lines = [header + [f"{step:g}" for step in GRID]]
    for perturb in PERTURB:
        for scheme in SCHEMES:
            mine = [row for row in rows if (row["perturb"], row["scheme"]) == (perturb, scheme)]
            defaults = [f"{cell(row['median'])} at {row['step']:.2g}" for row in mine[:3]]
            lines.append([perturb, scheme, *defaults, *(cell(row["median"]) for row in mine[3:])])
    joined = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([joined[0], "|" + "---|" * len(lines[0]), *joined[1:]])


def cell(value: float) -> str:
    if value > 10:
        return "diverges" if math.isinf(value) else "> 1000 %"
    return f"{100 * value:.0f} %" if value >= 1 else f"{100 * value:.2g} %"


def finite(row: dict[str, object]) -> dict[str, object]:
    """For JSON, which has no infinity: None where branches diverged."""
    errors = [None if math.isinf(value) else value for value in row["errors"]]
    return row | {"errors": errors, "median": None if math.isinf(row["median"]) else row["median"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--seed", type=int, default=0, help="first seed of models and tasks (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    options = parser.parse_args(arguments)
    seeds = list(range(options.seed, options.seed + options.seeds))
    rows = measure(seeds)
    found = defaults(seeds)
    table = f"{markdown(rows)}\n\n{markdown_of_defaults(found)}"
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"seeds": seeds, **provenance(), "rows": [finite(row) for row in rows], "defaults": found}
    (options.out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.out / "table.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
