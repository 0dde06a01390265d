"""How accurate is a meta-gradient for its time? FO-B-MAML against iMAML, TorchOpt's and ours.

Both approximate grad F of the proximal problem. The error is relative, against a reference: ours of iMAML after a solve
to a gradient of 1e-4 and up to 200 steps of conjugate gradients. The time is in units of one plain support gradient for
each task, all timed in turn, in ``--rounds`` rounds after one that is not counted, so that ratios hold while the
machine's speed drifts; medians. Processor time, float32, one thread.

Along each line the work grows: base steps K, and for each K branch steps of FO-B-MAML (Anderson, forward with residual
correction, perturb="center", the default eps) or steps of conjugate gradients. The base is gradient descent for all;
"Anderson base" has Anderson in its place, which TorchOpt's users would have to write, with backend="auto". One gradient
of the query loss, which no method here does without, is timed beside them. Attention runs by torch's math kernel, for
the fused ones have no second derivatives: in every method, so that the times compare.

The workloads are those of workloads.py with changes, because grad F must exist to be compared with. With ReLU inner
solves come to rest on kinks, and with lam = 0.5 H + lam I can have negative eigenvalues where K steps end, so that no
method that solves with it is near grad F. Here they have GELU; sinusoid and transformer have lam = 10; conv keeps
lam = 0.5 but has no normalization, whose statistics of five images bend the loss beyond any such lam, and an inner
step of 1. "posed" in the results has both: the gradient left after K = 20 and 200 steps, and the least and largest Ritz
value of H + lam I after K, from 30 steps of Lanczos. Ten sinusoids, four tasks of conv, one of transformer.

Writes results.json, table.md and error_cost.png. Workloads that are not run again keep their numbers in results.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import metaprox as mp
import peer_methods
import workloads
from hand_methods import plain_gradients
from measures import processor_seconds, provenance, relative_error
from metaprox.data.batch import TaskBatch
from metaprox.losses.second_order import flat_losses
from metaprox.reports import style
from metaprox.vectors.parameters import Parameters
from workloads import LAM, STEPS, Workload

TARGET, POSED_STEPS = 0.05, 20
SMOOTH_LAM = {"sinusoid": 10.0, "conv": 0.5, "transformer": 10.0}
TASKS = {"sinusoid": 10, "conv": 4, "transformer": 1}
BASE = {"sinusoid": (20, 40, 60), "conv": (2, 3, 5), "transformer": (10, 15, 20)}
ANDERSON_BASE = {"sinusoid": (5, 10), "conv": (2, 3), "transformer": (3, 5)}
BRANCH_STEPS = {"sinusoid": (4, 6, 8), "conv": (2, 3, 4), "transformer": (3, 4, 6)}
CG_STEPS = {"sinusoid": (3, 4, 6), "conv": (1, 2, 4), "transformer": (2, 3, 6)}
LR = {"sinusoid": 0.01, "conv": 1.0, "transformer": 0.01}
COMPILED = {"backend": "vmap", "compile": True}
BACKENDS = {"loop": {"backend": "loop"}, "vmap": {"backend": "vmap"}, "compiled": COMPILED}
ANDERSON = {"Anderson base": {}, "Anderson base, compiled": COMPILED}
LOOKS = {
    "FO-B-MAML, loop": ("o", "-", style.BLUE),
    "FO-B-MAML, vmap": ("D", "-", style.LIGHT_BLUE),
    "FO-B-MAML, compiled": ("v", "-", style.BLACK),
    "FO-B-MAML, Anderson base": ("P", "--", style.PURPLE),
    "FO-B-MAML, Anderson base, compiled": ("*", "--", style.BLACK),
    "iMAML, ours, loop": ("s", "-", style.GREEN),
    "iMAML, ours, vmap": ("X", "-", style.GREY),
    "iMAML, TorchOpt": ("^", "-", style.ORANGE),
}


@dataclass(frozen=True)
class Job:
    """A method with some amount of work; ``gradient`` is called anew each time it is timed."""

    method: str
    steps: int
    inner: int
    gradient: Callable[[], dict[str, Tensor]]


def smooth(module: nn.Module) -> nn.Module:
    """ReLU -> GELU, and no batch norm; in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.GELU())
        elif isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            smooth(child)
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation = nn.functional.gelu
    return module


def workload(name: str, *, as_it_is: bool = False) -> Workload:
    load = workloads.workload(name, 0)
    load = replace(load, tasks=first_tasks(load.tasks, TASKS[name]))
    return load if as_it_is else replace(load, model=smooth(load.model), lr=LR[name])


