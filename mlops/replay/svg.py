"""Line charts over months as SVG text: no script, no font, no file; it reads nothing.

Colours are classes, which the page's own style sheet fills in, light or dark. Figures stand in the
titles of the points, which a browser shows under the pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 1000, 300
Scale = Callable[[float], float]
"""From a place or a value to a coordinate of the picture."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 44


@dataclass(frozen=True)
class Line:
    """One line: its name, the class that colours it, and a value or None for each month."""

    name: str
    style: str
    values: Sequence[float | None]
    digits: int = 3


@dataclass(frozen=True)
class Mark:
    """A vertical line before a month, with a short text on top, as where a version changed."""

    place: int
    text: str
    title: str


def line_chart(
    periods: Sequence[str],
    lines: Sequence[Line],
    *,
    label: str,
    marks: Sequence[Mark] = (),
    limits: Mapping[str, float] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Return a chart of `lines` over `periods`; `label` says to a screen reader what it shows.

    `limits` are dashed horizontal lines, by what they are. The axis goes from `low` to `high`,
    where these are given, else round what there is.
    """
    known = [value for line in lines for value in line.values if value is not None]
    known += list((limits or {}).values())
    bottom, top, step = _axis(
        min(known, default=0.0) if low is None else low,
        max(known, default=1.0) if high is None else high,
    )

    def x(place: float) -> float:
        return _LEFT + (place + 0.5) * (WIDTH - _LEFT - _RIGHT) / max(1, len(periods))

    def y(value: float) -> float:
        share = (min(max(value, bottom), top) - bottom) / (top - bottom)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_grid(bottom, top, step, y),
        *_months(periods, x),
    ]
    for mark in marks:
        here = x(mark.place - 0.5)
        parts.append(
            f'<g class="mark"><title>{escape(mark.title)}</title>'
            f'<line x1="{here:.1f}" x2="{here:.1f}" y1="{_TOP - 6}" y2="{HEIGHT - _BOTTOM}"/>'
            f'<text x="{here:.1f}" y="{_TOP - 12}" text-anchor="middle">{escape(mark.text)}</text>'
            "</g>"
        )
    for name, value in (limits or {}).items():
        parts.append(
            f'<g class="limit"><line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}"'
            f' y2="{y(value):.1f}"/><text x="{WIDTH - _RIGHT}" y="{y(value) - 5:.1f}"'
            f' text-anchor="end">{escape(name)}</text></g>'
        )
    for line in lines:
        parts += _drawn(line, periods, x, y)
    return "\n".join([*parts, "</svg>"])


def legend(lines: Sequence[Line]) -> str:
    """Return the names of the lines in their colours, as HTML."""
    return "".join(
        f'<span class="key"><svg viewBox="0 0 24 10" class="{line.style}" aria-hidden="true">'
        f'<path d="M0 5H24"/></svg>{escape(line.name)}</span>'
        for line in lines
    )


def _drawn(line: Line, periods: Sequence[str], x: Scale, y: Scale) -> list[str]:
    """Return the path (broken where nothing is known) and the points of a line."""
    path, pen_down = "", False
    points = []
    for place, (period, value) in enumerate(zip(periods, line.values, strict=True)):
        if value is None:
            pen_down = False
            continue
        path += f"{'L' if pen_down else 'M'}{x(place):.1f} {y(value):.1f}"
        pen_down = True
        points.append(
            f'<circle cx="{x(place):.1f}" cy="{y(value):.1f}" r="3.2"><title>{escape(line.name)}, '
            f"{period}: {value:.{line.digits}f}</title></circle>"
        )
    return [f'<g class="{line.style}"><path d="{path}"/>', *points, "</g>"]


def _grid(bottom: float, top: float, step: float, y: Scale) -> list[str]:
    parts, value = ['<g class="grid">'], bottom
    digits = max(0, -floor(log10(step))) if step < 1 else 0
    while value <= top + step / 2:
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{value:,.{digits}f}</text>"
        )
        value += step
    return [*parts, "</g>"]


def _months(periods: Sequence[str], x: Scale) -> list[str]:
    """Return the months' names below the axis, every second or third if there are many."""
    every = max(1, ceil(len(periods) / 13))
    return [
        '<g class="months">',
        *(
            f'<text x="{x(place):.1f}" y="{HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{escape(period)}</text>"
            for place, period in enumerate(periods)
            if place % every == 0
        ),
        "</g>",
    ]


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Return round ends of an axis that holds `low` and `high`, and the step of its grid."""
    if high - low < 1e-9:
        high = low + 1.0
    raw = (high - low) / 4
    power = 10.0 ** floor(log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw - 1e-12)
    return floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step, step
