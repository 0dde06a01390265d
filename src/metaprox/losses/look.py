"""A first look at a user's losses, on one task: what they are, before anything rests on it.

Each loss is evaluated twice more, at x, the first time that a problem meets tasks of a kind; three times where the
model has frozen parameters. What is wrong is refused by name; what is unusual is remembered.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metaprox.data.batch import TaskBatch
from metaprox.data.inference import normal_tree
from metaprox.data.microbatches import MicroBatches
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.losses.adapted import AdaptedLoss
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.coarse import arithmetic, coarseness
from metaprox.losses.dimensions import (
    batches_told_of,
    check_dimensions,
    remember_dimensions,
    single_examples_refused,
)
from metaprox.losses.graph import nodes
from metaprox.losses.noise import Noise
from metaprox.losses.passes import REENTRANT
from metaprox.losses.sharded import LossInShards
from metaprox.modules.loss import PrivateLoss
from metaprox.modules.sharded import ShardedLoss
from metaprox.problem import ProximalProblem
from metaprox.vectors.parameters import Parameters

# What is asked of the outer loss: its gradient, its value, or nothing.
Query = Literal["gradient", "value", "nothing"]
LOOK_NOISE = 2  # first noise id; those of the losses in use are 0 and 1


@dataclass(frozen=True)
class Look:
    """What was seen of both losses.

    draws: whether they draw random numbers from torch's generators.
    repeats: whether, with equal seeds, they give the same value again.
    writes: whether they write on the parameters that adapt, or are shared.
    written: names of the buffers and frozen parameters that they write on.
    modes: of the problem when they were looked at.
    coarse: the machine epsilon that they compute with, where it is more than that of their parameters; else 0.
    """

    draws: bool
    repeats: bool
    writes: bool
    written: frozenset[str]
    modes: tuple[bool, ...] = ()
    coarse: float = 0.0


def look_at(
    problem: ProximalProblem, parameters: Parameters, batch: TaskBatch, noise: Noise, query: Query = "gradient"
) -> Look:
    """Returns what is seen of the losses of ``problem``, which is private, on the batch's first task, or was before.

    From then on their replicas copy what is written on, alone.

    Raises:
        InputError: a loss is no scalar, or does not depend on the parameters; it depends on a tensor that requires grad
            and is no parameter; a task looks like a batch of tasks, or a batch of tasks like one task.
    """
    task = batch.first
    count = None if batch.stacked is None else batch.size
    check_dimensions(problem, task, count)
    modes = problem.modes()
    coarse = arithmetic(parameters.device)
    key = ("look", query, count is None, parameters.structure, modes, coarse, _kinds(batch))
    found: Look = problem.cache.get_or_make(
        key, lambda: _look_at_both(problem, parameters, task, noise, query, count, modes)
    )
    for loss in (problem.inner_loss, problem.outer_loss):
        if isinstance(loss, PrivateLoss):
            loss.written = found.written
    return found


def _look_at_both(
    problem: ProximalProblem,
    parameters: Parameters,
    task: Task,
    noise: Noise,
    query: Query,
    count: int | None,
    modes: tuple[bool, ...],
) -> Look:
    loss = problem.inner_loss
    with batches_told_of(loss, task) if count is None else single_examples_refused(problem, loss, task, count):
        seen = [_look(CheckedLoss(loss, "inner_loss"), parameters, task.support, noise)]
    if query != "nothing":
        outer = CheckedLoss(problem.outer_loss, "outer_loss", differentiable=query == "gradient")
        seen.append(_look(outer, parameters, task.query, noise))
    remember_dimensions(problem, task, count)
    return Look(
        draws=any(one.draws for one in seen),
        repeats=all(one.repeats for one in seen),
        writes=any(one.writes for one in seen),
        written=frozenset().union(*(one.written for one in seen)),
        modes=modes,
        coarse=max(one.coarse for one in seen),
    )


def _kinds(batch: TaskBatch) -> tuple[Any, ...]:
    """How its first task is built, and of what; not its sizes."""
    leaves, tree = batch.leaves_of_first
    return tree, tuple((leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


def _look(loss: CheckedLoss, parameters: Parameters, data: Any, noise: Noise) -> Look:
    batch = normal_tree(next(iter(data))[1]) if isinstance(data, MicroBatches) else data
    if isinstance(loss.loss, ShardedLoss):
        return _look_in_shards(loss, loss.loss, parameters, batch, noise)
    x, structure = torch.cat(parameters.pieces), parameters.structure
    leaves = AdaptedLoss(loss, structure, parameters.w).leaves(x)
    w = parameters.w.clone()
    versions = [tensor._version for tensor in (*leaves.values(), w)]

    def value() -> Tensor:
        return loss(structure.merge(dict(leaves), w), batch)[0]

    if isinstance(loss.loss, PrivateLoss):
        with noise.of(LOOK_NOISE), torch.enable_grad():
            loss.loss.watched(value, structure.names)
    with noise.of(LOOK_NOISE), torch.enable_grad():
        before = noise.state()
        first = value()
        draws = not all(map(torch.equal, before, noise.state()))
    known = {id(tensor) for tensor in (*leaves.values(), *pytree.tree_leaves(batch))}
    strange, coarse = _strange_leaves(first, known), coarseness(first, parameters.adapted.dtype)
    first = first.detach()  # one graph alive at a time
    with noise.of(LOOK_NOISE), torch.enable_grad():
        again = value()
    _refuse_lasting(loss, strange, _strange_leaves(again, known) if strange else [])
    again = again.detach()
    own = structure.adapted.unflatten(x)
    same = torch.equal(w, parameters.w) and all(torch.equal(leaf, own[name]) for name, leaf in leaves.items())
    writes = not same or versions != [tensor._version for tensor in (*leaves.values(), w)]
    written = loss.loss.seen_to_write() if isinstance(loss.loss, PrivateLoss) else set()
    loss.release()
    return Look(draws, _repeats(loss, first, again), writes, frozenset(written), coarse=coarse)


def _look_in_shards(loss: CheckedLoss, model: ShardedLoss, parameters: Parameters, batch: Any, noise: Noise) -> Look:
    """The same on all ranks. Buffers and attributes are always put back."""
    with LossInShards(loss, parameters.structure, parameters.w).held(parameters.x) as params:
        with noise.of(LOOK_NOISE), torch.enable_grad():
            before = noise.state()
            first = loss(params, batch)[0]
            draws = not all(map(torch.equal, before, noise.state()))
        gathered = model.whole_parameters()
        versions = [tensor._version for tensor in gathered]
        known = {id(tensor) for tensor in (*gathered, *params.values(), *pytree.tree_leaves(batch))}
        strange, coarse = _strange_leaves(first, known), coarseness(first, parameters.adapted.dtype)
        first = first.detach()
        model.renew()
        with noise.of(LOOK_NOISE), torch.enable_grad():
            again = loss(params, batch)[0]
        _refuse_lasting(loss, strange, _strange_leaves(again, known) if strange else [])
        if versions != [tensor._version for tensor in gathered]:
            raise InputError(
                f"{loss.role} writes on parameters of a model in shards, whose hooks drop that before the backward "
                "pass: write on a copy in the loss"
            )
    return Look(draws, _repeats(loss, first, again.detach()), writes=False, written=frozenset(), coarse=coarse)


def _repeats(loss: CheckedLoss, first: Tensor, again: Tensor) -> bool:
    """Whether two values are equal up to what sums in another order do; warns where not."""
    close = torch.allclose(first, again, rtol=torch.finfo(first.dtype).eps ** 0.5, equal_nan=True)
    if not close:
        warnings.warn(
            f"{loss.role} gave {float(first):.6g}, then {float(again):.6g}, on equal parameters and data, with torch's "
            "generators seeded alike: it draws from elsewhere (numpy, random, a Generator of its own), or changes from "
            "call to call. The branches of a task then do not see the same noise, and it is divided by nu: draw from "
            "torch's global generator, or put the noise into the tasks",
            stacklevel=2,
        )
    return close


def _refuse_lasting(loss: CheckedLoss, strange: list[Tensor], again: list[Tensor]) -> None:
    """Refuse leaves that are no parameters and were there before the loss was evaluated.

    What the loss makes anew, such as inputs to take derivatives with respect to, is another one the second time.

    Raises:
        InputError: a leaf is found both times; names it.
    """
    lasting = set(map(id, again))
    for leaf in strange:
        if id(leaf) not in lasting:
            continue
        live = loss.loss.source.state() if isinstance(loss.loss, (PrivateLoss, ShardedLoss)) else {}
        name = next((name for name, tensor in live.items() if tensor is leaf), None)
        what = f"{name!r} of the live model" if name else f"a tensor of shape {tuple(leaf.shape)}"
        remedy = (
            "Use the model that the loss is given, not the one outside"
            if name
            else "Make it a parameter, in params or in a module that holds it and the model (adapt= says which adapt), "
            "or detach() it, if it is a constant"
        )
        raise InputError(
            f"{loss.role} depends on {what}, which requires grad and is none of the parameters that the loss is given: "
            f"it would get no gradient. {remedy}"
        )


def _strange_leaves(value: Tensor, known: set[int]) -> list[Tensor]:
    """Leaves of the graph of ``value`` that are not known. Raises InputError where a node of it hides some."""
    found: list[Tensor] = []
    for node in nodes(value.grad_fn):
        if node.name() == "CheckpointFunctionBackward":
            raise InputError(REENTRANT)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            found.append(leaf)
    return found
