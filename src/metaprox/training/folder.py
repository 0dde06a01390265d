"""The files of a run: configuration, metrics, checkpoint, weights, figures, report."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import InputError, RunFolderError
from metaprox.training.stored import parsed


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it makes. Files appear whole or not at all; metrics.jsonl grows by whole lines."""

    path: Path

    def __post_init__(self) -> None:
        checks.settle(self, path=checks.path)

    @classmethod
    def create(cls, path: str | Path, configuration: Mapping[str, Any]) -> "RunFolder":
        """A new run in a folder that is missing or empty. Raises RunFolderError, and touches nothing, otherwise."""
        path = checks.path("path", path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunFolderError(
                f"{path} exists and is not an empty folder: choose another --out, or go on with the run in it: "
                f"metaprox resume {path}"
            )
        folder = cls(path).made()
        folder.write_text("config.json", json.dumps(configuration, indent=2) + "\n")
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunFolderError where there is none."""
        path = checks.path("path", path)
        if not (path / "config.json").is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.json")
        return cls(path)

    def made(self) -> "RunFolder":
        """The same, with the folder there. Raises RunFolderError where it can't be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} can't be made: {error.strerror}; choose another --out") from error
        return self

    def configuration(self) -> dict[str, Any]:
        """What config.json holds. Raises RunFolderError where it is damaged, or of a newer version."""
        place = self.path / "config.json"
        try:
            return parsed(place.read_text(encoding="utf-8"))
        except (InputError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{place}: {error}") from error

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def test_values(self) -> Path:
        return self.path / "test_tasks.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        place = self.path / name
        partial = place.with_name(place.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(place)
        return place

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of JSON. Floats are written so that they read back exactly."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line, up to now."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def tasks_skipped(self) -> int:
        """How many training tasks diverged and were left out of their meta-step, up to now."""
        return int(sum(record.get("tasks_skipped", 0) for record in self.read_metrics()))

    def write_test_values(self, values: Mapping[str, list[float]]) -> None:
        """The result on every test task, in the order of their ids: name -> a number for each task."""
        self.write_text(self.test_values.name, json.dumps(values) + "\n")

    def read_test_values(self) -> dict[str, list[float]]:
        """What ``write_test_values`` wrote. Raises RunFolderError where the run has not finished."""
        if not self.test_values.is_file():
            raise RunFolderError(f"{self.test_values} is missing: the run in {self.path} has not finished; resume it")
        values: dict[str, list[float]] = json.loads(self.test_values.read_text(encoding="utf-8"))
        return values

    def metrics_size(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Forget what was logged after a checkpoint: the resumed run logs it again."""
        if self.metrics_size() < size:
            raise RunFolderError(
                f"{self.metrics} is shorter than when the checkpoint was written: it was changed since"
            )
        if self.metrics.exists():
            os.truncate(self.metrics, size)
