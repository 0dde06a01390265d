"""Peak memory of one meta-gradient against the size of the model and against the inner steps K.

One 5-way 1-shot task with 15 query examples, so 5 support examples; loop backend; gradient descent of 0.01, lam = 0.5;
FO-B-MAML symmetric with perturb="center", iMAML with 5 steps of conjugate gradients; float32, one thread.

cnn: four blocks of a 3x3 convolution of stride 1, batch norm and ReLU on 28x28 images without pooling, then a mean over
the image and a linear layer: activations outweigh parameters. Channels 16 to 250 at K = 10 (quick: 16 to 64), and K =
1 to 100 at 64 channels (quick: 1 to 30 at 32).

transformer: two encoder layers of width d with 4 heads and torch's fused attention on 64 tokens, which are given as
vectors, then a mean over the tokens and a linear layer: parameters weigh more than in the CNN. d = 128 to 768 at K = 10
(quick: 128 and 256), and K = 1 to 100 at d = 256 (quick: 1 to 30 at 128).

lora: the first layers of MiniLM, pretrained, with LoRA adapters of rank 8 and a head, which alone are learned, on
texts of 32 random tokens. 1 to 6 layers at K = 10 (quick: 2), and K = 1 to 100 at 2 layers (quick: 1 to 10). full: all
weights of the embeddings, 2 layers and the head, K = 10: parameters that a few texts use little of.

Where attention is fused, methods that differentiate a gradient are tried once: on the CPU the kernel's backward pass
has no derivative, and they raise.

Memory is that of tensors, from what torch's allocator records: the peak of ``backward``, which allocates ``.grad``,
beyond what was there before; it is exact and does not depend on values, and nothing is warmed up. It is compared with a
plain training step of the same model: forward and backward pass on the query, which is the larger of the two batches,
``.grad`` allocated, and SGD in place. Every method has a fresh process. FO-B-MAML with K = 1 takes less than with
any other K: its branches know their only gradient from the base, and evaluate none. Takes about six minutes on one core
(quick: one).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from math import log
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaprox.experiments.base import Experiment, Remember, Size
from metaprox.experiments.memory_jobs import PLAIN, Job, Row, fresh_process, model_of, parameters
from metaprox.reports import style

STEPS = 10
METHODS = ("maml", "imaml", "fomaml", "fobmaml")
SECOND_ORDER = ("maml", "imaml")
MIB = 2**20


@dataclass(frozen=True)
class Sweep:
    """Widths that are measured at K = STEPS, and numbers of steps at one of them."""

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    steps_width: int

    def points(self) -> list[tuple[int, int]]:
        """(width, K), each once."""
        return [(w, STEPS) for w in self.widths] + [(self.steps_width, k) for k in self.steps if k != STEPS]


SWEEPS: dict[Size, dict[str, Sweep]] = {
    "quick": {
        "cnn": Sweep((16, 32, 64), (1, 2, 10, 30), 32),
        "transformer": Sweep((128, 256), (1, 2, 10, 30), 128),
        "lora": Sweep((2,), (1, 2, 10), 2),
        "full": Sweep((2,), (10,), 2),
    },
    "full": {
        "cnn": Sweep((16, 32, 64, 128, 250), (1, 2, 10, 30, 100), 64),
        "transformer": Sweep((128, 256, 512, 768), (1, 2, 10, 30, 100), 256),
        "lora": Sweep((1, 2, 4, 6), (1, 2, 10, 30, 100), 2),
        "full": Sweep((2,), (10,), 2),
    },
}
NAMES = {"cnn": "CNN", "transformer": "Transformer", "lora": "MiniLM with LoRA"}  # those that are drawn
UNITS = {"cnn": "channels", "transformer": "width d", "lora": "layers"}
WITH_WIDTH = {"cnn": "{} channels", "transformer": "d = {}", "lora": "{} layers", "full": "{} layers"}
REFERENCE_WIDTH = {"cnn": 128, "transformer": 256, "lora": 2, "full": 2}
LEAST_STEPS = 2  # At K = 1 the branches of FO-B-MAML evaluate no gradient.


def run(size: Size, seed: int, remember: Remember) -> dict[str, Any]:
    sweeps = SWEEPS[size]
    rows: list[Row] = []
    for method in (PLAIN, *METHODS):
        jobs = [Job(method, m, *point, seed) for m, sweep in sweeps.items() for point in _points(method, m, sweep)]
        with ExitStack() as stack:
            there = cache(partial(stack.enter_context, fresh_process()))  # started when first asked
            rows += [asdict(job) | remember(job.part, partial(_ask, there, job)) for job in jobs]
    sizes = {m: {str(w): parameters(model_of(m, w, seed)) for w in sweep.widths} for m, sweep in sweeps.items()}
    return {"parameters": sizes, "sweeps": {model: asdict(sweep) for model, sweep in sweeps.items()}, "rows": rows}


def _ask(there: Callable[[], Callable[[Job], Row]], job: Job) -> Row:
    return there()(job)


def _points(method: str, model: str, sweep: Sweep) -> list[tuple[int, int]]:
    if method == PLAIN:
        return [(width, 0) for width in sweep.widths]
    if model != "cnn" and method in SECOND_ORDER:  # fused attention
        return [(sweep.steps_width, STEPS)]
    return sweep.points()


def draw(results: dict[str, Any]) -> dict[str, Figure]:
    """A row of panels for each model: against its width, and against K."""
    figure = Figure(figsize=(10, 10.5), layout="constrained")
    figure.suptitle(
        "Memory of FO-B-MAML does not grow with inner steps, and it runs where MAML cannot", x=0.01, ha="left"
    )
    for (left, right), model in zip(figure.subplots(len(NAMES), 2, sharey="row"), NAMES, strict=True):
        sweep = results["sweeps"][model]
        for method in (*METHODS, PLAIN):
            _line(left, _against_width(results, model, method), method)
            _line(right, _against_steps(results, model, method), method)
        _axes(left, f"{NAMES[model]}, K = {STEPS}", UNITS[model], sweep["widths"])
        _axes(
            right, f"{NAMES[model]}, {WITH_WIDTH[model].format(sweep['steps_width'])}", "inner steps K", sweep["steps"]
        )
        left.set_ylabel("peak memory (MiB)")
        _say_what_failed(right, results, model)
    first = figure.axes[0]
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS) + 1, frameon=False)
    return {"memory": figure}


def _line(axes: Axes, points: dict[int, float], method: str) -> None:
    x, y = list(points), list(points.values())
    if method == PLAIN:
        axes.plot(x, y, ":", color=style.GREY, linewidth=2, label="plain training step", zorder=0)
    elif points:
        look = style.METHODS[method] | {"markevery": None}
        axes.plot(x, y, label=style.method_name(method), **look)


def _axes(axes: Axes, title: str, name: str, ticks: list[int]) -> None:
    style.tidy(axes, title)
    style.log_scale(axes)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)


def _say_what_failed(axes: Axes, results: dict[str, Any], model: str) -> None:
    failed = [style.method_name(row["method"]) for row in results["rows"] if row["model"] == model and row["error"]]
    if failed:
        note = f"{' and '.join(failed)} cannot run: the fused\nattention kernel has no second derivative"
        axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize="small")


def _peaks(results: dict[str, Any], model: str, method: str) -> dict[tuple[int, int], float]:
    """(width, K) -> MiB, where it could be measured."""
    rows = [row for row in results["rows"] if row["model"] == model and row["method"] == method]
    return {(row["width"], row["steps"]): row["peak_bytes"] / MIB for row in rows if row["peak_bytes"] is not None}


def _against_width(results: dict[str, Any], model: str, method: str) -> dict[int, float]:
    steps = 0 if method == PLAIN else STEPS
    return {width: mib for (width, k), mib in _peaks(results, model, method).items() if k == steps}


def _against_steps(results: dict[str, Any], model: str, method: str) -> dict[int, float]:
    sweep, peaks = results["sweeps"][model], _peaks(results, model, method)
    keys = {k: (sweep["steps_width"], 0 if method == PLAIN else k) for k in sweep["steps"]}
    return {k: peaks[key] for k, key in keys.items() if key in peaks}


def table(results: dict[str, Any]) -> str:
    """As Markdown: MiB, and in brackets the ratio to the plain training step."""
    names = [style.method_name(method) for method in METHODS]
    lines = [f"| model | size | K | plain step | {' | '.join(names)} |", "|---" * (len(names) + 4) + "|"]
    for model, sweep in results["sweeps"].items():
        plain = _against_width(results, model, PLAIN)
        for width, steps in Sweep(**sweep).points():
            peaks = [_peaks(results, model, method).get((width, steps)) for method in METHODS]
            cells = ["cannot run" if peak is None else f"{peak:.1f} ({peak / plain[width]:.2f})" for peak in peaks]
            lines.append(f"| {model} | {width} | {steps} | {plain[width]:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(results: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for model in results["sweeps"]:
        flat = [mib for k, mib in _against_steps(results, model, "fobmaml").items() if k >= LEAST_STEPS]
        if len(flat) > 1:
            numbers[f"{model}: FO-B-MAML, largest / smallest peak over K >= {LEAST_STEPS}"] = max(flat) / min(flat)
        plain, peaks = (_against_width(results, model, method) for method in (PLAIN, "fobmaml"))
        width = min(plain, key=lambda width: abs(width - REFERENCE_WIDTH[model]))
        name = f"{model}, {WITH_WIDTH[model].format(width)}: FO-B-MAML / plain training step"
        numbers[name] = peaks[width] / plain[width]
    unrolled = list(_against_steps(results, "cnn", "maml").items())
    (k, peak), (last_k, last) = unrolled[-2:]
    numbers["cnn: MAML, slope of log peak against log K at large K"] = log(last / peak) / log(last_k / k)
    per_step = [(b - a) / (k_b - k_a) for (k_a, a), (k_b, b) in pairwise(unrolled)]
    numbers["cnn: MAML, memory for a further step, at large K / at small K"] = per_step[-1] / per_step[0]
    for method in SECOND_ORDER:
        ran = float(bool(_peaks(results, "transformer", method)))
        numbers[f"transformer: {style.method_name(method)} runs (0: no, 1: yes)"] = ran
    return numbers


CLAIM = "The memory of FO-B-MAML does not grow with inner steps, and it runs where MAML cannot: through fused attention"
EXPERIMENT = Experiment("memory", CLAIM, run, draw, measure, table)
