"""The whole state of a run between two meta-steps, so that a killed run goes on bit for bit."""

from typing import Any

import torch
from torch import Tensor

from metaprox.training import weights
from metaprox.training.folder import RunFolder
from metaprox.training.setup import Setup

KIND = "a checkpoint"


def save(folder: RunFolder, setup: Setup, step: int, seconds: float) -> None:
    """State after ``step`` meta-steps and ``seconds`` of training: weights, optimizer, schedule, generators."""
    state = setup.optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in weights.learned(setup.model).items()}
    tensors |= {
        f"optimizer.{index}.{name}": value for index, slot in state["state"].items() for name, value in slot.items()
    }
    tensors |= _generators(setup)
    meta = {
        "step": step,
        "seconds": seconds,
        "metrics_size": folder.metrics_size(),
        "param_groups": state["param_groups"],
        "scheduler": setup.scheduler.state_dict(),
    }
    weights.save(folder.checkpoint, KIND, tensors, meta)


def load(folder: RunFolder, setup: Setup) -> tuple[int, float]:
    """Bring ``setup`` and the metrics back to the checkpoint; returns its step and seconds."""
    tensors, meta = weights.load(folder.checkpoint, KIND)
    folder.truncate_metrics(meta["metrics_size"])
    weights.load_into(setup.model, _under("model.", tensors), folder.checkpoint)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    setup.optimizer.load_state_dict({"state": slots, "param_groups": meta["param_groups"]})
    setup.scheduler.load_state_dict(meta["scheduler"])
    torch.set_rng_state(tensors["generator.cpu"])
    if "generator.device" in tensors:
        torch.get_device_module(setup.config.device).set_rng_state(tensors["generator.device"], setup.config.device)
    return meta["step"], meta["seconds"]


def load_weights(folder: RunFolder, setup: Setup) -> None:
    """Put the weights of the last checkpoint into the model, and touch nothing else, for the run may be going on."""
    tensors, _ = weights.load(folder.checkpoint, KIND)
    weights.load_into(setup.model, _under("model.", tensors), folder.checkpoint)


def _generators(setup: Setup) -> dict[str, Tensor]:
    states = {"generator.cpu": torch.get_rng_state()}
    if torch.device(setup.config.device).type != "cpu":
        module: Any = torch.get_device_module(setup.config.device)
        states["generator.device"] = module.get_rng_state(setup.config.device)
    return states


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
