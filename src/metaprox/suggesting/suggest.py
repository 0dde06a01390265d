"""From a problem and a few tasks to a first guess."""

import math
from collections.abc import Sequence

import torch

from metaprox import checks
from metaprox.arguments import parameters_of
from metaprox.call import Call, begun
from metaprox.checking.snapshot import copied
from metaprox.data.batch import TaskBatch
from metaprox.data.task import Task
from metaprox.errors import InputError, NonFiniteError
from metaprox.losses.choose import Choice
from metaprox.problem import ProximalProblem
from metaprox.suggesting.curvature import Valley
from metaprox.suggesting.suggestion import Suggestion, Tried
from metaprox.types import Params
from metaprox.vectors.shards import refuse_shards

HELD = 0.25  # lr lam K: the proximal term takes back up to 1 - exp(-HELD) = 22 % of what K free steps reach
STEPS = (5, 10, 20)  # that are tried
ENOUGH = 0.75  # of the fall of the support loss that the most of them give: the fewest steps with it are taken
WALKS, GROWN = 4, 1.05  # until no walk meets a curvature that is so many times that seen before
MOST = 1000  # steps, where lam is given


def suggest(
    problem: ProximalProblem,
    tasks: Task | Sequence[Task],
    *,
    lam: float | None = None,
    steps: int | None = None,
    params: Params | None = None,
    count: int = 4,
) -> Suggestion:
    """Inner step, lam and steps K to begin with, from the curvature and the residuals of a few tasks. No search.

        lr = 1 / (L + lam),     lam = L / (4 K - 1),     so that lr lam K = 1/4

    L is the largest curvature of fhat seen: by power iteration at x and where adaptation ends, and between the points
    on the way. Steps of lr are stable up to twice that curvature, as it may grow in meta-training. With lr lam K = 1/4
    it is the number of steps that bounds adaptation, and lam takes back up to a fifth of it, in directions of little
    curvature. Of K = 5, 10 and 20 the first is taken that lowers the support loss by 3/4 of what 20 steps do, so that
    the base is well on its way; the query loss, which adaptation from an x that was never trained may raise, is told
    and not looked at. First derivatives only.

    Costs 100 to 300 support gradients and 4 query losses a task, one by one, in the memory of the loop and some ten
    vectors of parameters. Nothing is written on.

    Args:
        problem: the losses and what adapts; its ``lam`` is not looked at.
        tasks: a Task whose tensors have a leading dimension T, or a sequence of T single ones.
        lam: kept where it is given; K is then such that lr lam K = 1/4, and at least 2.
        steps: kept where it is given.
        params: x; the module's trainable parameters unless given.
        count: how many tasks are looked at, the first ones.

    Returns:
        The settings, what was seen, and what was tried. ``print`` explains them.

    Raises:
        InputError: the arguments are not of their kind; or no step can be told from the losses: they are flat or linear
            around x, curve downwards most, or steps are lost in rounding.
        NonFiniteError: a loss is not finite at x, or adaptation diverges with steps that its curvature allows.

    Example:
        >>> import torch, metaprox as mp
        >>> loss = lambda params, data: 0.5 * (4 * params["w"][0] ** 2 + (params["w"][1] - data) ** 2).sum()
        >>> tasks, w = mp.Task(torch.ones(2, 1), torch.ones(2, 1)), {"w": torch.tensor([1.0, 0.0])}
        >>> found = mp.suggest(mp.ProximalProblem(loss, loss, lam=1.0), tasks, steps=5, params=w)
        >>> round(found.curvature, 2), round(found.lam, 2), round(found.inner_lr, 2)
        (4.0, 0.21, 0.24)
    """
    lam = lam if lam is None else checks.positive("lam", lam)
    steps = steps if steps is None else checks.count("steps", steps)
    checks.count("count", count)
    x = parameters_of(problem, params)
    refuse_shards(x.values(), "mp.suggest")
    for name, value in x.items():
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            raise InputError(f"parameter {name!r} is {value.dtype}, too coarse for differences: give params in float32")
    batch = TaskBatch.of(copied(TaskBatch.of(tasks), count))
    with begun(problem, x, batch, Choice("loop", None), query="value") as call:
        valleys = [Valley(call, task) for task in range(batch.size)]
        at_x = _at_x(valleys, lam)
        curvature = _on_the_way(valleys, at_x, lam, steps)
        chosen = [_settings(curvature, lam, one) for one in _numbers(curvature, lam, steps)]
        before = _adapted(call, valleys, *chosen[0][:2], 0)
        tried = [_adapted(call, valleys, *one) for one in chosen]
        spent = sum(valley.evaluations for valley in valleys)
    fall = before.support_loss - tried[-1].support_loss
    taken = next((one for one in tried if before.support_loss - one.support_loss >= ENOUGH * fall), tried[-1])
    return Suggestion(
        taken.inner_lr,
        taken.lam,
        taken.steps,
        curvature,
        at_x,
        before.support_loss,
        before.query_loss,
        tuple(tried),
        batch.size,
        spent,
    )


