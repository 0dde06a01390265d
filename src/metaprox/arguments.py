"""Checks of what public calls are given: a problem, parameters, tasks and a solver, each in its place."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from metaprox import checks
from metaprox.checks import shown, signatures
from metaprox.data.batch import TaskBatch
from metaprox.data.stacks import refuse_stack
from metaprox.data.task import Task
from metaprox.errors import InputError
from metaprox.problem import ProximalProblem
from metaprox.solvers.protocol import check_solver
from metaprox.types import Params


def check_problem(problem: Any) -> None:
    """``problem`` is a ProximalProblem."""
    if not isinstance(problem, ProximalProblem):
        remedy = "mp.ProximalProblem.from_module(model, loss, lam) makes one"
        raise InputError(f"problem must be a mp.ProximalProblem, got {shown(problem)}: {remedy}")


def check_params(params: Any) -> None:
    """``params`` are tensors by name; which kinds of tensors is checked where they are laid out."""
    if not isinstance(params, (Mapping, nn.ParameterDict)):
        remedy = "for those of a model, dict(model.named_parameters())"
        raise InputError(f"params must be a dict of tensors by name, got {shown(params)}: {remedy}")
    for name in params:
        checks.text("each of the names in params", name)


def check_estimate(problem: Any, params: Any) -> None:
    """The first arguments of an estimator; tasks are checked where they become a batch."""
    check_problem(problem)
    check_params(params)


def parameters_to_fill(problem: Any, params: Any) -> Params:
    """``params``, those of the problem where None, of which each has a ``.grad`` that can be added to."""
    found = parameters_of(problem, params)
    check_fillable(found)
    return found


def parameters_of(problem: Any, params: Any) -> Params:
    """``params``, or where None those that the problem was built on."""
    check_problem(problem)
    found: Params = problem.live_parameters() if params is None else params
    check_params(found)
    return found


def check_adapt(support: Any, solver: Any) -> None:
    """Arguments of ``adapt``."""
    check_solver("solver", solver)
    if isinstance(support, Task):
        raise InputError("support is a mp.Task, of which adapt takes the support alone: give task.support")
    refuse_stack(support, "the support")


def check_evaluate(tasks: Any, ids: Any, solver: Any) -> list[int]:
    """Arguments of ``evaluate``; returns the ids as Python's integers, where they are left out those of the tasks."""
    check_solver("solver", solver)
    if callable(tasks):
        remedy = "it makes the tasks of some ids, such as metaprox.tasks.Sinusoid(split='test').batch"
        signatures.function("tasks", tasks, "ids", remedy)
        if ids is None:
            raise InputError("ids is None, but tasks is a function of them: say which, such as range(100)")
        return checks.ids("ids", ids)
    if not isinstance(tasks, (Task, list, tuple)):
        raise InputError(f"tasks must be a function of ids, a list of mp.Task or a stacked mp.Task, got {shown(tasks)}")
    count = TaskBatch.of(tasks).size
    found = list(range(count)) if ids is None else checks.ids("ids", ids)
    check_number_of_tasks(count, len(found))
    return found


def check_number_of_tasks(tasks: int, ids: int) -> None:
    """There is a task for each id of ``evaluate``."""
    if tasks != ids:
        raise InputError(f"there are {tasks} tasks for {ids} ids: each id needs one task, in the same order")


def check_fillable(params: Mapping[str, Any]) -> None:
    """To the ``.grad`` of each of ``params`` a gradient can be added, so that none is changed where one can't be."""
    owners: dict[int, str] = {}
    for name, value in params.items():
        if not isinstance(value, torch.Tensor):
            continue  # is refused where parameters are laid out
        if not value.is_leaf:
            raise InputError(
                f"parameter {name!r} is no leaf, and such tensors keep no .grad: pass those it was computed from, or "
                "call the estimator, which returns the gradient"
            )
        if id(value) in owners:
            raise InputError(f"parameters {owners[id(value)]!r} and {name!r} are one tensor, which has one .grad")
        owners[id(value)] = name
        if value.grad is not None:
            _check_writable(name, value.grad)


def _check_writable(name: str, grad: torch.Tensor) -> None:
    kinds = {
        f"of layout {grad.layout}": grad.layout != torch.strided,
        "an expanded tensor": grad.layout == torch.strided and _is_expanded(grad),
        "a tensor of inference mode": grad.is_inference() and not torch.is_inference_mode_enabled(),
        "part of a graph": grad.requires_grad,
    }
    for kind, found in kinds.items():
        if found:
            raise InputError(f"parameter {name!r} has a .grad that is {kind}, which can't be added to: set it to None")


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
