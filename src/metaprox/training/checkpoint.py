"""The whole state of a run between two meta-steps, so that a killed run goes on bit for bit."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaprox.training import weights
from metaprox.training.folder import RunFolder

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

KIND = "a checkpoint"


def save(folder: RunFolder, trainer: "Trainer", step: int, seconds: float) -> None:
    """State after ``step`` meta-steps and ``seconds`` of training: weights, optimizer, schedule, generators."""
    state = trainer.optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in weights.learned(trainer.model).items()}
    numbers: dict[str, Any] = {}
    for index, slot in state["state"].items():
        for name, value in slot.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"optimizer.{index}.{name}"] = value
    tensors |= _generators(trainer)
    meta = {
        "step": step,
        "seconds": seconds,
        "metrics_size": folder.metrics_size(),
        "param_groups": state["param_groups"],
        "optimizer": numbers,
        "scheduler": trainer.schedule.state_dict() if trainer.schedule else None,
    }
    weights.save(folder.checkpoint, KIND, tensors, meta)


def load(folder: RunFolder, trainer: "Trainer") -> tuple[int, float]:
    """Bring ``trainer`` and the metrics back to the checkpoint; returns its step and seconds."""
    tensors, meta = weights.load(folder.checkpoint, KIND)
    folder.truncate_metrics(meta["metrics_size"])
    weights.load_into(trainer.model, _under("model.", tensors), folder.checkpoint)
    slots: dict[int, dict[str, Any]] = {}
    for key, value in _under("optimizer.", {**tensors, **meta.get("optimizer", {})}).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    trainer.optimizer.load_state_dict({"state": slots, "param_groups": meta["param_groups"]})
    if trainer.schedule is not None:
        trainer.schedule.load_state_dict(meta["scheduler"])
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.device" in tensors:
        torch.get_device_module(trainer.device).set_rng_state(tensors["generator.device"], trainer.device)
    return meta["step"], meta["seconds"]


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
