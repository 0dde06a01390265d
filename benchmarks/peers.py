"""Do our meta-gradients agree with those of code written by others? MAML and iMAML against higher and TorchOpt.

Three random 5-way tasks of 3 shots and 5 queries per class, float64. Ours and theirs start from the same parameters,
with the same tasks, inner steps and step size; compared is the mean over tasks of the meta-gradient of the query loss,
by ||ours - theirs|| / ||theirs||, which is to stay below 1e-5.

- MAML, lam = 0: ``higher.innerloop_ctx`` with SGD, and ``torchopt.MetaSGD`` or ``MetaAdam``. Proximal, lam = 0.5:
  their inner loss gets (lam/2) ||y - x||^2 by hand.
- iMAML, lam = 0.5: TorchOpt's ``ImplicitMetaGradientModule`` solves (H + lam I) u = -v for the query gradient v and
  multiplies by the cross-derivative -lam I; ours solves (H + lam I) g = lam v. Its default solver takes the normal
  equations, which are other Krylov spaces, so it gets ``solve_cg``. ``maxiter`` is its number of CG steps from zero
  (the product with zero before the first one is not counted), and its tolerance, 1e-5 by default, is set to 0: equal
  budgets of 5, too few for CG to converge, so that one step more or less shows. Ours stops at negative curvature and
  TorchOpt's doesn't; lam is such that there is none.
- Frozen parameters and tied weights: higher. TorchOpt's optimizers of modules raise at the former, and after one step
  the latter are no longer tied; two rows show that, and are not expected to agree.

Prints a table, and writes results.json and table.md. Exits with 1 where a row that should agree does not.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import few_shot
import metaprox as mp
import peer_methods
from measures import provenance
from metaprox.losses.choose import BackendName
from peer_methods import Inner

torch.set_num_threads(1)
LIMIT = 1e-5


@dataclass(frozen=True)
class Peer:
    """A package and a meta-gradient by it."""

    package: str
    meta_gradient: Callable[[nn.Module, mp.Task, Inner], Tensor]


@dataclass(frozen=True)
class Comparison:
    """An estimator of ours against a peer, on each backend."""

    method: str
    inner: Inner
    network: few_shot.Network
    peer: Peer
    should_agree: bool = True
    backends: tuple[BackendName, ...] = ("vmap", "loop")


@dataclass(frozen=True)
class Row:
    """What came out on one backend; ``cannot`` is the peer's error where it raised one."""

    method: str
    model: str
    backend: str
    peer: str
    relative_difference: float | None
    cannot: str | None
    should_agree: bool

    @property
    def agrees(self) -> bool:
        return self.relative_difference is not None and self.relative_difference < LIMIT

    def cells(self) -> list[str]:
        difference = f"can't: {self.cannot}" if self.cannot else f"{self.relative_difference:.1e}"
        verdict = "yes" if self.agrees else "no" if self.should_agree else "no, as expected"
        return [self.method, self.model, self.backend, self.peer, difference, verdict]


def flat(method: Callable[..., None]) -> Callable[[nn.Module, mp.Task, Inner], Tensor]:
    """What ``method`` adds to ``.grad``, as one vector of the trained parameters, in the model's order."""

    def meta_gradient(model: nn.Module, tasks: mp.Task, inner: Inner) -> Tensor:
        model.zero_grad()
        method(model, peer_methods.cross_entropy, tasks, inner)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    return meta_gradient


HIGHER = Peer("higher", flat(peer_methods.maml_by_higher))
TORCHOPT = Peer("torchopt", flat(peer_methods.maml_by_torchopt))
TORCHOPT_IMPLICIT = Peer("torchopt", flat(peer_methods.imaml_by_torchopt))

