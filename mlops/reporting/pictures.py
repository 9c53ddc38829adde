"""Pictures of a report as inline SVG: no script, no file beside it, colours from the page's style.

Pure functions of numbers. Each returns markup whose every text is escaped, with a sentence that
says what is drawn for whoever cannot see it. Classes (`accent`, `muted`, `warm`, …) are the page's
(`templates/page.html`), so that a picture follows the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

_WILSON_Z = 1.96  # 95 %


class Bar(NamedTuple):
    """One row of `bars`; `noise` is what chance reaches, `flagged` what passes both limits."""

    label: str
    value: float
    noise: float | None = None
    flagged: bool = False
    note: str = ""


class Estimate(NamedTuple):
    """One row of `intervals`: a difference with its interval."""

    label: str
    value: float
    low: float
    high: float
    flagged: bool = False


class Point(NamedTuple):
    """A month of a line; low and high are its interval, where it has one."""

    period: str
    value: float
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """A line of `lines`: name, class of colour, points."""

    name: str
    colour: str
    points: Sequence[Point]


@dataclass
class _Canvas:
    """A drawing area with margins; x and y run over data, y upwards."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    left: int = 48
    right: int = 16
    top: int = 12
    bottom: int = 32
    parts: list[str] = field(default_factory=list)

    def at_x(self, value: float) -> float:
        low, high = self.x
        inner = self.width - self.left - self.right
        return self.left + (value - low) / ((high - low) or 1.0) * inner

    def at_y(self, value: float) -> float:
        low, high = self.y
        inner = self.height - self.top - self.bottom
        return self.height - self.bottom - (value - low) / ((high - low) or 1.0) * inner

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{colour}"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" '
            f'height="{max(height, 0):.1f}" class="{colour}"/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3.5) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{colour}"/>')

    def path(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" class="{colour}"/>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", style: str = "") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
            f"{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{escape(words)}</text>"
        )

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], style: str = "{:g}") -> None:
        for tick in y_ticks:
            height = self.at_y(tick)
            self.line(self.left, height, self.width - self.right, height, "grid")
            self.text(self.left - 6, height + 4, style.format(tick), "end")
        for tick in x_ticks:
            self.text(self.at_x(tick), self.height - self.bottom + 16, f"{tick:g}", "middle")

    def svg(self, says: str) -> Markup:
        """Return the picture, described by `says`."""
        return Markup(  # noqa: S704 - every text was escaped where it came in
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(says, quote=True)}" style="max-width:{self.width}px">'
            + "".join(self.parts)
            + "</svg>"
        )


def bars(rows: Sequence[Bar], threshold: float, says: str) -> Markup:
    """Return horizontal bars with the accepted `threshold` as a line and noise as a tick."""
    widest = max((len(row.label) for row in rows), default=4)
    left = min(190, 20 + 7 * widest)
    reach = max([threshold * 1.5, *(row.value for row in rows), *(row.noise or 0 for row in rows)])
    canvas = _Canvas(640, 40 + 24 * len(rows), (0, reach * 1.02), (0, 1), left, 140, 22, 6)
    for place, row in enumerate(rows):
        y = canvas.top + 24 * place + 4
        canvas.text(left - 8, y + 12, row.label, "end")
        canvas.box(left, y, canvas.at_x(row.value) - left, 15, "warm" if row.flagged else "accent")
        if row.noise is not None:
            x = canvas.at_x(row.noise)
            canvas.line(x, y - 2, x, y + 17, "tick")
        beyond = max(row.value, row.noise or 0)
        canvas.text(canvas.at_x(beyond) + 6, y + 12, f"{row.value:.3f}{row.note}")
    x = canvas.at_x(threshold)
    canvas.line(x, canvas.top - 4, x, canvas.height - 4, "limit")
    canvas.text(x, 12, f"accepted {threshold:g}", "middle", "limit")
    return canvas.svg(says)


