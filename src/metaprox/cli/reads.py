"""Options that say how files are read: those of the family of a run, or of what was adapted."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metaprox import training
from metaprox.errors import MetaproxError
from metaprox.serving import disk
from metaprox.tasks import Family, families
from metaprox.training.names import FAMILIES
from metaprox.training.options import help_of


@dataclass(frozen=True, kw_only=True)
class Reads:
    """A command that reads files, as a run does; ``with_columns`` gives it the options that say how."""

    def columns(self) -> dict[str, str]:
        """Those that were given."""
        found = {name: getattr(self, name) for name in getattr(self, "reads", ())}
        return {name: value for name, value in found.items() if value is not None}


def with_columns(command: type[Reads], folder: str) -> type[Reads]:
    """Returns ``command`` with the fields by which the family of ``folder`` reads, as options; without one, of any."""
    fields: dict[str, Any] = {}
    for kind in _kinds(Path(folder)):
        for name in (*kind.reads, *kind.reads_once):
            usual = "Default: as in the run." if name in kind.reads else ""
            text = help_of(kind).get(name, name).partition(" Default:")[0]
            about = tyro.conf.arg(help=f"{text} {usual}".strip(), metavar="TEXT")
            fields.setdefault(name, Annotated[str | None, about])
    made = make_dataclass(
        command.__name__,
        [(name, hint, field(default=None)) for name, hint in fields.items()],
        bases=(command,),
        frozen=True,
        kw_only=True,
    )
    made.__doc__ = command.__doc__
    made.reads = tuple(fields)  # type: ignore[attr-defined]
    return made


def _kinds(folder: Path) -> list[type[Family]]:
    try:
        if (folder / "config.json").is_file():
            values = training.configuration_of(training.RunFolder.open(folder))
            return [FAMILIES.of(values["tasks"]["class"])]
        known = families().get((disk.about(folder, "adapted").get("source") or {}).get("family", ""))
        return [known] if known else []
    except (MetaproxError, KeyError, TypeError, AttributeError):  # the command says what is wrong with it
        return list(families().values())
