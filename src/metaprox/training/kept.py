"""Whether a state that was kept is one that an optimizer, a schedule or a generator can have."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from metaprox import checks
from metaprox.errors import InputError

FACTORED = (torch.optim.Adafactor,)  # keeps rows and columns in place of what has the shape of a parameter


def check_like(optimizer: Optimizer, schedule: LRScheduler | None, optimizer_state: Any, schedule_state: Any) -> None:
    """Raise InputError where these are not states of this optimizer and this schedule, before they are taken."""
    own = optimizer.state_dict()["param_groups"]
    there = checks.instance_of(Mapping)("the optimizer's state", optimizer_state)
    if len(there["param_groups"]) != len(own):
        raise InputError(f"the optimizer has {len(own)} groups of parameters, its state {len(there['param_groups'])}")
    for mine, theirs in zip(own, there["param_groups"], strict=True):
        _check_kinds("optimizer", mine, theirs)
        if mine["params"] != theirs["params"]:
            raise InputError("the optimizer's groups hold other parameters than their state")
    if type(optimizer).__module__.startswith(("torch.optim", "metaprox.")) and type(optimizer) not in FACTORED:
        _check_slots(optimizer, there["state"])
    if (schedule is None) != (schedule_state is None):
        raise InputError("there is a schedule in one of the run and its state alone")
    if schedule is not None:
        _check_kinds("schedule", schedule.state_dict(), checks.instance_of(Mapping)("its state", schedule_state))


def _check_kinds(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if odd := sorted(map(str, theirs.keys() - mine.keys())):
        raise InputError(f"the {what} has no {', '.join(odd)}")
    for name, value in theirs.items():
        if _kind(value) != _kind(mine[name]):
            raise InputError(f"{name} of the {what} can't be {checks.shown(value)}")


def _kind(value: Any) -> type:
    """Numbers are alike, with None, which many settings take, among them; and so are lists and tuples."""
    if value is None or isinstance(value, (bool, int, float, Tensor)):
        return float
    if isinstance(value, (list, tuple)):
        return list
    return dict if isinstance(value, Mapping) else type(value)


def _check_slots(optimizer: Optimizer, state: Mapping[Any, Any]) -> None:
    """What torch's own optimizers keep of a parameter is of its shape, or a number."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, slots in state.items():
        for name, value in slots.items():
            if not isinstance(value, (Tensor, bool, int, float, type(None))):
                raise InputError(f"{name} of the optimizer can't be {checks.shown(value)}")
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if value.dtype != params[index].dtype:
                raise InputError(f"{name} of the optimizer is of {value.dtype}, its parameter of {params[index].dtype}")
            if value.shape != params[index].shape:
                raise InputError(f"{name} of the optimizer has the shape {tuple(value.shape)}, which no parameter has")


def check_generators(states: Mapping[str, Tensor]) -> None:
    """Raise an error unless these are states of generators; none is changed."""
    torch.Generator().set_state(states["generator.cpu"])
    if "generator.python" in states:
        _, _ = states["generator.python_gauss"].tolist()
        random.Random().setstate((3, tuple(states["generator.python"].tolist()), None))
    if "generator.numpy" in states:
        _, _ = states["generator.numpy_gauss"].tolist()
        *words, place = states["generator.numpy"].tolist()
        np.random.RandomState().set_state(("MT19937", np.array(words, dtype=np.uint32), place, 0, 0.0))
