"""The files of a run: configuration, metrics, checkpoints, weights, figures, report."""

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.errors import DamagedFileError, InputError, MetaproxError, RunFolderError
from metaprox.evaluation import Statistic
from metaprox.storage import checksums
from metaprox.storage.files import damaged, is_leftover, json_of, naming, write_text
from metaprox.storage.lock import locked
from metaprox.training import log, records, weights
from metaprox.training.stored import different, parsed

KEPT = "configuration"  # where a checkpoint holds it
CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it makes. Files appear whole or not at all; metrics.jsonl grows by whole lines."""

    path: Path

    def __post_init__(self) -> None:
        checks.settle(self, path=checks.path)

    @classmethod
    def claimed(cls, path: str | Path) -> "RunFolder":
        """The folder of a new run, made where it is missing. Raises RunFolderError where it holds anything."""
        path = checks.path("path", path)
        with naming(path, "read"):
            empty = not path.exists() or (path.is_dir() and all(map(_is_nothing, path.iterdir())))
        if not empty:
            raise RunFolderError(
                f"{path} exists and is not an empty folder: choose another --out, or go on with the run in it: "
                f"metaprox resume {path}"
            )
        return cls(path).made()

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises RunFolderError where there is none."""
        path = checks.path("path", path)
        with naming(path, "read"):
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

    def configure(self, configuration: Mapping[str, Any], contents: Mapping[str, str] | None = None) -> None:
        """Write config.json, after its checksum; and before both, where there are some, ``contents`` as data.json."""
        sums = {}
        if contents is not None:
            text = json.dumps(contents, indent=1) + "\n"
            self.write_text(self.data.name, text)
            sums[self.data.name] = checksums.of_bytes(text.encode())
        self._configure(configuration, sums)

    def reconfigure(self, configuration: Mapping[str, Any]) -> None:
        """Write config.json of a run that has lost it."""
        self._configure(configuration, self._begun())

    def _configure(self, configuration: Mapping[str, Any], sums: Mapping[str, str]) -> None:
        text = json.dumps(configuration, indent=2) + "\n"
        checksums.write(self.path, {**sums, "config.json": checksums.of_bytes(text.encode())})
        self.write_text("config.json", text)

    def _begun(self) -> dict[str, str]:
        """The sums of what a run begins with, as they were then: what was damaged since is not to become right."""
        return {name: own for name, own in checksums.read(self.path).items() if name in ("config.json", "data.json")}

    def contents(self) -> dict[str, str]:
        """What data.json holds; {} where there is none. Raises RunFolderError where it is damaged."""
        if not self.data.is_file():
            return {}
        values = json_of(self.data, checksums.checked(self.data))
        with damaged(self.data, "the checksums of a run's data"):
            return {str(name): str(part) for name, part in values.items()}

    def locked(self) -> AbstractContextManager[None]:
        """Within, no other process works here. Raises RunFolderError where one does; names it."""
        return locked(self.path)

    def configuration(self) -> dict[str, Any]:
        """What config.json holds. Raises RunFolderError where it is damaged, changed, or of a newer version."""
        place = self.path / "config.json"
        try:
            return parsed(checksums.checked(place))
        except InputError as error:
            raise RunFolderError(f"{place}: {error}") from error
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}{self._changed()}") from error

    def recorded(self) -> tuple[Path, dict[str, Any]] | None:
        """Which file of the run holds its configuration too, and that configuration; None where none does."""
        known = (
            (self.weights, weights.WEIGHTS, "config"),
            *((p, weights.CHECKPOINT, KEPT) for p in self.checkpoints()),
        )
        for place, kind, key in known:
            with suppress(RunFolderError):
                if isinstance(found := weights.load(place, kind)[1].get(key), dict):
                    return place, found
        return None

    def _changed(self) -> str:
        """What is not the same in config.json and in the files of the run that hold it too."""
        if (recorded := self.recorded()) is None:
            return ""
        place, there = recorded
        remedy = f"; or delete it, and metaprox resume makes it again from {place.name}"
        with suppress(MetaproxError, OSError, ValueError, LookupError, TypeError, AttributeError):
            here = parsed((self.path / "config.json").read_text(encoding="utf-8"))
            return f"{remedy}. What differs: {'; '.join(different(there, here)) or 'nothing but how it is written'}"
        return remedy

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The newest; where there is none, that of the start."""
        return next(iter(self.checkpoints()), self.checkpoint_of(0))

    def checkpoint_of(self, step: int) -> Path:
        return self.path / f"checkpoint-{step:08d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """Those that there are, the newest first; at the end that of a run from before there were several."""
        found = {int(known[1]): path for path in self.path.glob("*") if (known := CHECKPOINT.fullmatch(path.name))}
        before = self.path / "checkpoint.safetensors"
        return [found[step] for step in sorted(found, reverse=True)] + ([before] if before.exists() else [])

    def unfinished(self, lacking: Path) -> RunFolderError:
        """What to raise where a file of a finished run is missing: how far the run is."""
        saved = CHECKPOINT.fullmatch(self.checkpoint.name)
        steps = int(saved[1]) if saved and self.checkpoint.exists() else 0
        whole = ""
        with suppress(MetaproxError, LookupError, TypeError):
            whole = f" of {self.configuration()['run']['meta_steps']}"
        far = f"{steps}{whole} meta-steps are saved"
        return RunFolderError(f"{lacking} is missing: the run in {self.path} has not finished; resume it ({far})")

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def test_values(self) -> Path:
        return self.path / "test_tasks.json"

    @property
    def starts(self) -> Path:
        return self.path / "starts.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def figure(self, name: str) -> Path:
        """Where a figure is to be, in a folder that is there."""
        with naming(self.figures, "made"):
            self.figures.mkdir(exist_ok=True)
        return self.figures / name

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        place = self.path / name
        write_text(place, text)
        return place

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of JSON. Floats are written so that they read back exactly."""
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line, up to now. Raises RunFolderError where one is damaged; names it."""
        return log.read(self.metrics)

    def read_finished(self) -> list[dict[str, Any]]:
        """The log of a finished run. Raises RunFolderError where it has not finished, or its log is gone or damaged."""
        self.read_test_values()
        if not (found := self.read_metrics()):
            raise RunFolderError(f"{self.metrics} is missing: there is nothing to report")
        return found

    def tested(self) -> dict[str, dict[str, Statistic]]:
        """Returns the results on test tasks, ``["before"]`` training and ``["after"]``, by name, such as "accuracy".

        Raises:
            RunFolderError: as ``read_finished``.
        """
        found = self.read_finished()
        with damaged(self.metrics, "the log of a finished run"):
            return records.tested(found)

    def tasks_skipped(self) -> int:
        """How many training tasks diverged and were left out of their meta-step, up to now."""
        return int(sum(record.get("tasks_skipped", 0) for record in self.read_metrics()))

    def write_test_values(self, values: Mapping[str, list[float]]) -> None:
        """The result on every test task, in the order of their ids: name -> a number for each task."""
        self.write_text(self.test_values.name, json.dumps(values) + "\n")

    def read_test_values(self) -> dict[str, list[float]]:
        """What ``write_test_values`` wrote. Raises RunFolderError where the run has not finished, or it is damaged."""
        checksums.refuse_lost(self.test_values)
        if not self.test_values.is_file():
            raise self.unfinished(self.test_values)
        values = json_of(self.test_values, checksums.checked(self.test_values))
        with damaged(self.test_values, "the results of a run, a list of numbers for each quantity"):
            return {str(name): [float(number) for number in column] for name, column in values.items()}

    def seal(self) -> None:
        """Keep the checksums of what a finished run leaves, before its weights make it one."""
        files = (self.path / "config.json", self.data, self.metrics, self.test_values, self.starts)
        sums = {path.name: checksums.of_file(path) for path in files if path.exists()}
        checksums.write(self.path, sums | self._begun())

    def unseal(self) -> None:
        """Of a run that goes on nothing but the configuration, and what is known of its data, is as it will be."""
        if checksums.read(self.path).keys() - (begun := self._begun()).keys():
            checksums.write(self.path, begun)


def _is_nothing(path: Path) -> bool:
    """Whether it is what a process that ended left before there was a run."""
    return is_leftover(path) or path.name in (checksums.NAME, "data.json")
