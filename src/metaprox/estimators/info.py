"""What a meta-gradient says of how it was computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metaprox.errors import InputError
from metaprox.estimators.error import COLUMNS as SEEN
from metaprox.estimators.error import Seen
from metaprox.inner.progress import Solution
from metaprox.losses.counts import Counts

OWN = ("base_residual", "gradient_ratio", "linear_residual")
STATISTICS = (*OWN, "relative_error")


@dataclass(frozen=True)
class Info:
    """What happened in each of the T tasks. All tensors are on the parameters' device.

    base_residual: ||grad fhat(y_0) + lam (y_0 - x)|| [T], 0 at the exact inner solution.
    gradient_ratio: ||g_i|| / ||v_i|| [T] with v_i = grad f_i(y_0). At most 1 for convex inner losses and exact
        solves, so that larger values are an alarm. NaN for FO-MAML, whose g_i is v_i.
    linear_residual: ||rho|| / (lam ||v||) [T] with rho = lam v - (H + lam I) g, how far g is from solving (1) at y_0:
        for differences, by the same difference of gradients that g is of solutions, one step before the end. Where it
        falls at every step, as with gradient descent on a convex quadratic at lr <= 2/L, g is no farther than this
        times ||v|| from where the branch solves lead. NaN where branches took no step, or no error was asked for.
    relative_error: how far g_i is from the gradient of F_i, relative to ||g_i|| and at most 1 [T]: an estimate from
        what the solves have seen, no bound (docs/error.md); 1 where g_i may be mostly error. It is the sum of the next
        four, of which those that are NaN are not known. NaN where a method has none, or it was not asked for.
    branch_error: of branches that are not solved, or of the linear system [T]. base_error: of y_0, which is not [T].
    truncation_error: of the finite difference [T]; NaN unless ``estimate_truncation=True`` pays the gradient that it
        takes. For smooth losses: with kinks (ReLU) it may be anything. rounding_error: of rounding, divided by the step
        of the difference [T].
    sampling_error: the standard error of the mean over the tasks of the batch, relative to the mean gradient: that of
        other tasks in their place. NaN for a single task.
    seen: what the errors are computed from, the first time that one is asked for.
    nu: the weight of the query loss at a node of 1 [T]; 0 where v_i = 0 and no step was given.
    converged: whether the base, and the branches, of the task were seen to reach ``tol`` [T], rather than stopped at
        ``max_steps``. Where no tolerance was asked for (``steps=K``), True.
    skipped: whether the task was left out because it diverged, with on_nonfinite="skip" [T]. Its other entries are what
        they came to, and may be anything.
    astray: whether a branch at -nu was seen to have left what has a minimum [T], for "loss": with the default step such
        a task was differentiated anew by "center".
    base_steps, branch_steps: inner steps taken [T].
    base_step_sizes, branch_step_sizes: ||step|| / ||gradient|| of each [T, K], NaN where there was none.
    counts: gradient evaluations and Hessian-vector products, one per task and branch.

    What a method does not have, or would cost it a further evaluation, is NaN.
    """

    base_residual: Tensor
    gradient_ratio: Tensor
    linear_residual: Tensor
    nu: Tensor
    converged: Tensor
    skipped: Tensor
    astray: Tensor
    base_steps: Tensor
    branch_steps: Tensor
    base_step_sizes: Tensor
    branch_step_sizes: Tensor
    counts: Counts
    sampling_error: Tensor
    seen: Seen

    @classmethod
    def of(
        cls, base: Solution, branch: Solution | None, counts: Counts, seen: Seen | None = None, **known: Tensor
    ) -> "Info":
        """Of the two solves; what is not ``known`` is NaN. Without branches there are no branch steps."""
        unknown = torch.full(base.steps.shape, torch.nan, dtype=base.step_sizes.dtype, device=base.steps.device)
        return cls(
            **(dict.fromkeys((*OWN, "nu"), unknown) | known),
            converged=base.converged & branch.converged if branch else base.converged,
            skipped=(nobody := torch.zeros_like(base.converged)),
            astray=nobody,
            base_steps=base.steps,
            branch_steps=branch.steps if branch else torch.zeros_like(base.steps),
            base_step_sizes=base.step_sizes,
            branch_step_sizes=branch.step_sizes if branch else base.step_sizes[:, :0],
            counts=counts,
            sampling_error=unknown.new_tensor(torch.nan),
            seen=Seen.nothing(unknown) if seen is None else seen,
        )

    @classmethod
    def join(cls, infos: Sequence["Info"]) -> "Info":
        """Of several chunks of tasks, one after another."""
        if len(infos) == 1:
            return infos[0]
        columns = {name: torch.cat(_padded([getattr(info, name) for info in infos])) for name in _COLUMNS}
        counts = Counts.total([info.counts for info in infos])
        seen = Seen.join([info.seen for info in infos])
        return cls(**columns, counts=counts, sampling_error=infos[0].sampling_error, seen=seen)

    def columns(self) -> dict[str, Tensor]:
        """All that is [T] or [T, K], by name."""
        own = {name: getattr(self, name) for name in _COLUMNS}
        return own | {f"seen.{name}": getattr(self.seen, name) for name in SEEN}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Tensor], counts: Counts, lam: float) -> "Info":
        """From ``columns``, the work that was done, and lam."""
        seen = Seen(lam, *(columns[f"seen.{name}"] for name in SEEN))
        unknown = seen.length.new_tensor(torch.nan)
        return cls(**{name: columns[name] for name in _COLUMNS}, counts=counts, sampling_error=unknown, seen=seen)

    def where(self, here: Tensor, other: "Info") -> "Info":
        """This one's entries for the tasks ``here`` [T], and the ``other`` one's for the rest; counts of all work."""
        columns: dict[str, Any] = {}
        for name in _COLUMNS:
            own, others = _padded([getattr(self, name), getattr(other, name)])
            columns[name] = torch.where(here if own.dim() == 1 else here[:, None], own, others)
        seen = self.seen.where(here, other.seen)
        return Info(**columns, counts=other.counts, sampling_error=self.sampling_error, seen=seen)

    @cached_property
    def _errors(self) -> dict[str, Tensor]:
        return self.seen.errors()

    @property
    def relative_error(self) -> Tensor:
        known = self.branch_error + self.base_error
        return known + self.truncation_error.nan_to_num(0.0) + self.rounding_error.nan_to_num(0.0)

    @property
    def branch_error(self) -> Tensor:
        return self._errors["branch"]

    @property
    def base_error(self) -> Tensor:
        return self._errors["base"]

    @property
    def truncation_error(self) -> Tensor:
        return self._errors["truncation"]

    @property
    def rounding_error(self) -> Tensor:
        return self._errors["rounding"]

    def summary(self) -> dict[str, float]:
        """Returns for a log the median and worst of residuals, ratio and error over tasks, and the sample's, if known.

        Of the base's step sizes, the median and the least. Tasks that were skipped are left out, and counted, as are
        those that did not converge, where there are any.
        """
        rows = {}
        for name in STATISTICS:
            values = getattr(self, name)[~self.skipped]
            if values.isnan().all():
                continue
            rows[f"{name}_median"] = float(values.median())
            rows[f"{name}_worst"] = float(values.max())
        if not bool(self.sampling_error.isnan()):
            rows["sampling_error"] = float(self.sampling_error)
        sizes = self.base_step_sizes[~self.skipped]
        rows["base_step_size_median"] = float(sizes.nanmedian())
        rows["base_step_size_least"] = float(sizes.nan_to_num(torch.inf).min())
        for name, marked in (("tasks_skipped", self.skipped), ("tasks_not_converged", ~self.converged & ~self.skipped)):
            if bool(marked.any()):
                rows[name] = int(marked.sum())
        return rows


MARKS, STEPS = ("converged", "skipped", "astray"), ("base_steps", "branch_steps")
_COLUMNS = tuple(field.name for field in fields(Info) if field.name not in ("counts", "sampling_error", "seen"))


def check_columns(columns: Mapping[str, Tensor], tasks: int) -> None:
    """Raise InputError where ``columns`` are not those that ``Info.columns`` gives of so many tasks."""
    names = {*_COLUMNS, *(f"seen.{name}" for name in SEEN)}
    if odd := sorted(map(str, names ^ columns.keys())):
        raise InputError(f"what is known of the tasks is not what it should be: {', '.join(odd)}")
    for name, column in columns.items():
        kind = torch.bool if name in MARKS else torch.int64 if name in STEPS else None
        fits = column.dtype == kind if kind else column.is_floating_point()
        if not fits or column.dim() != 1 + name.endswith("step_sizes") or len(column) != tasks:
            raise InputError(f"{name} of {tasks} tasks can't be {column.dtype} of shape {tuple(column.shape)}")


def _padded(values: list[Tensor]) -> list[Tensor]:
    """Where solves ended after different numbers of steps, the shorter rows end in NaN."""
    if values[0].dim() == 1:
        return values
    width = max(value.shape[1] for value in values)
    return [torch.nn.functional.pad(value, (0, width - value.shape[1]), value=torch.nan) for value in values]
