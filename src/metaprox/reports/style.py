"""How figures and tables look: plain axes, readable log scales, a colour and, for print, a marker for each method."""

import textwrap
import warnings
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FixedLocator, LogLocator

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
    "fobmaml-loss": "FO-B-MAML, loss",
    "fobmaml-forward": "FO-B-MAML, forward",
    "fobmaml-forward-loss": "FO-B-MAML, forward, loss",
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
    "fobmaml-loss": _look(BLUE, "--", "o", "none"),
    "fobmaml-forward": _look(LIGHT_BLUE, "-", "D"),
    "fobmaml-forward-loss": _look(LIGHT_BLUE, "--", "D", "none"),
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
    """Write a PNG whole or not at all."""
    content = png(figure, dpi=120)
    write_whole(place, lambda path: path.write_bytes(content))


PANEL, PANEL_DPI = (4.6, 3.5), 160  # inches; so wide, letters can be read on a telephone
NAME = 26  # letters in a line of a name at the side of a panel


def panels(figure: Figure) -> list[bytes]:
    """Returns each panel of a figure as a PNG of its own, with labels and a legend; the figure is used up.

    On a narrow page panels stack, where a figure of several would be too small to read. Without a background, so that
    dark pages can show them with their colours turned.
    """
    every = list(figure.axes)
    shared = [(one.legend_handles, [text.get_text() for text in one.get_texts()]) for one in figure.legends]
    for legend in figure.legends:
        legend.remove()
    figure.suptitle("")
    labels = [_labels(axes, every) for axes in every]
    found = []
    for axes, (title, x, y) in zip(every, labels, strict=True):
        for other in every:
            other.set_visible(other is axes)
            other.set_in_layout(other is axes)
        axes.set_xlabel(textwrap.fill(x, 52))
        axes.set_ylabel(textwrap.fill(y, 36))
        axes.tick_params(labelleft=bool(axes.get_yticks().size), labelbottom=True, which="both")
        more = _wrap_names(axes)
        axes.set_title(textwrap.fill(title, 30 if more else 52), loc="left", fontsize="medium")
        axes.set_subplotspec(GridSpec(1, 1, figure=figure)[0])
        found.append(_with_legend(figure, axes, shared, PANEL[1] + 0.16 * more))
    return found


def _wrap_names(axes: Axes) -> int:
    """Names at the side of a panel, as of bars, leave it half of its width; returns the lines that this makes more."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    if not isinstance(axes.yaxis.get_major_locator(), FixedLocator) or max(map(len, names), default=0) <= NAME:
        return 0
    wrapped = [textwrap.fill(name, NAME) for name in names]
    axes.set_yticks(axes.get_yticks(), wrapped, fontsize=8)
    return sum(name.count("\n") for name in wrapped)


def _labels(axes: Axes, every: Sequence[Axes]) -> tuple[str, str, str]:
    """Title, x and y label of a panel, which the first of its row or the last of its column may have for it."""
    own = {one: spec for one in every if (spec := one.get_subplotspec())}
    row = [one for one in own if own[one].rowspan == own[axes].rowspan] if axes in own else [axes]
    column = [one for one in own if own[one].colspan == own[axes].colspan] if axes in own else [axes]
    title = axes.get_title(loc="left") or row[0].get_title(loc="left")
    return title, axes.get_xlabel() or column[-1].get_xlabel(), axes.get_ylabel() or row[0].get_ylabel()


def _with_legend(figure: Figure, axes: Axes, shared: list[tuple[Any, list[str]]], high: float) -> bytes:
    """The one panel that is to be seen, with a legend below unless it has its own."""
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = (handles, labels) if handles else (shared or [([], [])])[0]
    if not handles or axes.get_legend():
        figure.set_size_inches(PANEL[0], high)
        return png(figure, dpi=PANEL_DPI, transparent=True)
    columns = 1 if max(map(len, labels)) > 26 else 2
    figure.set_size_inches(PANEL[0], high + 0.2 * -(-len(labels) // columns))
    legend = figure.legend(handles, labels, frameon=False, fontsize="small", loc="outside lower center", ncols=columns)
    found = png(figure, dpi=PANEL_DPI, transparent=True)
    legend.remove()
    return found


def png(figure: Figure, **look: Any) -> bytes:
    """A figure as it is. A letter that the font does not have is a box, which is no matter."""
    with warnings.catch_warnings(), BytesIO() as file:
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png", **look)
        return file.getvalue()


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


def smooth(values: Sequence[float], window: int = 25) -> list[float]:
    """Mean over the last ``window`` values, or over what there is of them."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ([cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
