"""HTML pages that stand alone: nothing is fetched, and every value is escaped."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """An HTML page from one of the templates; every value is escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("metaprox.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_url(path: Path) -> str:
    """A PNG within the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def shown(value: object) -> str:
    """A setting as text."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