def histogram(
    reference: ArrayLike, current: ArrayLike, names: tuple[str, str], threshold: float | None
) -> Markup:
    """Return two distributions of scores (0..1) as shares of rows in 20 bins."""
    # Scores of rare answers crowd near 0: drawn as far as they reach.
    both = [np.asarray(scores, dtype=np.float64) for scores in (reference, current)]
    used = [float(np.quantile(scores, 0.999)) for scores in both if scores.size]
    reach = min(1.0, max([0.1, *used, (threshold or 0) * 1.1]))
    reach = float(np.ceil(reach * 20) / 20)
    edges = np.linspace(0, reach, 21)
    shares = [
        np.histogram(np.clip(scores, 0, reach), edges)[0] / max(scores.size, 1) for scores in both
    ]
    top = float(max(share.max() for share in shares)) * 1.1 or 1.0
    canvas = _Canvas(640, 250, (0, reach), (0, top), top=30)
    canvas.axes(_ticks(0, reach), _ticks(0, top), "{:.0%}")
    bins = list(pairwise(edges))
    for (start, end), share in zip(bins, shares[0], strict=True):
        x, y = canvas.at_x(start), canvas.at_y(share)
        canvas.box(x, y, canvas.at_x(end) - x - 1, canvas.at_y(0) - y, "soft")
    steps = [
        (canvas.at_x(x), canvas.at_y(share))
        for (start, end), share in zip(bins, shares[1], strict=True)
        for x in (start, end)
    ]
    canvas.path(steps, "accent-line")
    if threshold is not None:
        x = canvas.at_x(threshold)
        canvas.line(x, canvas.top, x, canvas.at_y(0), "limit")
        canvas.text(x + 5, canvas.top + 10, f"threshold {threshold:.3f}", style="limit")
    _legend(canvas, [("soft", names[0]), ("accent", names[1])])
    means = [float(scores.mean()) if scores.size else float("nan") for scores in both]
    return canvas.svg(
        f"Scores: {names[0]} with mean {means[0]:.3f}, {names[1]} with mean {means[1]:.3f}"
    )


def roc(curves: Sequence[tuple[str, str, ArrayLike, ArrayLike]], says: str) -> Markup:
    """Return ROC curves: (name, class of colour, target, score) each, of both answers."""
    canvas = _Canvas(320, 320, (0, 1), (0, 1), left=40, top=30)
    canvas.axes([0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1])
    canvas.line(canvas.at_x(0), canvas.at_y(0), canvas.at_x(1), canvas.at_y(1), "dashed")
    for _, colour, target, score in curves:
        false_rate, true_rate, _ = roc_curve(target, score)
        points = zip(false_rate, true_rate, strict=True)
        canvas.path([(canvas.at_x(x), canvas.at_y(y)) for x, y in points], f"{colour}-line")
    _legend(canvas, [(colour, name) for name, colour, _, _ in curves])
    return canvas.svg(says)


def calibration(target: ArrayLike, score: ArrayLike, says: str) -> Markup:
    """Return the share of positives by mean score in ten bins of equally many rows.

    Vertical lines are 95 % intervals (Wilson 1927); the diagonal is perfect calibration.
    """
    points = calibration_points(target, score)
    reach = min(1.0, max([0.1, *(high for *_, high in points), *(x for x, *_ in points)]) * 1.05)
    canvas = _Canvas(320, 320, (0, reach), (0, reach), left=40, top=30)
    canvas.axes(_ticks(0, reach), _ticks(0, reach))
    canvas.line(canvas.at_x(0), canvas.at_y(0), canvas.at_x(reach), canvas.at_y(reach), "dashed")
    for mean, share, low, high in points:
        x = canvas.at_x(mean)
        canvas.line(x, canvas.at_y(low), x, canvas.at_y(min(high, reach)), "tick")
        canvas.dot(x, canvas.at_y(share), "accent")
    canvas.text(canvas.left, 18, "share of positives by mean score")
    return canvas.svg(says)


