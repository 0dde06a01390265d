"""HTML pages that stand alone: nothing is fetched, and every value is escaped."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from metaprox.errors import RunFolderError
from metaprox.reports import style
from metaprox.storage.files import naming, write_text
from metaprox.training.starts import origin

MARK = '<meta name="generator" content="metaprox">'  # of our own pages, which may be written over


@dataclass(frozen=True)
class Shown:
    """A figure in a page: what it is called, a PNG for each panel as a URL, and what is said below it."""

    title: str
    panels: Sequence[str]
    note: str = ""

    @classmethod
    def of(cls, title: str, figure: Figure, note: str = "") -> "Shown":
        """Of a figure, which is used up; what it says above its panels is said below them."""
        note = " ".join(" ".join([figure.get_suptitle(), note]).split())
        return cls(title, [data_url(panel) for panel in style.panels(figure)], note)


def render(template: str, **values: Any) -> str:
    """An HTML page from one of the templates; every value is escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("metaprox.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"mark": MARK, "made": origin(), "time_of": time_of}
    return environment.get_template(template).render(**values)


def write_page(place: Path, page: str) -> Path:
    """Write a page where there is nothing, or one of ours. Raises RunFolderError where there is something else."""
    with naming(place, "read"):
        if place.is_dir():
            raise RunFolderError(f"{place} is a folder: choose a file, such as {place / 'report.html'}")
        if place.exists() and MARK.encode() not in place.read_bytes()[:2000]:
            raise RunFolderError(f"{place} is there, and is no page of metaprox: choose another file")
    write_text(place, page)
    return place


def time_of(date: str) -> str:
    """A date as pages say it: ``2026-03-05T14:02:11+00:00`` is ``2026-03-05 14:02 UTC``."""
    return f"{date[:16].replace('T', ' ')} UTC" if date.endswith("+00:00") else date


def data_url(content: bytes) -> str:
    """A PNG within the page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def shown(value: object) -> str:
    """A setting as text."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def told_apart(settings: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Settings that are not the same for all, name -> the value of each, "" where one has none; and those that are."""
    names = dict.fromkeys(name for own in settings for name in own)
    values = {name: [shown(own[name]) if name in own else "" for own in settings] for name in names}
    differing = {name: each for name, each in values.items() if len(set(each)) > 1}
    return differing, {name: each[0] for name, each in values.items() if name not in differing}
