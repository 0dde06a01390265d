"""How figures and tables look: plain axes, readable log scales, a colour and, for print, a marker for each method."""

import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metaprox.storage.files import write_whole

BLUE, LIGHT_BLUE, BLACK, GREEN, ORANGE, GREY, PURPLE = (
    "#0b6e99",
    "#55b3d9",
    "#1b1f24",
    "#2e8540",
    "#c2571a",
    "#9aa5b1",
    "#7b4fa3",
)


# How a method or a variant of it is called in tables and figures; others by their own names.
NAMES = {
    "fobmaml": "FO-B-MAML",
    "fobmaml-center": "FO-B-MAML, center",
    "fobmaml-forward": "FO-B-MAML, forward",
    "fobmaml-forward-center": "FO-B-MAML, forward, center",
    "tangent": "Tangent",
    "imaml": "iMAML",
    "maml": "MAML",
    "fomaml": "FO-MAML",
    "reptile": "Reptile",
}


def _look(color: str, linestyle: str, marker: str, fillstyle: str = "full") -> dict[str, Any]:
    look = {"color": color, "linestyle": linestyle, "marker": marker, "fillstyle": fillstyle}
    return look | {"markersize": 5, "markevery": 0.15}


METHODS: dict[str, dict[str, Any]] = {
    "fobmaml": _look(BLUE, "-", "o"),
    "fobmaml-center": _look(BLUE, "--", "o", "none"),
    "fobmaml-forward": _look(LIGHT_BLUE, "-", "D"),
    "fobmaml-forward-center": _look(LIGHT_BLUE, "--", "D", "none"),
    "tangent": _look(PURPLE, ":", "P"),
    "imaml": _look(GREEN, "-", "s", "none"),
    "maml": _look(BLACK, "-", "^"),
    "fomaml": _look(ORANGE, "-", "v"),
    "reptile": _look(GREY, "-", "X"),
}
OTHERS = ("#b8860b", "#a23b72", "#00827f", "#6b4226")


def method_styles(labels: list[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and name of each method; the same in every figure for the methods that have a name here."""
    spare = cycle(OTHERS)
    return {label: METHODS.get(label) or {"color": next(spare), "linestyle": "-."} for label in labels}


def method_name(label: str) -> str:
    """The name in tables and figures."""
    return NAMES.get(label, label)


def plain(text: str) -> str:
    """A name of somebody's own as figures show it: no formula, and in the legend also where it begins with ``_``."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: Figure, place: Path) -> None:
    """Write a PNG whole or not at all. A letter that the font does not have is a box, which is no matter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        write_whole(place, lambda path: figure.savefig(path, dpi=120, format="png"))


def canvas(title: str) -> tuple[Figure, Axes]:
    """A figure of one panel. The title says what it shows, as a sentence."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    tidy(axes, title)
    return figure, axes


def tidy(axes: Axes, title: str) -> None:
    """Title at the left, no box."""
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)


def log_scale(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis, with plain numbers also where the range is less than a decade."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def loss_scale(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis for losses, where these are positive: a log-likelihood may be of either sign."""
    if all(value > 0 for value in values):
        log_scale(axes)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ([cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