def calibration_points(
    target: ArrayLike, score: ArrayLike, bins: int = 10
) -> list[tuple[float, float, float, float]]:
    """Return (mean score, share of positives, its low and high 95 % end) of each bin of rows."""
    order = np.argsort(np.asarray(score), kind="stable")
    points = []
    for part in np.array_split(order, min(bins, max(1, len(order) // 10))):
        truth: NDArray[np.float64] = np.asarray(target, dtype=np.float64)[part]
        n, share = len(truth), float(truth.mean())
        centre = (share + _WILSON_Z**2 / (2 * n)) / (1 + _WILSON_Z**2 / n)
        half = (
            _WILSON_Z
            / (1 + _WILSON_Z**2 / n)
            * np.sqrt(share * (1 - share) / n + _WILSON_Z**2 / (4 * n**2))
        )
        mean = float(np.asarray(score, dtype=np.float64)[part].mean())
        points.append((mean, share, max(0.0, float(centre - half)), min(1.0, float(centre + half))))
    return points


def intervals(rows: Sequence[Estimate], names: tuple[str, str], says: str) -> Markup:
    """Return differences with their intervals about zero; `names` say what either side means."""
    reach = max([0.01, *(abs(end) for row in rows for end in (row.low, row.high, row.value))]) * 1.1
    left = min(230, 20 + 7 * max((len(row.label) for row in rows), default=4))
    canvas = _Canvas(640, 54 + 26 * len(rows), (-reach, reach), (0, 1), left, 190, 26, 26)
    zero = canvas.at_x(0)
    canvas.line(zero, canvas.top - 6, zero, canvas.height - canvas.bottom + 4, "dashed")
    canvas.text(zero - 8, 14, f"← {names[0]}", "end", "muted-text")
    canvas.text(zero + 8, 14, f"{names[1]} →", "start", "muted-text")
    for place, row in enumerate(rows):
        y = canvas.top + 26 * place + 12
        colour = "warm" if row.flagged else "accent"
        canvas.text(left - 8, y + 4, row.label, "end")
        canvas.line(canvas.at_x(row.low), y, canvas.at_x(row.high), y, f"{colour}-line")
        canvas.dot(canvas.at_x(row.value), y, colour, 4.5)
        canvas.text(
            canvas.width - canvas.right + 8, y + 4,
            f"{row.value:+.3f} ({row.low:+.3f} to {row.high:+.3f})",
        )  # fmt: skip
    canvas.text(zero, canvas.height - 6, "0", "middle")
    return canvas.svg(says)


def lines(rows: Sequence[Line], says: str, marks: Sequence[tuple[str, str]] = ()) -> Markup:
    """Return a value by month, a line each; `marks` are (period, words) of vertical lines."""
    periods = sorted({point.period for row in rows for point in row.points})
    ends = [
        end
        for row in rows
        for point in row.points
        for end in (point.value, point.low, point.high)
        if end is not None
    ]
    low, high = min([0.5, *ends]), max([0.8, *ends])
    canvas = _Canvas(640, 260, (-0.5, len(periods) - 0.5), (low - 0.02, high + 0.02), top=34)
    canvas.axes([], _ticks(low, high), "{:.2f}")
    place = {period: number for number, period in enumerate(periods)}
    every = -(-len(periods) // 9)  # as many as there is room for
    for period, number in place.items():
        if number % every == 0:
            canvas.text(canvas.at_x(number), canvas.height - canvas.bottom + 16, period, "middle")
    for period, words in marks:
        if period in place:
            x = canvas.at_x(place[period] - 0.5)
            canvas.line(x, canvas.top, x, canvas.height - canvas.bottom, "limit")
            canvas.text(x + 4, canvas.top + 10, words, style="limit")
    for row in rows:
        points = sorted(row.points)
        spots = [(canvas.at_x(place[point.period]), canvas.at_y(point.value)) for point in points]
        canvas.path(spots, f"{row.colour}-line")
        for point, (x, y) in zip(points, spots, strict=True):
            if point.low is not None and point.high is not None:
                canvas.line(x, canvas.at_y(point.low), x, canvas.at_y(point.high), "tick")
            canvas.dot(x, y, row.colour)
    _legend(canvas, [(row.colour, row.name) for row in rows])
    return canvas.svg(says)


def _legend(canvas: _Canvas, entries: Sequence[tuple[str, str]]) -> None:
    x = float(canvas.left)
    for colour, name in entries:
        canvas.box(x, 8, 11, 11, colour)
        canvas.text(x + 16, 18, name)
        x += 34 + 6.6 * len(name)


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round values within `low` to `high`."""
    span = max(high - low, 1e-9)
    step = 10 ** np.floor(np.log10(span / 3))
    while span / step > 6:
        step *= 2 if span / (2 * step) <= 6 else 5
    first = np.ceil(low / step - 1e-9) * step
    return [
        round(float(first + number * step), 10)
        for number in range(int((high - first) / step + 1e-9) + 1)
    ]
