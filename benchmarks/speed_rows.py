"""What is timed: a row for each way to a meta-gradient, and what its meta-gradient is held to.

MAML and FO-MAML are plain ones, lam = 0, as their users have them; FO-B-MAML, iMAML and darts are proximal, lam = 0.5.
iMAML takes 5 steps of conjugate gradients. Where attention is fused, rows that take second derivatives run under
torch's math kernel, which has them; all others keep the fused one.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hand_methods
import metaprox as mp
import peer_methods
from peer_methods import Inner
from workloads import LAM, Workload

Work = Callable[[], None]  # adds to .grad of the workload's model
Prepare = Callable[[Workload, int], Work]

BUILD = "its source archive, built as benchmarks/peer_methods.py says"
HOW = {
    "higher": "pip install 'metaprox[peers]'",
    "torchopt": "pip install 'metaprox[peers]'",
    "learn2learn": BUILD,
    "betty-ml": "pip install --no-deps betty-ml==0.1.1, with pip older than 24.1",
    "parallel-metalearn": "pip install 'metaprox[peers]'",
}
MODULES = {
    "higher": "higher",
    "torchopt": "torchopt",
    "learn2learn": "learn2learn",
    "betty-ml": "betty",
    "parallel-metalearn": "metalearn",
}


@dataclass(frozen=True)
class Row:
    """A way to a meta-gradient.

    exactly: what it is to be in exact arithmetic, run in float64. limit: what its difference is for nu -> 0, by second
    derivatives in float64.
    """

    name: str
    prepare: Prepare
    package: str | None = None
    second_order: bool = False
    exactly: Prepare | None = None
    limit: Prepare | None = None

    @property
    def installed(self) -> bool:
        return self.package is None or version_of(self.package) is not None

    def work(self, load: Workload, steps: int) -> Work:
        if self.package:
            importlib.import_module(MODULES[self.package])
        run = self.prepare(load, steps)
        return with_second_derivatives(run) if self.needs_math_attention(load) else run

    def label(self, load: Workload) -> str:
        return f"{self.name}, math attention" if self.needs_math_attention(load) else self.name

    def needs_math_attention(self, load: Workload) -> bool:
        return self.second_order and not load.second_order


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def with_second_derivatives(run: Work) -> Work:
    def under_math() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            run()

    return under_math


def ours(method: Callable[..., mp.Estimator], lam: float = LAM, **settings: Any) -> Prepare:
    def prepare(load: Workload, steps: int) -> Work:
        problem = mp.ProximalProblem.from_module(load.model, load.loss, lam)
        meta = method(mp.GradientDescent(load.lr), steps, **settings)

        def run() -> None:
            meta.backward(problem, load.tasks)

        return run

    return prepare


def theirs(method: Callable[..., None], lam: float = 0.0, cg_steps: int = 0) -> Prepare:
    def prepare(load: Workload, steps: int) -> Work:
        inner = Inner(mp.GradientDescent(load.lr), steps, lam, cg_steps)
        return lambda: method(load.model, load.loss, load.tasks, inner)

    return prepare


def scaled(prepare: Prepare, factor: float) -> Prepare:
    def prepared(load: Workload, steps: int) -> Work:
        run = prepare(load, steps)

        def work() -> None:
            run()
            for p in load.model.parameters():
                p.grad.mul_(factor)

        return work

    return prepared


def gradient(prepare: Prepare, load: Workload, steps: int) -> list[Tensor]:
    """The meta-gradient, under the math kernel of attention."""
    load.model.zero_grad()
    with_second_derivatives(prepare(load, steps))()
    return gradients(load)


def gradients(load: Workload) -> list[Tensor]:
    return [p.grad.detach().clone() for p in load.model.parameters() if p.requires_grad]


SETTINGS: dict[str, Any] = {"residual_correction": True, "branch_steps": 5, "perturb": "center"}
FOBMAML = partial(ours, mp.FOBMAML, scheme="forward", eps=0.1, **SETTINGS)
FIRST: dict[str, Any] = {
    "exactly": FOBMAML(backend="loop"),
    "limit": ours(mp.Tangent, backend="loop", **SETTINGS),
}
NAIVE = hand_methods.fobmaml_by_equation_2
IMPLICIT: dict[str, Any] = {"second_order": True, "exactly": ours(mp.IMAML, backend="loop")}
UNROLLED: dict[str, Any] = {"second_order": True, "exactly": ours(mp.MAML, 0.0, backend="loop")}
PLAIN: dict[str, Any] = {"exactly": ours(mp.FOMAML, 0.0, backend="loop")}

COMPILED = "FO-B-MAML, compiled"
UNIT = Row("K support gradients, one by one (the unit)", theirs(partial(hand_methods.plain_gradients, query=False)))
FLOOR = Row("K + 1 gradients, one by one (floor)", theirs(hand_methods.plain_gradients))
OWN = "K + {further} + 1 gradients, one by one (its own)".format(further=SETTINGS["branch_steps"])
ROWS = [
    UNIT,
    FLOOR,
    Row(OWN, theirs(partial(hand_methods.plain_gradients, further=SETTINGS["branch_steps"]))),
    Row("K + 1 gradients, vmapped (floor)", theirs(hand_methods.plain_gradients_vmapped)),
    Row("FO-B-MAML, loop", FOBMAML(backend="loop"), **FIRST),
    Row("FO-B-MAML, vmap", FOBMAML(backend="vmap"), **FIRST),
    Row(COMPILED, FOBMAML(backend="vmap", compile=True), **FIRST),
    Row(
        "FO-B-MAML, equation (2) by hand",
        theirs(NAIVE, LAM),
        limit=theirs(hand_methods.derivative_of_equation_2, LAM),
    ),
    Row("FO-MAML, loop", ours(mp.FOMAML, 0.0, backend="loop"), **PLAIN),
    Row("FO-MAML, vmap", ours(mp.FOMAML, 0.0, backend="vmap"), **PLAIN),
    Row("FO-MAML, learn2learn", theirs(peer_methods.fomaml_by_learn2learn), "learn2learn", **PLAIN),
    Row("MAML, loop", ours(mp.MAML, 0.0, backend="loop"), **UNROLLED),
    Row("MAML, vmap", ours(mp.MAML, 0.0, backend="vmap"), **UNROLLED),
    Row("MAML, torch.func by hand", theirs(hand_methods.maml_by_torch_func), **UNROLLED),
    Row("MAML, mixed mode by hand", theirs(hand_methods.maml_by_mixed_mode), **UNROLLED),
    Row("MAML, higher", theirs(peer_methods.maml_by_higher), "higher", **UNROLLED),
    Row("MAML, TorchOpt", theirs(peer_methods.maml_by_torchopt), "torchopt", **UNROLLED),
    Row("MAML, learn2learn", theirs(peer_methods.maml_by_learn2learn), "learn2learn", **UNROLLED),
    Row("MAML, Betty", theirs(peer_methods.maml_by_betty), "betty-ml", **UNROLLED),
    Row(
        "MAML, parallel-metalearn, vmap",
        theirs(peer_methods.maml_by_parallel_metalearn),
        "parallel-metalearn",
        **UNROLLED,
    ),
    Row("iMAML, loop", ours(mp.IMAML, backend="loop"), **IMPLICIT),
    Row("iMAML, vmap", ours(mp.IMAML, backend="vmap"), **IMPLICIT),
    Row(
        "iMAML, TorchOpt",
        theirs(peer_methods.imaml_by_torchopt, LAM, 5),
        "torchopt",
        second_order=True,
        exactly=theirs(hand_methods.imaml_by_plain_cg, LAM, 5),
    ),
    Row(
        "darts, Betty",
        theirs(peer_methods.darts_by_betty, LAM),
        "betty-ml",
        exactly=scaled(ours(mp.FOMAML, LAM, backend="loop"), LAM),
    ),
]
