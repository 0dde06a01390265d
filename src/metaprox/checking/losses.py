"""Checks of the losses by themselves: the same again, the same under vmap."""

import itertools
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from metaprox.call import Call
from metaprox.checking.findings import Finding, Verdict, percent
from metaprox.checking.probe import Probe
from metaprox.data.batch import TaskBatch
from metaprox.errors import InputError
from metaprox.losses.adapted import AdaptedLoss
from metaprox.losses.agreement import agreement
from metaprox.losses.checked import CheckedLoss
from metaprox.losses.choose import Choice
from metaprox.losses.look import LOOK_NOISE, Look
from metaprox.losses.vmap import VmapBackend


def finite(values: Sequence[float], batch: TaskBatch) -> Finding:
    """Whether the losses are finite at x on all tasks."""
    bad = sorted({index % batch.size for index, value in enumerate(values) if not math.isfinite(value)})
    if not bad:
        return Finding("losses", "ok", "the losses are scalars that depend on the parameters, and finite at x")
    hint = batch.non_finite(bad[0])
    return Finding(
        "losses",
        "wrong",
        f"a loss is not finite at x, on task {bad[0]}{f' and {len(bad) - 1} more' * (len(bad) > 1)}. {hint}"
        "Look for a logarithm or a square root of 0, a division by 0, or too large weights",
    )


def writes(changed: Sequence[str], look: Look | None) -> Finding:
    """What the losses have written on: things of the user's by name, and what ``look`` saw."""
    if changed:
        return Finding(
            "writes",
            "wrong",
            f"a loss writes on {', '.join(changed[:3])}{f' and {len(changed) - 3} more' * (len(changed) > 3)} itself: "
            "each evaluation changes what the next one sees, of other tasks and branches too. Use the model that the "
            "loss is given, and write on copies (x = x - m in place of x -= m)",
        )
    if look is None:
        return Finding.not_checked("writes", "the losses could not be looked at")
    if look.writes:
        return Finding(
            "writes",
            "note",
            "a loss writes on its parameters: on memory of its own at each evaluation, which is then dropped, so that "
            "a bound which it enforces does not hold for what adaptation returns; a parametrization does",
        )
    if look.written:
        names = ", ".join(sorted(look.written)[:3])
        text = f"a loss writes on buffers ({names}{', ...' * (len(look.written) > 3)}): on copies, which are dropped"
        return Finding("writes", "ok", text)
    return Finding("writes", "ok", "the losses write on nothing")


def repeats(call: Call, roles: Sequence[str]) -> Finding:
    """Whether value and gradient of each loss are the same again on every task. Costs 2 gradients of each, a task."""
    worst = 0.0
    for role, task in itertools.product(roles, range(call.batch.size)):
        x = call.x(task)
        found = Probe(call, role, task).at(x, x)
        for pair in (found.value[0], found.grad[0]):
            off, size = float((pair[0] - pair[1]).norm()), float(pair[1].norm())
            worst = max(worst, off / size if size > 0 else float(off > 0))
    eps = torch.finfo(x.dtype).eps
    numbers = {"difference": worst}
    if worst > eps**0.5 or not call.look.repeats:
        return Finding(
            "repeats",
            "wrong",
            f"with torch's generators seeded alike a loss gives another value or gradient, by {percent(worst)}: it "
            "draws from elsewhere (numpy, random, a Generator of its own) or changes from call to call, and what "
            "branches do not have in common is divided by nu; draw from torch's global generator, or put the noise "
            "into the tasks",
            numbers,
        )
    drawn = ", dropout or other noise from torch's generators included" if call.look.draws else ""
    return Finding("repeats", "ok", f"each loss gives the same value and gradient again{drawn}", numbers)


def backends(call: Call, roles: Sequence[str], choice: Choice, at_once: int, *, twice: bool) -> Finding:
    """Returns whether vmap gives what the loop gives, differentiated once and twice, and which one ``choice`` takes.

    ``at_once``, ``twice``: as for ``Choice.backend_for``. Costs some ten gradients and Hessian-vector products a task.
    """
    try:
        backend, why = choice.backend_for(call, at_once, twice=twice)
    except InputError as error:  # vmap was asked for
        return Finding("backends", "wrong", str(error))
    vmap = isinstance(backend, VmapBackend)
    taken = f"{'vmap' if vmap else 'the loop'} is taken: {why}"
    once = [_agreement(call, role, task) for role, task in itertools.product(roles, range(call.batch.size))]
    differs = next((text for _, text in once if text), "")
    if differs:
        text = f"under vmap a loss is another one ({differs})"
        remedy = "Take backend='loop', or mend the operation (TorchScript, the vmap rule of an autograd.Function)"
        return _finding(f"{text}; the loop is taken", f"{text}. {remedy}" if vmap else "", verdict="note")
    if not (call.stackable and all(vmaps for vmaps, _ in once)):
        text = f"vmap can't take the losses ({_why_not(call, roles)})"
        return _finding(f"{text}; the loop is taken", f"{text}: take backend='loop'" if vmap else "")
    if call.look.draws:
        return _finding(f"vmap can take the losses, and draws other random numbers; {taken}")
    again = [_agreement(call, "inner_loss", task, twice=True) for task in range(call.batch.size)]
    differs = next((text for _, text in again if text), "")
    if differs:
        return _finding(f"under vmap MAML, IMAML and Tangent would differ: {differs}; {taken}", verdict="note")
    if all(vmaps for vmaps, _ in again):
        return _finding(f"vmap and the loop give the same first and second derivatives; {taken}")
    none = "under vmap there are no second derivatives, which MAML, IMAML and Tangent take: take backend='loop'"
    return _finding(f"vmap and the loop give the same first derivatives; {taken}", none if vmap and twice else "")


def _finding(text: str, wrong: str = "", verdict: Verdict = "ok") -> Finding:
    """``text`` with its verdict, unless something is ``wrong``."""
    return Finding("backends", "wrong", wrong) if wrong else Finding("backends", verdict, text)


def _adapted(call: Call, role: str, task: int) -> AdaptedLoss:
    loss = CheckedLoss(getattr(call.problem, role), role, differentiable=False)
    parameters = call.parameters_of((task, task + 1))
    return AdaptedLoss(loss, parameters.structure, parameters.w, writes=call.look.writes)


def _data(call: Call, role: str, task: int) -> Any:
    one = call.batch.one(task)
    return one.support if role == "inner_loss" else one.query


def _agreement(call: Call, role: str, task: int, *, twice: bool = False) -> tuple[bool, str]:
    loss = _adapted(call, role, task)
    seed = lambda task: call.noise.of(LOOK_NOISE)  # noqa: E731
    data = _data(call, role, task)
    found = agreement(loss, call.x(task), data, seed, comparable=call.look.repeats, twice=twice)
    loss.checked.release()
    return found


def _why_not(call: Call, roles: Sequence[str]) -> str:
    """What torch says where it is to vmap the losses, on one line."""
    if not call.stackable:
        return "the tasks are not tensors of equal shapes"
    for role, task in itertools.product(roles, range(call.batch.size)):
        loss, y = _adapted(call, role, task), call.x(task).expand(1, 2, -1)
        data = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), _data(call, role, task))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                VmapBackend().evaluate(loss, y, data, lambda task: call.noise.of(LOOK_NOISE))
        except Exception as error:  # whatever it is
            return f"{type(error).__name__}: {first_line(error)}"
        finally:
            loss.checked.release()
    return "its error did not come back"


def first_line(error: Exception) -> str:
    """Of an error's message, cut to a length that can be read."""
    return textwrap.shorten((str(error).splitlines() or [""])[0], 120)