PLAIN = Inner(mp.GradientDescent(0.1), steps=5)
PROXIMAL = Inner(mp.GradientDescent(0.1), steps=5, lam=0.5)
ADAM = Inner(mp.Adam(0.01), steps=5)
IMPLICIT = Inner(mp.GradientDescent(0.1), steps=20, lam=0.5, cg_steps=5)
COMPARISONS = [
    Comparison("MAML", PLAIN, few_shot.MLP, HIGHER),
    Comparison("MAML", PLAIN, few_shot.MLP, TORCHOPT),
    Comparison("MAML", PLAIN, few_shot.CONV_RELU, HIGHER),
    Comparison("MAML", PLAIN, few_shot.CONV_RELU, TORCHOPT),
    Comparison("MAML", PLAIN, few_shot.CONV_TANH, HIGHER),
    Comparison("MAML", PLAIN, few_shot.CONV_TANH, TORCHOPT),
    Comparison("MAML, proximal", PROXIMAL, few_shot.MLP, HIGHER),
    Comparison("MAML, proximal", PROXIMAL, few_shot.MLP, TORCHOPT),
    Comparison("MAML, Adam", ADAM, few_shot.MLP, TORCHOPT),
    Comparison("iMAML", IMPLICIT, few_shot.MLP, TORCHOPT_IMPLICIT),
    Comparison("iMAML", IMPLICIT, few_shot.CONV_TANH, TORCHOPT_IMPLICIT),
    Comparison("MAML", PLAIN, few_shot.FROZEN, HIGHER),
    Comparison("MAML", PLAIN, few_shot.TIED, HIGHER),
    Comparison("MAML", PLAIN, few_shot.FROZEN, TORCHOPT, should_agree=False, backends=("vmap",)),
    Comparison("MAML", PLAIN, few_shot.TIED, TORCHOPT, should_agree=False, backends=("vmap",)),
]


def our_meta_gradient(model: nn.Module, tasks: mp.Task, inner: Inner, backend: BackendName = "vmap") -> Tensor:
    meta: mp.MAML | mp.IMAML = mp.MAML(inner.solver, inner.steps, backend=backend)
    if inner.cg_steps:
        meta = mp.IMAML(inner.solver, inner.steps, cg_steps=inner.cg_steps, backend=backend)
    problem = mp.ProximalProblem.from_module(model, peer_methods.cross_entropy, inner.lam)
    grad = meta(problem, problem.live_parameters(), tasks).grad
    return torch.cat([g.flatten() for g in grad.values()])


def compare(comparison: Comparison, seed: int) -> list[Row]:
    """A row for each backend."""
    c = comparison
    model, tasks = few_shot.case(c.network, seed)
    theirs, cannot = None, None
    try:
        theirs = c.peer.meta_gradient(model, tasks, c.inner)
    except Exception as error:  # whatever a peer raises is its result
        cannot = textwrap.shorten(f"{type(error).__name__}: {error}", 100)
    rows = []
    for backend in c.backends:
        ours = our_meta_gradient(model, tasks, c.inner, backend)
        difference = None if theirs is None else float((ours - theirs).norm() / theirs.norm())
        peer = f"{c.peer.package} ({version(c.peer.package)})"
        rows.append(Row(c.method, c.network.name, backend, peer, difference, cannot, c.should_agree))
    return rows


def markdown(rows: list[Row]) -> str:
    header = ["method", "model", "backend", "peer (version)", "relative difference", "agrees"]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *(row.cells() for row in rows))]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def write(out: Path, seed: int, rows: list[Row], table: str) -> None:
    results = [asdict(row) | {"agrees": row.agrees} for row in rows]
    record = {"seed": seed, "limit": LIMIT, **provenance("higher", "torchopt"), "rows": results}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "table.md").write_text(table + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--seed", type=int, default=0, help="seed of tasks and parameters (default: %(default)s)")
    options = parser.parse_args(arguments)
    rows = [row for comparison in COMPARISONS for row in compare(comparison, options.seed)]
    table = markdown(rows)
    print(table)
    write(options.out, options.seed, rows, table)
    wrong = [row for row in rows if row.should_agree and not row.agrees]
    if wrong:
        sys.exit(f"{len(wrong)} of {len(rows)} rows should agree to {LIMIT:g} and do not:\n{markdown(wrong)}")


if __name__ == "__main__":
    main()
