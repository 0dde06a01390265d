"""What is told of a run while it goes on: an object with a method for each event, such as TensorBoard's."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaprox.errors import MissingExtraError
from metaprox.training.folder import RunFolder

if TYPE_CHECKING:
    from metaprox.training.trainer import Trainer


class Callback:
    """Base of callbacks: each method does nothing, and a subclass says what it is to do.

    A callback sees a run and does not change it: a run that is resumed is told to a new one, from its last checkpoint
    on. ``record`` is what metrics.jsonl gets. What a callback raises ends the run as it is.
    """

    def on_start(self, trainer: "Trainer", folder: RunFolder, step: int) -> None:
        """A run begins, or goes on after meta-step ``step``."""

    def on_step(self, trainer: "Trainer", record: Mapping[str, Any]) -> None:
        """A meta-step is done."""

    def on_evaluation(self, trainer: "Trainer", record: Mapping[str, Any]) -> None:
        """An evaluation is done: before, during and after training; of split ``record["split"]``."""

    def on_evaluating(self, trainer: "Trainer", when: str, split: str, done: int, count: int) -> None:
        """An evaluation "before", "during" or "after" training goes on: ``done`` of ``count`` tasks are done."""

    def on_checkpoint(self, trainer: "Trainer", step: int) -> None:
        """A checkpoint after meta-step ``step`` has been written."""

    def on_end(self, trainer: "Trainer", folder: RunFolder) -> None:
        """The run has finished; its files are there."""


class TensorBoard(Callback):
    """Writes every number of the log, and what a run is warned of, for TensorBoard: ``tensorboard --logdir FOLDER``.

    A run that goes on after a stop takes back what it had written after its last checkpoint.

    Args:
        path: the folder of the events. None: ``tensorboard`` in the run folder.

    Raises:
        MissingExtraError: the package tensorboard is not there.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard needs tensorboard, which comes with: pip install 'metaprox[tensorboard]'"
            ) from error
        self._kind: Any = SummaryWriter
        self._path = path

    def on_start(self, trainer: "Trainer", folder: RunFolder, step: int) -> None:
        place = folder.path / "tensorboard" if self._path is None else Path(self._path)
        self._writer = self._kind(str(place), purge_step=step + 1 if step else None)

    def on_step(self, trainer: "Trainer", record: Mapping[str, Any]) -> None:
        health = {f"health_{name}": value for name, value in record.get("health", {}).items()}
        for name, value in {**record, **health}.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(f"train/{name}", value, record["step"])
        for name, text in record.get("warnings", {}).items():
            self._writer.add_text(name, text, record["step"])

    def on_evaluation(self, trainer: "Trainer", record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, dict):
                self._writer.add_scalar(f"{record['split']}/{name}", value["mean"], record["step"])
                self._writer.add_scalar(f"{record['split']}/{name}_ci95", value["ci95"], record["step"])

    def on_checkpoint(self, trainer: "Trainer", step: int) -> None:
        self._writer.flush()

    def on_end(self, trainer: "Trainer", folder: RunFolder) -> None:
        self._writer.close()
