"""How figures look here: colours and type of the reports and the app, for every matplotlib figure.

It knows nothing of models. Figures are made without pyplot: nothing global is kept or changed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

# Those of mlops/reporting/templates/page.html in daylight.
TEXT, SOFT_TEXT, RULE = "#1c2733", "#566474", "#dde3e9"
ACCENT, MUTED, SOFT, WARM, GOOD = "#1f5fa8", "#8793a0", "#cfd8e1", "#b4540a", "#2b7a4b"
PAPER = "#ffffff"

WIDTH = 3.6
"""Inches: half of a page's text, so that type is as large there as it is in the figure."""

HEAD = 0.42
"""Inches that the title and the line below it take."""

DOTS = 220
"""Dots per inch of a PNG: sharp on a screen that draws two for one."""

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a figure, and a page set with it, looks alike on every machine."""

RC: Any = {
    "font.family": FONT,
    "font.size": 7.0,
    "text.color": TEXT,
    "text.parse_math": False,  # a column may be called $x$
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.7,
    "axes.labelcolor": SOFT_TEXT,
    "axes.labelsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT_TEXT,
    "ytick.labelcolor": SOFT_TEXT,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "svg.fonttype": "none",  # texts stay texts: whoever sets it has the font
    "svg.hashsalt": "mlops",  # the same numbers give the same bytes
}


@contextmanager
def house() -> Iterator[None]:
    """Draw in this style inside of the block, whatever matplotlib is set to."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def panel(title: str, says: str, height: float = 2.7, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return a figure (inches) of one pair of axes, titled; `says` stands below the title."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    # Where the picture begins, not where its axes do: titles of pictures in a column are in line.
    left = 0.08 / width
    figure.text(left, 1 - 0.07 / height, title, va="top", fontsize=8.5, fontweight="bold")
    figure.text(left, 1 - 0.25 / height, says, va="top", fontsize=7.0, color=SOFT_TEXT)
    margins(figure)
    return figure, axes


def margins(figure: Figure, below: float = 0.0) -> None:
    """Keep room (inches) for the title, and for what a picture writes `below` its axes."""
    height = float(figure.get_figheight())
    engine = figure.get_layout_engine()
    assert engine is not None
    rect = (0, below / height, 1, 1 - (HEAD + below) / height)
    engine.set(rect=rect, w_pad=0.08, h_pad=0.06)  # type: ignore[call-arg]


def shares(axes: Axes, *, x: bool = False, y: bool = False, digits: int = 0) -> None:
    """Write the ticks of an axis in percent."""
    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_formatter(PercentFormatter(1.0, decimals=digits))


def thousands(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Write the ticks of an axis with separators: 27,729."""
    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def note(axes: Axes, x: float, y: float, words: str, colour: str = SOFT_TEXT, **more: Any) -> None:
    """Write words at a place of the data, on a halo that keeps them readable over lines."""
    from matplotlib.patheffects import withStroke

    settings = {"fontsize": 6.5, "color": colour, "ha": "left", "va": "center", **more}
    text = axes.text(x, y, words, **settings)
    text.set_path_effects([withStroke(linewidth=2.2, foreground=PAPER)])


def image(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return the figure as a file. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    with house():
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(buffer, format=kind, dpi=DOTS, metadata=metadata)
    return buffer.getvalue()