def _at_x(valleys: Sequence[Valley], lam: float | None) -> float:
    """The largest curvature at x. Raises InputError where it says nothing of a step, or is that of a hill."""
    found = []
    for valley in valleys:
        if not math.isfinite(valley.value) or not math.isfinite(valley.slope):
            raise NonFiniteError(f"task {valley.task}: the inner loss is not finite at x", task=valley.task)
        if valley.slope == 0:
            continue  # adapts to nothing
        seen = valley.largest(valley.x, valley.gradient)
        if seen.downwards and (lam is None or lam <= seen.largest):
            raise InputError(
                f"task {valley.task}: the inner loss curves downwards most around x, by {seen.largest:.3g}: with a lam "
                f"up to that its inner problem has no minimum there. Give lam, larger than it"
            )
        found.append(seen.largest)
    if not found:
        raise InputError("the gradient of the inner loss is 0 at x on all tasks: there is nothing to adapt to")
    if max(found) == 0:
        raise InputError("the inner loss has no curvature around x, as linear ones have none: any step is stable")
    return max(found)


def _on_the_way(valleys: Sequence[Valley], at_x: float, lam: float | None, steps: int | None) -> float:
    """The largest curvature at x, between the points on the way with it, and where that ends."""
    curvature = at_x
    for _ in range(WALKS):
        lr, own, k = _settings(curvature, lam, _numbers(curvature, lam, steps)[-1])
        seen = curvature
        for valley in valleys:
            if valley.slope > 0:
                way = valley.along(lr, own, min(k, STEPS[-1]))
                seen = max(seen, way.steepest, valley.largest(way.y, valley.gradient).largest)
        if seen <= GROWN * curvature:
            return seen
        curvature = seen
    return curvature


def _numbers(curvature: float, lam: float | None, steps: int | None) -> tuple[int, ...]:
    """The numbers of steps to be tried."""
    if steps is not None:
        return (steps,)
    return STEPS if lam is None else (min(MOST, max(2, math.ceil(HELD * (curvature + lam) / lam))),)


def _settings(curvature: float, lam: float | None, steps: int) -> tuple[float, float, int]:
    """Inner step, lam and steps."""
    own = curvature / (steps / HELD - 1) if lam is None else lam
    return 1 / (curvature + own), own, steps


def _adapted(call: Call, valleys: Sequence[Valley], lr: float, lam: float, steps: int) -> Tried:
    """What ``steps`` steps give."""
    ways = [valley.along(lr, lam, steps) for valley in valleys]
    losses = [
        float(call.gradients((valley.task, valley.task + 1)).query_values(way.y[None], 0)[0])
        for valley, way in zip(valleys, ways, strict=True)
    ]
    count = len(ways)
    left, values = sum(way.left for way in ways), sum(way.value for way in ways)
    return Tried(steps, lr, lam, left / count, values / count, sum(losses) / count)
