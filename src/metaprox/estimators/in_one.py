"""FO-B-MAML's formulas where base, branches and all between them are one graph."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metaprox.estimators.branches import AtBase, Branches
from metaprox.estimators.error import BRANCH_STEPS, COLUMNS, Ends, Seen, linear_residual, of_branches
from metaprox.estimators.info import Info
from metaprox.estimators.result import Estimate
from metaprox.estimators.stencil import Stencil, stencil
from metaprox.estimators.step import Lengths, nu_of
from metaprox.inner.progress import Solution
from metaprox.losses.backend import Evaluation
from metaprox.losses.branched import Plan, Taken, take
from metaprox.losses.gradients import Gradients
from metaprox.losses.traced_branched import Leaving, Solved
from metaprox.solvers.protocol import relative_step
from metaprox.vectors.norms import norm

if TYPE_CHECKING:
    from metaprox.estimators.finite_difference import FOBMAML


class Known(NamedTuple):
    """What is known of the base when branches have left it."""

    branches: Branches
    columns: dict[str, Tensor]


@dataclass(frozen=True)
class Differences:
    """The settings of FO-B-MAML that formulas depend on, without numbers.

    given: "nu", "eps", or None where the step is the default one. relative: whether the branches' steps are multiples
    of the gradient. watched: whether the error is judged.
    """

    rule: Stencil
    center: bool
    corrected: bool
    predict: bool
    given: str | None
    relative: bool
    watched: bool

    def leave(self, x: Tensor, base: Solved, v: Tensor, lam: Tensor, given: Tensor) -> tuple[Leaving, Known]:
        y0, residual, norm_v = base.y, base.grad, norm(v)
        norm_residual = norm(residual)
        lengths = Lengths.of(y0, y0 - x, residual, lam).or_else(norm_v / lam)
        at_base = AtBase(y0, residual, v, norm_residual, norm_v, lengths)
        own = {} if self.given is None else {self.given: given}
        nu = nu_of(self.rule, lam, norm_v, lengths, query_moves=not self.center, **own)
        nodes, weights = self.rule.branches(corrected=self.corrected)
        branches = Branches.of(at_base, nodes, weights, nu, center=self.center, corrected=self.corrected)
        whole = [slice(0, len(nodes))]
        starts, first = at_base.leave(branches.tilt, whole, lam=lam, corrected=self.corrected, predict=self.predict)
        columns = {"base_residual": norm_residual.flatten(), "norm_v": norm_v.flatten()}
        assert lengths.way is not None
        assert lengths.point is not None
        columns |= {"moved": lengths.way.flatten(), "size": lengths.point.flatten()}
        columns["base_curvature"] = _row(base.curvatures, base.steps)
        linear = None if branches.linear is None else branches.linear.total()
        leaving = Leaving(
            starts[0].contiguous(), first[0] if first else None, linear, None if self.center else branches.queried
        )
        return leaving, Known(branches, columns)

    def end(self, known: Known, ends: Solved, lam: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        branches, found = known
        grad = branches.derivative([ends.y], lam)
        norm_v, length = found.pop("norm_v"), norm(grad).flatten()
        found["nu"] = branches.nu.flatten()
        found["length"] = length
        found["gradient_ratio"] = torch.where(norm_v > 0, length / norm_v, 0.0)
        if self.watched:
            per_nu = branches.per_nu(torch.ones_like(branches.nu)).flatten()
            trail = self._trail(ends)
            found["linear_residual"] = linear_residual(trail, norm_v, per_nu)
            found |= of_branches(trail, per_nu, None)
            single = (ends.steps < 2).to(length.device)  # steps are counted on the CPU
            found["reduction"] = torch.where(single, 1.0, found["reduction"])
        return grad, found

    def _trail(self, ends: Solved) -> Ends:
        """What the last steps of the branches were watched for; with a single one there is no curvature."""
        count = ends.steps.to(ends.lengths.device)
        last, before = _row(ends.lengths, count - 1), _row(ends.lengths, (count - 2).clamp(min=0))
        curvature = _row(ends.curvatures, count - 1)
        if not self.relative:
            rows = torch.arange(len(ends.curvatures), device=last.device)[:, None]
            latest = (rows >= (count - BRANCH_STEPS).clamp(min=1)) & (rows < count)
            least = torch.where(latest, ends.curvatures.nan_to_num(torch.inf, torch.inf, -torch.inf), torch.inf).amin(0)
            curvature = torch.where(count > 2, least, curvature)
        single = count < 2
        return Ends(
            last,
            torch.where(single, last, before),
            torch.where(single, torch.nan, curvature),
            1.0 if self.relative else None,
        )


def _row(rows: Tensor, index: Tensor) -> Tensor:
    """Row ``index``, which is a number in a tensor."""
    return rows.index_select(0, index.reshape(1).to(rows.device))[0]


def estimate_in_one(meta: "FOBMAML", gradients: Gradients, keep_adapted: bool) -> Estimate | None:
    """That of the tasks of ``gradients``, in one graph; None where there is none, or where not all of it is finite."""
    if not gradients.backend.compile or meta.tol is not None or meta.rtol is not None or meta.estimate_truncation:
        return None
    plan = _plan(meta, gradients)
    taken = take(gradients, plan)
    if taken is None:
        return None
    known, everyone = taken.known, torch.ones(len(taken.y), dtype=torch.bool, device=taken.y.device)
    base, ends = (_solution(sizes, everyone) for sizes in (taken.base_sizes, taken.branch_sizes))
    info = Info.of(
        base,
        ends,
        gradients.counts,
        **{name: known[name] for name in ("base_residual", "gradient_ratio", "nu")},
        **({"linear_residual": known["linear_residual"]} if meta.estimate_error else {}),
        seen=_seen(taken, gradients.lam) if meta.estimate_error else None,
    )
    query = Evaluation(taken.grad, taken.value, taken.metrics)
    return Estimate(taken.y if keep_adapted else None, taken.grad, query, info, (base, ends), everyone, known["length"])


def _plan(meta: "FOBMAML", gradients: Gradients) -> Plan:
    solver = gradients.for_parameters(meta.solver)
    of_branches = solver if meta.branch_solver is None else gradients.for_parameters(meta.branch_solver)
    rule, center, predicts = stencil(meta.scheme), meta.perturb == "center", meta.start == "predictor"
    given = next((name for name in ("nu", "eps") if getattr(meta, name) is not None), None)
    size = relative_step(solver)
    stepped = size if of_branches is solver else relative_step(of_branches)
    relative = stepped is not None
    method = Differences(rule, center, meta.residual_correction, predicts, given, relative, meta.estimate_error)
    nodes, weights = rule.branches(corrected=meta.residual_correction)
    return Plan(
        method,
        solver,
        meta._stopping().max_steps,
        of_branches,
        meta._steps_of_branches,
        size,
        stepped,
        weights,
        given=0.0 if given is None else getattr(meta, given),
        known=not predicts,
        queried=0 if center else len(nodes) - (nodes[0] == 0),
    )


def _solution(sizes: Tensor, everyone: Tensor) -> Solution:
    """One that has gone all its steps, of which these are the ``sizes`` [T, K], and was finite."""
    steps = torch.full_like(everyone, sizes.shape[1], dtype=torch.int64)
    return Solution((), None, steps, sizes, converged=everyone, finite=everyone)


def _seen(taken: Taken, lam: float) -> Seen:
    known = taken.known | {"residual": taken.known["base_residual"]}
    known["truncation"] = torch.full_like(known["nu"], torch.nan)
    return Seen(lam, *(known[name] for name in COLUMNS))
