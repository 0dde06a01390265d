"""The whole state of a run between two meta-steps, so that a killed run goes on bit for bit."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaprox.errors import RunFolderError
from metaprox.training import weights
from metaprox.training.folder import RunFolder
from metaprox.training.packed import pack, unpack

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

KIND = "a checkpoint"


def save(folder: RunFolder, trainer: "Trainer", step: int, seconds: float) -> None:
    """State after ``step`` meta-steps and ``seconds`` of training: weights, optimizer, schedule, generators."""
    tensors = {f"model.{name}": tensor for name, tensor in weights.learned(trainer.model).items()}
    tensors |= _generators(trainer)
    meta = {
        "step": step,
        "seconds": seconds,
        "metrics_size": folder.metrics_size(),
        "optimizer_state": pack("optimizer", trainer.optimizer.state_dict(), tensors),
        "schedule_state": pack("schedule", trainer.schedule.state_dict(), tensors) if trainer.schedule else None,
    }
    weights.save(folder.checkpoint, KIND, tensors, meta)


def load(folder: RunFolder, trainer: "Trainer") -> tuple[int, float]:
    """Bring ``trainer`` and the metrics back to the checkpoint.

    Returns:
        Its step and seconds.

    Raises:
        RunFolderError: it is missing or damaged, or of another model, optimizer or schedule.
    """
    tensors, meta = weights.load(folder.checkpoint, KIND)
    if "optimizer_state" in meta:
        optimizer, schedule = (unpack(meta[f"{part}_state"], tensors) for part in ("optimizer", "schedule"))
    else:
        optimizer, schedule = _of_version_1(tensors, meta)
    folder.truncate_metrics(meta["metrics_size"])
    weights.load_into(trainer.model, _under("model.", tensors), folder.checkpoint)
    try:
        trainer.optimizer.load_state_dict(optimizer)
        if trainer.schedule is not None:
            trainer.schedule.load_state_dict(schedule)
    except (ValueError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{folder.checkpoint} is not of this optimizer and schedule: {error}") from error
    _in_its_own_dtype(trainer.optimizer, optimizer)
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.device" in tensors:
        torch.get_device_module(trainer.device).set_rng_state(tensors["generator.device"], trainer.device)
    return meta["step"], meta["seconds"]


def _of_version_1(tensors: dict[str, Tensor], meta: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """State of the optimizer and of the schedule, of a run before configurations had a version."""
    slots: dict[int, dict[str, Any]] = {}
    for key, value in _under("optimizer.", {**tensors, **meta.get("optimizer", {})}).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    return {"state": slots, "param_groups": meta["param_groups"]}, meta["scheduler"]


def _in_its_own_dtype(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Torch casts what it loads to the dtype of the parameters: put back what had another."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = [index for group in state["param_groups"] for index in group["params"]]
    for index, parameter in zip(names, params, strict=True):
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and optimizer.state[parameter][name].dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(parameter.device)


def load_weights(folder: RunFolder, trainer: "Trainer") -> None:
    """Put the weights of the last checkpoint into the model, and touch nothing else, for the run may be going on."""
    tensors, _ = weights.load(folder.checkpoint, KIND)
    weights.load_into(trainer.model, _under("model.", tensors), folder.checkpoint)


def _generators(trainer: "Trainer") -> dict[str, Tensor]:
    states = {"generator.cpu": torch.get_rng_state()}
    if trainer.device.type != "cpu":
        module: Any = torch.get_device_module(trainer.device)
        states["generator.device"] = module.get_rng_state(trainer.device)
    return states


def _under(prefix: str, entries: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