def jobs(name: str, load: Workload) -> Iterator[Job]:
    problem = mp.ProximalProblem.from_module(load.model, load.loss, SMOOTH_LAM[name])
    descent, anderson = mp.GradientDescent(load.lr), mp.Anderson(load.lr)
    branches: dict[str, Any] = {"scheme": "forward", "residual_correction": True, "perturb": "center"}
    branches |= {"branch_solver": anderson}

    def job(method: str, steps: int, inner: int, meta: mp.Estimator) -> Job:
        return Job(method, steps, inner, lambda: meta(problem, problem.live_parameters(), load.tasks).grad)

    for steps in BASE[name]:
        for label, where in BACKENDS.items():
            for inner in BRANCH_STEPS[name]:
                meta = mp.FOBMAML(descent, steps, branch_steps=inner, **branches, **where)
                yield job(f"FO-B-MAML, {label}", steps, inner, meta)
            for inner in CG_STEPS[name] if label != "compiled" else ():
                yield job(f"iMAML, ours, {label}", steps, inner, mp.IMAML(descent, steps, cg_steps=inner, **where))
        for inner in CG_STEPS[name]:
            yield Job("iMAML, TorchOpt", steps, inner, lambda s=steps, i=inner: torchopt_imaml(name, load, s, i))
    for steps in ANDERSON_BASE[name]:
        for label, where in ANDERSON.items():
            for inner in BRANCH_STEPS[name]:
                meta = mp.FOBMAML(anderson, steps, branch_steps=inner, **branches, **where)
                yield job(f"FO-B-MAML, {label}", steps, inner, meta)


def torchopt_imaml(name: str, load: Workload, steps: int, cg_steps: int) -> dict[str, Tensor]:
    """By name of the parameter."""
    load.model.zero_grad()
    inner = peer_methods.Inner(mp.GradientDescent(load.lr), steps, SMOOTH_LAM[name], cg_steps)
    peer_methods.imaml_by_torchopt(load.model, load.loss, load.tasks, inner)
    return {name: p.grad for name, p in load.model.named_parameters()}


def reference(name: str, load: Workload) -> mp.MetaGradient:
    problem = mp.ProximalProblem.from_module(load.model, load.loss, SMOOTH_LAM[name])
    solver = mp.AdaptiveGradientDescent(load.lr)
    meta = mp.IMAML(solver, tol=1e-4, max_steps=1000, cg_steps=200, cg_tol=1e-4, backend="loop")
    return meta(problem, problem.live_parameters(), load.tasks)


def measure(name: str, rounds: int) -> dict[str, Any]:
    load = workload(name)
    truth = reference(name, load)
    ten, none = (peer_methods.Inner(mp.GradientDescent(load.lr), steps) for steps in (10, 0))

    def unit() -> None:
        plain_gradients(load.model, load.loss, load.tasks, ten, query=False)

    def query() -> None:
        plain_gradients(load.model, load.loss, load.tasks, none, query=True)

    work = list(jobs(name, load))
    errors = [relative_error(job.gradient().values(), truth.grad.values()) for job in work]
    times: list[list[float]] = [[] for _ in work]
    units, queries = [], []
    for _ in range(rounds):
        units.append(processor_seconds(unit) / 10)
        queries.append(processor_seconds(query))
        for job, own in zip(work, times, strict=True):
            own.append(processor_seconds(job.gradient))
    base = statistics.median(units)
    return {
        "reference": {
            "base_residual": float(truth.info.base_residual.max()),
            "steps": int(truth.info.base_steps.max()),
            "linear_residual": float(truth.info.linear_residual.max()),
        },
        "rounds": rounds,
        "unit_seconds": base,
        "query": statistics.median(queries) / base,
        "rows": [
            {
                "method": job.method,
                "steps": job.steps,
                "inner": job.inner,
                "error": error,
                "time": statistics.median(own) / base,
                "quartiles": [q / base for q in statistics.quantiles(own, n=4)],
            }
            for job, error, own in zip(work, errors, times, strict=True)
        ],
    }


