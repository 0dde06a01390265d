"""A step of gradient descent without new memory, along a gradient that nobody sees as a vector."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaprox.data.microbatches import MicroBatches
from metaprox.losses.adapted import AdaptedLoss, guarded
from metaprox.losses.backend import Step
from metaprox.losses.gradients import ALL, BRANCH_NOISE, Gradients
from metaprox.losses.memory import Memory
from metaprox.losses.passes import Spot
from metaprox.losses.vmapped import FlatLoss
from metaprox.vectors.devices import launches
from metaprox.vectors.parameters import SMALL
from metaprox.vectors.terms import Descent, LinearTerm


def descend(
    gradients: Gradients,
    memory: Memory,
    y: Tensor,
    step: int,
    branches: slice = ALL,
    *,
    noise: int = BRANCH_NOISE,
    linear: LinearTerm | None = None,
    tilt: Tensor | None = None,
) -> Step | None:
    """Returns the step from y [1, 1, P] along ``gradients.proximal``, and ``tilt`` [] times grad f if that is given.

    The backward pass hands a parameter's gradient over to the step, so that all vectors are read once, and there is no
    vector of the gradient. None where nothing is saved by it, as with few parameters, or where each operation has to
    be launched; or where somebody looks at that vector.
    """
    point, large = memory.point(y), y.shape[1] == 1 and y.numel() * y.element_size() > SMALL
    if point is None or memory.size is None or launches(y.device) or not (large and memory.unseen):
        return None
    (support,), (query,) = gradients.data.support, gradients.data.query
    losses: list[tuple[FlatLoss, Any, int, str]] = [(gradients.adapted_inner, support, 0, "support")]
    losses += [] if tilt is None else [(gradients.adapted_outer, query, 1, "query")]
    if not all(_is_plain(loss, batch) for loss, batch, *_ in losses):
        return None
    taken = memory.take(y)
    here = guarded(y)  # whatever a loss writes on y until it is put back
    descent = Descent(gradients.term(branches, linear), here, taken, memory.size, [None, tilt][: len(losses)])
    for index, (loss, batch, half, name) in enumerate(losses):
        assert isinstance(loss, AdaptedLoss)
        with gradients.evaluation(name), gradients.seed(half, noise, step)(0), torch.enable_grad():
            Spot(loss, y[0, 0], point).differentiate(batch, partial(descent.add, index))
    gradients.counts.support_gradients += 1
    gradients.counts.query_gradients += tilt is not None
    mark = descent.mark()
    return Step(memory.exchange(y, taken, branches.start or 0), None, mark)


def _is_plain(loss: FlatLoss, batch: Any) -> bool:
    """Whether a backward pass leaves its gradient, and nothing else needs to be done."""
    return isinstance(loss, AdaptedLoss) and not loss.writes and not isinstance(batch, MicroBatches)
