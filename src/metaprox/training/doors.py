"""Runs by settings and by folder; a script with objects of its own uses ``Trainer``."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaprox import checks
from metaprox.data.contents import told
from metaprox.errors import InputError, RunFolderError
from metaprox.readers.hub import on_disk
from metaprox.tasks import Family
from metaprox.training import checkpoint, ranks
from metaprox.training.callbacks import Callback
from metaprox.training.composition import Composition
from metaprox.training.folder import RunFolder
from metaprox.training.loop import Watch, finished_weights
from metaprox.training.script import SCRIPT
from metaprox.training.settings import Settings
from metaprox.training.stored import CONTENTS, DATA, KNOWN
from metaprox.training.trainer import Trainer


def train(
    run: Settings | Composition,
    out: str | Path,
    watch: Watch = lambda progress: None,
    callbacks: Sequence[Callback] = (),
) -> RunFolder:
    """Train what ``run`` describes in the new folder ``out``. Raises what ``Trainer.train`` raises."""
    return replace(composed(run).trainer(), callbacks=callbacks).train(checks.path("out", out), watch)


def resume(out: str | Path, watch: Watch = lambda progress: None, callbacks: Sequence[Callback] = ()) -> RunFolder:
    """Go on with the run in ``out`` from its last checkpoint, as ``Trainer.resume``; a finished one stays as it is."""
    out = checks.path("out", out)
    ranks.by_first(lambda: recover_configuration(out))
    folder = ranks.made_by_first(lambda: RunFolder.open(out))
    if folder.weights.exists():
        finished_weights(folder, folder.configuration())
        return folder
    with ranks.telling(), ranks.locked(folder):
        return replace(trainer_of(folder), callbacks=callbacks).go_on(folder, watch)


def recover_configuration(path: Path) -> None:
    """Where config.json is missing, and another file of the run holds it too, write it again, with a warning."""
    folder, place = RunFolder(path), path / "config.json"
    if path.is_dir() and not place.exists() and (recorded := folder.recorded()):
        with folder.locked():
            folder.reconfigure(recorded[1])
        warnings.warn(f"{place} was missing: it is made again from {recorded[0].name}", stacklevel=3)


def composed(run: Settings | Composition) -> Composition:
    """The run as its parts."""
    if isinstance(run, Settings):
        return run.composition()
    if not isinstance(run, Composition):
        raise InputError(f"a run is described by training.Settings or a Composition, got {checks.shown(run)}")
    return run


def composition_of(folder: RunFolder, *, other_data: bool = False) -> Composition:
    """The parts of the run in a folder; those of version 1 are read too.

    Args:
        folder: of the run.
        other_data: whether it goes on to data other than its own, which are not read then, and may be gone, as far as
            the folder says what is known of them.

    Returns:
        Its parts.

    Raises:
        RunFolderError: the run is that of a script, whose parts are in the script alone, or they can't be read; or its
            data are no longer as they were.
    """
    values, place = folder.configuration(), folder.path / "config.json"
    if values.get("made_by") == SCRIPT:
        raise RunFolderError(
            f"{folder.path} is the run of a script, with a model and tasks of its own: go on with it, evaluate it and "
            "report on it there, by its training.Trainer"
        )
    try:
        if "version" in values:
            found = Composition.of(values, remembering=other_data)
        else:
            found = Settings.of_version_1(values).composition()
    except InputError as error:
        raise RunFolderError(f"{place}: {_without_data(values) or error}") from error
    if not other_data or (KNOWN not in values and found.family.scales):
        _require_same_data(folder, values, found.family)
    return found


def _require_same_data(folder: RunFolder, values: Mapping[str, Any], family: Family) -> None:
    """Raise RunFolderError, saying what differs, where a run's data are not those that it began with."""
    same = DATA not in values or values[DATA] == family.fingerprint()
    there, here = values.get(KNOWN), json.loads(json.dumps(family.known() if KNOWN in values else None))
    contents = family.contents() if CONTENTS in values else None
    if same and there == here and (contents is None or contents.sha256 == values[CONTENTS]):
        return
    changes = contents.changes(folder.contents()) if contents is not None and folder.data.is_file() else []
    if isinstance(there, Mapping) and there.get("splits") != here.get("splits"):
        changes.insert(0, f"the lists in {getattr(family, 'splits', None)} are others")
    what = f" ({told(changes)})" if changes else ""
    raise RunFolderError(
        f"{folder.path / 'config.json'}: the run's data in {getattr(family, 'place', None)} have changed since it "
        f"began{what}, and with them its tasks, splits or scales: put them back as they were, with what is new in "
        "another place; or train anew"
    )


def _without_data(values: Mapping[str, Any]) -> str:
    """That the data of a run are gone, and what to do; "" where they are there, or it has none."""
    tasks = values.get("tasks")
    data = tasks.get("data") if isinstance(tasks, Mapping) else None
    place = on_disk(Path(data)) if isinstance(data, str) else None
    if place is None or place.exists() or not place.is_absolute():  # a name on the hub: its error tells
        return ""
    return f"the run's data are no longer in {data}, and are read again: put them back there"


def served(folder: RunFolder) -> tuple[Composition, Trainer]:
    """The parts of a run that goes on to other data, and its trainer, as one of the very data that the run had."""
    composition, values = composition_of(folder, other_data=True), folder.configuration()
    if KNOWN in values:
        return composition, composition.trainer(values)
    trainer = composition.trainer()  # of a run from before that was kept, or of data of its own
    return composition, replace(trainer, configuration=values) if DATA in values else trainer


def configuration_of(folder: RunFolder) -> Mapping[str, Any]:
    """What the run in a folder says of itself, as this version would."""
    values = folder.configuration()
    return values if "version" in values else composition_of(folder).configuration()


def trainer_of(folder: RunFolder, data: str | Path | None = None, **columns: str) -> Trainer:
    """Returns the run in a folder, with its initial weights; with test tasks of other ``data``, where some is given.

    ``columns``: by which those are read, in place of the run's.

    Raises:
        RunFolderError: as ``composition_of``.
        InputError: the family of the run does not read the data.
    """
    if data is None:
        return composition_of(folder).trainer()
    composition, trainer = served(folder)
    family = composition.family.of_split("test").reading(**columns)
    return replace(trainer, tasks={**trainer.tasks, "test": family.on(data)})


def latest(folder: RunFolder) -> Trainer:
    """The run in a folder with its final weights, or those of its last checkpoint."""
    trainer = trainer_of(folder)
    if folder.weights.exists():
        trainer.load_weights(folder)
    else:
        checkpoint.load_weights(folder, trainer)
    return trainer