def posed(name: str, lam: float, *, as_it_is: bool) -> dict[str, Any]:
    """Whether grad F is there to be had, by the first task."""
    load = workload(name, as_it_is=as_it_is)
    problem, first = mp.ProximalProblem.from_module(load.model, load.loss, lam), first_tasks(load.tasks, 1)
    params = problem.live_parameters()
    solved = mp.FOMAML(mp.GradientDescent(load.lr), POSED_STEPS, backend="loop")(problem, params, first)
    longer = mp.IMAML(mp.AdaptiveGradientDescent(load.lr), 200, cg_steps=1, backend="loop")(problem, params, first)
    assert solved.adapted is not None
    parameters = Parameters.of(params, problem.adapted_names)
    y = parameters.adapted.flatten({key: value[0] for key, value in solved.adapted.items()}).requires_grad_()
    inner, _ = flat_losses(problem, parameters)
    slope = torch.autograd.grad(inner(y, TaskBatch.of(first).one(0).support)[0], y, create_graph=True)[0]
    least, largest = ritz_values(lambda p: torch.autograd.grad(slope, y, p, retain_graph=True)[0], len(y))
    return {
        "lam": lam,
        "residual": float((slope + lam * (y - parameters.x)).detach().norm()),
        "residual_after_200": float(longer.info.base_residual[0]),
        "least_ritz_value": lam + least,
        "largest_ritz_value": lam + largest,
    }


def first_tasks(tasks: mp.Task, count: int) -> mp.Task:
    support, query = (tuple(leaf[:count] for leaf in part) for part in tasks)
    return mp.Task(support, query)


def ritz_values(product: Callable[[Tensor], Tensor], size: int, steps: int = 30) -> tuple[float, float]:
    """The least and the largest of the Lanczos matrix, with full reorthogonalization, twice."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    basis = (vector / vector.norm())[None]
    diagonal, beside = [], []
    for _ in range(steps):
        image = product(basis[-1])
        diagonal.append(image @ basis[-1])
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        beside.append(image.norm())
        basis = torch.cat([basis, (image / beside[-1])[None]])
    off = torch.stack(beside[:-1])
    values = torch.linalg.eigvalsh(torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1))
    return float(values[0]), float(values[-1])


def fastest(rows: list[dict[str, Any]], method: str) -> dict[str, Any] | None:
    """The row of the least time with an error of at most TARGET."""
    good = [row for row in rows if row["method"] == method and row["error"] <= TARGET]
    return min(good, key=lambda row: row["time"]) if good else None


def markdown(results: dict[str, Any]) -> str:
    lines = ["| workload | method | time to 5 % | error | K | branch or CG steps | least error |", "|---" * 7 + "|"]
    for name, found in results["workloads"].items():
        lines.append(f"| {name} | one query gradient | {found['query']:.1f} |  |  |  |  |")
        for method in LOOKS:
            rows = [row for row in found["rows"] if row["method"] == method]
            least = min(row["error"] for row in rows)
            best = fastest(rows, method)
            cells = ["not reached", "", "", ""]
            if best:
                cells = [f"{best['time']:.1f}", f"{100 * best['error']:.1f} %", f"{best['steps']}", f"{best['inner']}"]
            lines.append(f"| {name} | {method} | {' | '.join(cells)} | {100 * least:.1f} % |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    found = results["workloads"]
    for axes, (name, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        style.tidy(axes, name)
        for method in LOOKS:
            _draw_method(axes, method, [row for row in one["rows"] if row["method"] == method])
        axes.axhline(TARGET, color=style.GREY, linewidth=0.8)
        axes.axvline(one["query"], color=style.GREY, linewidth=0.8, linestyle=":", label="one query gradient")
        style.log_scale(axes, "x")
        style.log_scale(axes)
        axes.set_xlabel("time, in plain gradients of all tasks")
    figure.axes[0].set_ylabel("relative error of the meta-gradient")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize="small", loc="outside lower center", ncols=5)
    return figure


def _draw_method(axes: Axes, method: str, rows: list[dict[str, Any]]) -> None:
    """A line for each K."""
    marker, line, color = LOOKS[method]
    for index, steps in enumerate(sorted({row["steps"] for row in rows})):
        own = [row for row in rows if row["steps"] == steps]
        look = {"color": color, "linestyle": line, "marker": marker, "markersize": 4, "linewidth": 0.9}
        label = method if index == 0 else None
        axes.plot([row["time"] for row in own], [row["error"] for row in own], label=label, **look)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--workloads", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, 2 or more (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"posed": {}, "workloads": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    if file.exists():
        results = json.loads(file.read_text())
    results |= provenance("torchopt") | {"threads": 1, "lam": SMOOTH_LAM}
    with sdpa_kernel(SDPBackend.MATH):
        for name in options.workloads:
            asked, changed = posed(name, LAM, as_it_is=True), posed(name, SMOOTH_LAM[name], as_it_is=False)
            results["posed"][name] = {"as it is": asked, "here": changed}
            results["workloads"][name] = measure(name, options.rounds)
            file.write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(results)
    print(table)
    (options.out / "table.md").write_text(table)
    draw(results).savefig(options.out / "error_cost.png", dpi=120)


if __name__ == "__main__":
    main()
