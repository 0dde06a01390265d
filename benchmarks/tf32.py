"""What convolutions in TF32, which a GPU takes unless told otherwise, do to meta-gradients: on the CPU, by rounding.

The conv net and tasks of workloads.py, with ReLU and with SiLU in its place; K = 5, lam = 0.5. What goes into each
product of a convolution, forward and backward, is rounded to the 10 bits of TF32; sums are float32's.
||g - g64|| / ||g64||, where g64 is by the same method and step in float64: median over seeds, and extremes.

Prints a table, and writes results.json and table.md. A minute of two cores.
"""

import argparse
import copy
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

import metaprox as mp
from measures import provenance, relative_error
from metaprox.reports import style
from speed_rows import gradient, ours
from workloads import Workload, workload

STEPS, BITS = 5, 13  # of the 23 of float32, those that TF32 does not have
FORWARD: dict[str, Any] = {"scheme": "forward", "residual_correction": True}
METHODS = {
    "FO-MAML": ours(mp.FOMAML, backend="loop"),
    "FO-B-MAML, default": ours(mp.FOBMAML, backend="loop"),
    "FO-B-MAML, forward": ours(mp.FOBMAML, backend="loop", **FORWARD),
    "FO-B-MAML, forward, eps = 0.1": ours(mp.FOBMAML, backend="loop", eps=0.1, **FORWARD),
}
PRECISIONS = ("float32", "TF32")


def rounded(x: Tensor) -> Tensor:
    """To the nearest number of 10 bits."""
    return (x.contiguous().view(torch.int32) + (1 << BITS - 1) & -(1 << BITS)).view(torch.float32)


class InTF32(torch.autograd.Function):
    """A convolution and its derivatives of rounded factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: tuple[Any, Any]) -> Tensor:
        ctx.how, (x, weight) = how, map(rounded, (x, weight))
        ctx.save_for_backward(x, weight)
        return nn.functional.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        factor = rounded(grad)
        of_x = conv2d_input(x.shape, weight, factor, *ctx.how)
        return of_x, conv2d_weight(x, weight.shape, factor, *ctx.how), grad.sum((0, 2, 3)), None


class RoundedConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        found: Tensor = InTF32.apply(input, self.weight, self.bias, (self.stride, self.padding))
        return found


def case(activation: type[nn.Module], seed: int) -> Workload:
    load = workload("conv", seed)
    return replace(load, model=nn.Sequential(*(activation() if isinstance(m, nn.ReLU) else m for m in load.model)))


def in_tf32(load: Workload) -> Workload:
    model = copy.deepcopy(load.model)
    for module in model:
        if isinstance(module, nn.Conv2d):
            module.__class__ = RoundedConv2d
    return replace(load, model=model)


def errors(load: Workload) -> list[dict[str, Any]]:
    """A row for each method and precision."""
    found = []
    for name, prepare in METHODS.items():
        truth = gradient(prepare, load.double(), STEPS)
        for precision, one in zip(PRECISIONS, (load, in_tf32(load)), strict=True):
            error = relative_error(gradient(prepare, one, STEPS), truth)
            found.append({"method": name, "precision": precision, "error": error})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for activation in dict.fromkeys(row["activation"] for row in rows):
        for method in METHODS:
            line = [activation, method]
            for precision in PRECISIONS:
                wanted = {"activation": activation, "method": method, "precision": precision}
                these = [row["error"] for row in rows if wanted.items() <= row.items()]
                line.append(f"{statistics.median(these):.0e} ({min(these):.0e} to {max(these):.0e})")
            cells.append(line)
    return style.markdown(["activation", "method", *PRECISIONS], cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--seeds", type=int, default=5, help="of weights and tasks (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = []
    for activation in (nn.ReLU, nn.SiLU):
        for seed in range(options.seeds):
            found = errors(case(activation, seed))
            rows += [{"activation": activation.__name__, "seed": seed} | row for row in found]
    print(table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps({**provenance(), "rows": rows}, indent=1) + "\n")
    (options.out / "table.md").write_text(table(rows))


if __name__ == "__main__":
    main()
