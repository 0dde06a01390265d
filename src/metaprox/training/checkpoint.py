"""The whole state of a run between two meta-steps, so that a killed run goes on bit for bit."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaprox.checks.trees import on_device, under
from metaprox.errors import DamagedFileError, RunFolderError
from metaprox.estimators.monitor import Monitor
from metaprox.storage.files import damaged
from metaprox.training import weights
from metaprox.training.borrowed import generators, set_generators
from metaprox.training.folder import KEPT, RunFolder
from metaprox.training.kept import check_generators, check_like
from metaprox.training.log import state_of, truncate
from metaprox.training.packed import pack, unpack
from metaprox.training.standing import Standing
from metaprox.training.starts import versions
from metaprox.training.stored import refuse_another

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer

WHAT = "a checkpoint of this run"


def save(folder: RunFolder, trainer: "Trainer", at: Standing) -> None:
    """Everything that determines what comes after ``at``; of older checkpoints as many as the pace says are kept.

    Raises:
        RunFolderError: the disk refuses; older ones are as they were.
    """
    tensors = {f"model.{name}": tensor for name, tensor in weights.learned(trainer.model).items()}
    tensors |= generators(trainer.device)
    tensors |= {f"best.{name}": tensor for name, tensor in at.best_weights.items()}
    tensors |= {f"health.{name}": tensor for name, tensor in at.health.items()}
    log, stream = state_of(folder.metrics), None
    if trainer.stream is not None:
        stream, own = trainer.stream.state()
        tensors |= {f"stream.{name}": tensor for name, tensor in own.items()}
    meta = {
        **at.described(),
        "metrics_size": log["size"],
        "metrics_sha256": log["sha256"],
        KEPT: trainer.configuration,
        "versions": versions(),
        "stream": stream,
        "optimizer_state": pack("optimizer", trainer.optimizer.state_dict(), tensors),
        "schedule_state": pack("schedule", trainer.schedule.state_dict(), tensors) if trainer.schedule else None,
    }
    weights.save(folder.checkpoint_of(at.step), weights.CHECKPOINT, tensors, meta)
    for old in folder.checkpoints()[trainer.pace.keep_checkpoints :]:
        with suppress(OSError):
            old.unlink()


def load(folder: RunFolder, trainer: "Trainer") -> Standing:
    """Bring ``trainer`` and the metrics back to the newest checkpoint that is as it was written.

    A damaged one is put aside with a warning, and the one before it taken.

    Returns:
        Where the run stands.

    Raises:
        RunFolderError: there is none, or it is of another run, model, optimizer or schedule; nothing is changed then.
    """
    refused: list[str] = []
    aside: list[Path] = []
    for path in folder.checkpoints():
        try:
            tensors, meta = weights.load(path, weights.CHECKPOINT)
        except DamagedFileError as error:
            refused.append(str(error))
            aside.append(path)
            continue
        at = _restore(folder, trainer, path, tensors, meta)
        if refused:
            warnings.warn(
                f"{'; '.join(refused)}: the run goes on from the checkpoint before, {path.name}, after meta-step "
                f"{at.step}; what can't be read is kept as NAME.damaged",
                stacklevel=2,
            )
        for one in aside:
            one.replace(one.with_name(f"{one.name}.damaged"))
        return at
    raise RunFolderError(
        f"{'; '.join(refused) or f'{folder.checkpoint} is missing'}: no checkpoint to go on from: to start the run "
        f"over, delete {folder.metrics.name} and the checkpoints in {folder.path}, and resume it"
    )


def _restore(
    folder: RunFolder, trainer: "Trainer", path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> Standing:
    """Everything is looked at before anything is changed."""
    assert trainer.configuration is not None
    remedy = ": put config.json back as it was, or delete it, and resume makes it again from the checkpoint"
    with damaged(path, WHAT):
        if KEPT in meta:
            refuse_another(path, "is a checkpoint of a run", meta[KEPT], trainer.configuration, remedy)
        at = Standing.of(meta, under("best.", tensors), trainer.pace.meta_steps)
        Monitor.check_state(health := under("health.", tensors))
        at.health = on_device(health, trainer.device)
        own = under("model.", tensors)
        weights.fit(trainer.model, own, path)
        if at.best_weights:
            weights.fit(trainer.model, at.best_weights, path)
        if "optimizer_state" in meta:
            optimizer, schedule = (unpack(meta[f"{part}_state"], tensors) for part in ("optimizer", "schedule"))
        else:
            optimizer, schedule = _of_version_1(tensors, meta)
        check_like(trainer.optimizer, trainer.schedule, optimizer, schedule)
        check_generators(tensors)
        log = {"size": int(meta["metrics_size"]), "sha256": meta.get("metrics_sha256")}
        if (trainer.stream is None) != (meta.get("stream") is None):
            raise RunFolderError(f"{path} is of a run with its training tasks by number where here is a stream of them")
        if trainer.stream is not None:
            trainer.stream.go_to(meta["stream"], under("stream.", tensors))
        there = dict(meta.get("versions", {}))
    _warn_of_versions(path, there)
    truncate(folder.metrics, log)
    with damaged(path, WHAT):
        trainer.optimizer.load_state_dict(optimizer)
        if trainer.schedule is not None:
            trainer.schedule.load_state_dict(schedule)
        _in_its_own_dtype(trainer.optimizer, optimizer)
        weights.load_into(trainer.model, own, path)
        set_generators(tensors, trainer.device)
    return at


def _warn_of_versions(path: Path, there: dict[str, str]) -> None:
    if there.get("torch", torch.__version__) != torch.__version__:
        warnings.warn(
            f"{path} was written with torch {there['torch']}, and this is {torch.__version__}: the run goes on, but "
            "not bit for bit as it would have",
            stacklevel=2,
        )


def _of_version_1(tensors: dict[str, Tensor], meta: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """State of the optimizer and of the schedule, of a run before configurations had a version."""
    slots: dict[int, dict[str, Any]] = {}
    for key, value in under("optimizer.", {**tensors, **meta.get("optimizer", {})}).items():
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
    path = folder.checkpoint
    tensors, _ = weights.load(path, weights.CHECKPOINT)
    weights.load_into(trainer.model, under("model.", tensors), path)
