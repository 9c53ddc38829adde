"""A panel and its rows as what a page draws: figures, cards, cells, and where they stand.

Pure functions of a dashboard's panel, a frame and a palette. It never runs a query and needs no
Streamlit. Colours keep the file's names and are toned to the app's background.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from mlops.app.charts import DARK, Palette
from mlops.monitoring.dashboards import FieldStyle, Panel, Step

#: Pixels of one row of Grafana's grid, and what of a panel its title and border take.
ROW_PX = 38
TITLE_PX = 62

#: Cards of one stat panel that are drawn at most; Grafana's own limit is 25.
CARD_LIMIT = 24

_HUES = {
    "light": {
        "red": "#b3363c",
        "orange": "#b4540a",
        "yellow": "#8f6c00",
        "green": "#2f7d4f",
        "blue": "#1f5fa8",
        "purple": "#7a4fa3",
        "text": "#1f2933",
        "black": "#1f2933",
        "gray": "#697684",
        "white": "#697684",
    },
    "dark": {
        "red": "#f07f84",
        "orange": "#e89a55",
        "yellow": "#d9b44a",
        "green": "#6cc08b",
        "blue": "#6ea8e6",
        "purple": "#b795e4",
        "text": "#e4e8ec",
        "black": "#9aa6b2",
        "gray": "#9aa6b2",
        "white": "#e4e8ec",
    },
}
_SHADES = {"super-light": 0.55, "light": 0.3, "semi-dark": -0.15, "dark": -0.3}


class PanelError(ValueError):
    """A panel cannot be drawn from the rows that its query returned; the message says why."""


@dataclass(frozen=True)
class Card:
    """One value of a stat panel; `name` is empty where the panel's title says it all."""

    name: str
    text: str
    color: str | None
    filled: bool


@dataclass(frozen=True)
class Cell:
    """Panels that stand above one another, `width` columns of the grid's 24 wide."""

    width: int
    panels: tuple[Panel, ...]


def bands(panels: Sequence[Panel]) -> list[list[Cell]]:
    """Return panels as bands from top to bottom, each of cells from left to right.

    A band ends where no panel reaches across; in it, panels that share columns share a cell.
    """
    found: list[list[Cell]] = []
    band: list[Panel] = []
    for panel in sorted(panels, key=lambda each: (each.grid.y, each.grid.x)):
        if band and panel.grid.y >= max(each.grid.y + each.grid.h for each in band):
            found.append(_cells(band))
            band = []
        band.append(panel)
    return [*found, _cells(band)] if band else found


def _cells(band: Sequence[Panel]) -> list[Cell]:
    cells: list[tuple[int, int, list[Panel]]] = []
    for panel in sorted(band, key=lambda each: (each.grid.x, each.grid.y)):
        left, right = panel.grid.x, panel.grid.x + panel.grid.w
        if cells and left < cells[-1][1]:
            start, end, inside = cells.pop()
            cells.append((start, max(end, right), [*inside, panel]))
        else:
            cells.append((left, right, [panel]))
    return [
        Cell(end - start, tuple(sorted(inside, key=lambda each: each.grid.y)))
        for start, end, inside in cells
    ]


def height(panel: Panel) -> int:
    """Return the pixels that a panel's chart or table may take."""
    return max(panel.grid.h * ROW_PX - TITLE_PX, 120)


# Colours and units


def color(name: str | None, colours: Palette) -> str | None:
    """Return a colour of the file (`dark-green`, `#73bf69`, `rgb(…)`) for the page's background.

    Grafana's names become tones that read well there; None for none, and for `transparent`.
    """
    if name is None or name == "transparent":
        return None
    if name.startswith(("#", "rgb")):
        return name
    shade, _, hue = name.rpartition("-")
    hues = _HUES["dark" if colours == DARK else "light"]
    if hue not in hues:
        return colours.muted
    return _mixed(hues[hue], colours.background, hues["text"], _SHADES.get(shade, 0.0))


def _mixed(base: str, lighter: str, darker: str, share: float) -> str:
    towards = lighter if share > 0 else darker
    parts = []
    for at in (1, 3, 5):
        one, other = int(base[at : at + 2], 16), int(towards[at : at + 2], 16)
        parts.append(round(one + (other - one) * abs(share)))
    return "#" + "".join(f"{part:02x}" for part in parts)


def series_colors(colours: Palette, count: int) -> list[str]:
    """Return `count` colours that can be told apart: accent and limit first, then greys."""
    hues = _HUES["dark" if colours == DARK else "light"]
    named = [colours.accent, hues["orange"], hues["green"], hues["purple"], *colours.series]
    return [named[each % len(named)] for each in range(count)]


_SCALES = {"k": 1e3, "Mil": 1e6, "Bil": 1e9, "Tri": 1e12}
_DURATIONS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))
_SUFFIXES = {
    "percent": " %",
    "reqps": " req/s",
    "ops": " ops/s",
    "cps": " c/s",
    "rowsps": " rows/s",
    "celsius": " °C",
}


def formatted(value: Any, style: FieldStyle, now: datetime | None = None) -> str:
    """Return `value` in its unit: shares (0..1) as per cent, seconds as durations, times in UTC.

    Nothing is `noValue`, else a dash. A unit that is not known stands behind the number, as it
    does in Grafana. `now` is what a time of unit `dateTimeFromNow` is compared with.
    """
    mapped = style.mapped(value)
    if mapped is not None and mapped.text:
        return mapped.text
    if _nothing(value):
        return style.no_value or "-"
    unit = style.unit or "none"
    if isinstance(value, datetime):
        return _time(value, unit, now)
    if unit == "bool_yes_no" and (isinstance(value, bool) or _is_number(value)):
        return "Yes" if value else "No"
    if isinstance(value, bool):
        return str(value).lower()
    if not _is_number(value):
        return str(value)
    number = float(value)
    if unit.startswith("dateTime"):
        return _time(datetime.fromtimestamp(number / 1000, timezone.utc), unit, now)
    if unit == "percentunit":
        return f"{_digits(number * 100, style.decimals)} %"
    if unit in {"s", "ms", "m", "h", "d", "dtdurations", "dthms", "clocks"}:
        return _duration(number * {"ms": 1e-3, "m": 60, "h": 3600, "d": 86_400}.get(unit, 1), style)
    if unit in {"none", "string", "sishort"}:
        return _digits(number, style.decimals)
    if unit == "short":
        for name, scale in reversed(_SCALES.items()):
            if abs(number) >= scale and (scale > 1e3 or abs(number) >= 1e5):
                return f"{_digits(number / scale, style.decimals)} {name}"
        return _digits(number, style.decimals)
    if unit in {"bytes", "decbytes"}:
        step = 1024 if unit == "bytes" else 1000
        power = min(int(math.log(abs(number), step)), 4) if abs(number) >= 1 else 0
        names = ("B", "KiB", "MiB", "GiB", "TiB") if step == 1024 else ("B", "kB", "MB", "GB", "TB")
        return f"{_digits(number / step**power, style.decimals)} {names[power]}"
    if unit.startswith("prefix:"):
        return f"{unit[7:]}{_digits(number, style.decimals)}"
    if unit.startswith("suffix:"):
        return f"{_digits(number, style.decimals)}{unit[7:]}"
    return f"{_digits(number, style.decimals)}{_SUFFIXES.get(unit, f' {unit}')}"


def _nothing(value: Any) -> bool:
    return value is None or value is pd.NaT or value != value


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float)


def _digits(number: float, decimals: int | None) -> str:
    """Return a number with `decimals`, else with what three figures need."""
    if decimals is None:
        if number == round(number):
            decimals = 0
        else:
            magnitude = math.floor(math.log10(abs(number)))
            decimals = min(max(2 - magnitude, 0), 4)
    return f"{number:,.{decimals}f}"


def _duration(seconds: float, style: FieldStyle) -> str:
    if abs(seconds) < 1 and seconds:
        return f"{_digits(seconds * 1000, style.decimals or 0)} ms"
    for (name, length), (finer, step) in pairwise(_DURATIONS):
        if abs(seconds) >= length:
            whole, rest = divmod(round(seconds / step), round(length / step))
            return f"{whole} {name} {rest} {finer}" if rest else f"{whole} {name}"
    return f"{_digits(seconds, style.decimals)} s"


def _time(time: datetime, unit: str, now: datetime | None) -> str:
    if unit == "dateTimeFromNow":
        seconds = ((now or datetime.now(timezone.utc)) - time).total_seconds()
        name, length = next((each for each in _DURATIONS if abs(seconds) >= each[1]), ("", 1))
        told = f"{abs(seconds) // length:.0f} {name}"
        return "now" if not name else f"{told} ago" if seconds > 0 else f"in {told}"
    if (time.hour, time.minute, time.second) == (0, 0, 0):
        return f"{time:%Y-%m-%d}"
    return f"{time:%Y-%m-%d %H:%M:%S}" if "Seconds" in unit else f"{time:%Y-%m-%d %H:%M}"


def label(panel: Panel, column: str) -> str:
    """Return a column's heading: its display name, if it has one."""
    name = panel.field(column).display_name
    return _named(name, column, {}) if name else column


def value_color(value: Any, style: FieldStyle, colours: Palette) -> str | None:
    """Return the colour of a value: its mapping's, else the fixed one, else its threshold's."""
    mapped = style.mapped(value)
    if mapped is not None and mapped.color:
        return color(mapped.color, colours)
    if style.color.mode == "fixed":
        return color(style.color.fixed_color, colours)
    if style.color.mode == "thresholds" and _is_number(value) and not _nothing(value):
        return color(style.thresholds.color_of(float(value)), colours)
    return None


# Cards


def cards(panel: Panel, frame: pd.DataFrame, colours: Palette) -> list[Card]:
    """Return the values of a stat panel, each field reduced or, if it says so, every row.

    Raises PanelError for a reduction that is not known.
    """
    options = panel.options.get("reduceOptions") or {}
    columns = _fields(panel, frame, str(options.get("fields") or ""))
    rows = range(len(frame)) if options.get("values") else None
    calculation = (options.get("calcs") or ["lastNotNull"])[0]
    values: list[tuple[str, Any, FieldStyle]] = []
    for column in columns:
        style = panel.field(column)
        if rows is None:
            values.append((label(panel, column), reduced(frame[column], calculation), style))
        else:
            first = frame.columns[0]
            values += [
                (
                    label(panel, column) if column == first else str(frame[first].iloc[row]),
                    _plain(frame[column].iloc[row]),
                    style,
                )
                for row in rows
            ]
    mode = panel.options.get("textMode", "auto")
    named = mode in {"value_and_name", "name"} or (mode == "auto" and len(values) > 1)
    # Grafana's default for a stat is the thresholds' colour, on the value.
    look = panel.options.get("colorMode", "value")
    return [
        Card(
            name if named else "",
            formatted(value, style),
            None if look == "none" else value_color(value, _by_threshold(panel, style), colours),
            look.startswith("background"),
        )
        for name, value, style in values[:CARD_LIMIT]
    ]


def _by_threshold(panel: Panel, style: FieldStyle) -> FieldStyle:
    """Return `style`, coloured by thresholds unless the file names a colour's mode."""
    if style.color.mode == "palette-classic" and "color" not in style.model_fields_set:
        return style.model_copy(
            update={"color": style.color.model_copy(update={"mode": "thresholds"})}
        )
    return style


def _fields(panel: Panel, frame: pd.DataFrame, wanted: str) -> list[str]:
    shown = [column for column in frame.columns if not panel.field(column).hidden]
    if wanted.startswith("/"):
        pattern = re.compile(wanted.strip("/"))
        return [
            each for each in shown if pattern.search(each) or pattern.search(label(panel, each))
        ]
    if wanted:
        return [each for each in shown if wanted in (each, label(panel, each))]
    return [column for column in shown if is_numeric_dtype(frame[column])]


def reduced(values: pd.Series[Any], calculation: str) -> Any:
    """Return one value for many, as Grafana's reducers do; None where there is none.

    Raises PanelError for a reducer that is not known.
    """
    known = values.dropna()
    if calculation in {"last", "first"}:
        return None if values.empty else _plain(values.iloc[-1 if calculation == "last" else 0])
    if calculation == "count":
        return len(values)
    if known.empty and calculation in {
        "lastNotNull", "firstNotNull", "max", "min", "mean", "sum", "median"
    }:  # fmt: skip
        return None
    if calculation in {"lastNotNull", "firstNotNull"}:
        return _plain(known.iloc[-1 if calculation == "lastNotNull" else 0])
    if calculation in {"max", "min", "mean", "sum", "median"}:
        return _plain(getattr(known, calculation)())
    raise PanelError(f"the calculation {calculation!r} is not known here")


def _plain(value: Any) -> Any:
    """Return a scalar of pandas as Python's."""
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    return value.item() if hasattr(value, "item") else value


# Figures


def bars(panel: Panel, frame: pd.DataFrame, colours: Palette) -> go.Figure:
    """Return a bar chart: the category is the first column (or `xField`), a series each number.

    Raises PanelError if the rows have no category or no number.
    """
    category = str(panel.options.get("xField") or next(iter(frame.columns), ""))
    if category not in frame:
        raise PanelError(f"the query returns no column {category!r} for the categories")
    series = [
        column
        for column in frame.columns
        if column != category and is_numeric_dtype(frame[column]) and not panel.field(column).hidden
    ]
    if not series:
        raise PanelError("the query returns no number to draw")
    flat = panel.options.get("orientation") == "horizontal"
    stacking = panel.options.get("stacking") or "none"
    values_shown = panel.options.get("showValue", "auto")
    categories = [formatted(_plain(each), panel.field(category)) for each in frame[category]]
    figure = go.Figure()
    # A series without an axis marks categories: it is drawn behind the others, all over.
    marks = [each for each in series if panel.field(each).custom.axis_placement == "hidden"]
    others = [each for each in series if each not in marks]
    right = [each for each in others if panel.field(each).custom.axis_placement == "right"]
    few = len(categories) * (len(others) if stacking == "none" else 1) <= 16
    spare = dict(zip(series, series_colors(colours, len(series)), strict=True))
    for column in [*marks, *others]:
        style = panel.field(column)
        values = [None if _nothing(each) else _plain(each) for each in frame[column]]
        texts = [formatted(each, style) for each in values]
        name = label(panel, column)
        drawn: dict[str, Any] = {
            "x": values if flat else categories,
            "y": categories if flat else values,
            "orientation": "h" if flat else "v",
            "name": name,
            "marker": {
                "color": _bar_colors(panel, frame, column, values, style, spare[column], colours)
            },
            "customdata": texts,
            "hovertemplate": (
                f"%{{{'y' if flat else 'x'}}}: %{{customdata}}<extra>{_escaped(name)}</extra>"
            ),
        }
        axis = {"xaxis" if flat else "yaxis": "x2" if flat else "y2"} if column in right else {}
        if column in marks:
            drawn |= {"width": 0.96, "offset": -0.48, "opacity": style.custom.fill_opacity / 100}
            axis = {"xaxis" if flat else "yaxis": "x3" if flat else "y3"}
        elif values_shown == "always" or (values_shown == "auto" and few):
            drawn |= {
                "text": texts,
                "textposition": "auto" if stacking != "none" else "outside",
                "textangle": 0,
                "textfont": {"size": 11},
                "cliponaxis": False,
            }
        if column in others and stacking == "none":
            drawn["offsetgroup"] = column  # side by side also where the axes differ
        figure.add_bar(**drawn, **axis)
    modes = {"none": "group", "normal": "relative", "percent": "relative"}
    figure.update_layout(
        barmode=modes.get(stacking, "group"),
        barnorm="percent" if stacking == "percent" else None,
        bargap=0.25,
    )
    _finish(
        figure,
        panel,
        frame,
        [each for each in others if each not in right],
        colours,
        flat,
        bool(right),
    )
    if right:
        figure.update_layout(
            {("xaxis2" if flat else "yaxis2"): _second_axis(panel, frame, right, flat)}
        )
    if marks:
        figure.update_layout(
            {
                ("xaxis3" if flat else "yaxis3"): {
                    "overlaying": "x" if flat else "y",
                    "visible": False,
                    "range": [0, float(frame[marks].max().max() or 1)],
                    "fixedrange": True,
                }
            }
        )
        # Plotly draws the axis that overlays on top; the marks are to lie behind.
        first, over = ("xaxis", "x3") if flat else ("yaxis", "y3")
        figure.update_layout(
            {first: {"overlaying": over}, f"{first}3": {"overlaying": None}}
            | ({f"{first}2": {"overlaying": over}} if right else {})
        )
    axis_of_names = figure.update_yaxes if flat else figure.update_xaxes
    axis_of_names(type="category", showgrid=False, fixedrange=True, automargin=True)
    if flat:
        figure.update_yaxes(autorange="reversed")
    else:
        turned = panel.options.get("xTickLabelRotation") or 0
        # None leaves it to Plotly, which turns what would overlap.
        figure.update_xaxes(tickangle=turned if turned and len(categories) > 6 else None)
    return figure


def _second_axis(
    panel: Panel, frame: pd.DataFrame, series: Sequence[str], flat: bool
) -> dict[str, Any]:
    styles = [panel.field(column) for column in series]
    return {
        "overlaying": "x" if flat else "y",
        "side": "top" if flat else "right",
        "showgrid": False,
        "fixedrange": True,
        "automargin": True,
        "range": _range(panel, frame, series, styles, []),
        "title": {"text": styles[0].custom.axis_label, "font": {"size": 12}},
        **_ticks(styles[0]),
    }


def _bar_colors(
    panel: Panel,
    frame: pd.DataFrame,
    column: str,
    values: Sequence[Any],
    style: FieldStyle,
    default: str,
    colours: Palette,
) -> str | list[str]:
    """Return the colours of a series' bars: of another field's values, of thresholds, or one."""
    other = panel.options.get("colorByField")
    if other and other in frame:
        of_other = panel.field(other)
        kinds = list(dict.fromkeys(frame[other]))
        spare = dict(zip(kinds, series_colors(colours, len(kinds)), strict=True))
        return [
            value_color(_plain(each), of_other, colours) or spare[each] for each in frame[other]
        ]
    if style.color.mode == "thresholds" or style.mappings:
        return [value_color(each, style, colours) or default for each in values]
    return value_color(None, style, colours) or default


def lines(
    panel: Panel,
    frame: pd.DataFrame,
    colours: Palette,
    marks: Mapping[str, pd.DataFrame] | None = None,
    span: tuple[datetime, datetime] | None = None,
) -> go.Figure:
    """Return a chart over time: a series for each number, or for each number and its labels.

    `marks` are dashed verticals by colour: frames of `time` and `text`. The axis covers `span`.
    Raises PanelError if the rows have no time or no number.
    """
    times = [column for column in frame.columns if is_datetime64_any_dtype(frame[column])]
    if not times:
        raise PanelError("the query returns no column time")
    time = "time" if "time" in times else times[0]
    series = _series(panel, frame, time)
    if not series:
        raise PanelError("the query returns no number to draw")
    figure = go.Figure()
    for (name, column, labels, rows), default in zip(
        series, series_colors(colours, len(series)), strict=True
    ):
        style = panel.field(column, name)
        shade = value_color(None, style, colours) or default
        texts = [formatted(_plain(each), style) for each in rows[column]]
        shown = _named(style.display_name or name, column, labels)
        drawn: dict[str, Any] = {
            "x": rows[time],
            "y": rows[column],
            "name": shown,
            "customdata": texts,
            "hovertemplate": f"%{{x|%d %b %H:%M}}: %{{customdata}}<extra>{_escaped(shown)}</extra>",
        }
        if style.custom.draw_style == "bars":
            # From its moment on, as Grafana draws them: an hour's rows come after its beginning.
            offset = 0 if style.custom.bar_alignment == 1 else None
            width = _bar_ms(frame[time])
            figure.add_bar(**drawn, marker={"color": shade}, width=width, offset=offset)
            continue
        dashed = style.custom.line_style.fill in {"dash", "dot"}
        figure.add_scatter(
            **drawn,
            mode="markers" if style.custom.draw_style == "points" else "lines+markers",
            line={"color": shade, "width": 1.8, "dash": "dash" if dashed else "solid"},
            marker={"color": shade, "size": 5},
            stackgroup="all" if style.custom.stacking.mode != "none" else None,
            fill="tozeroy"
            if style.custom.fill_opacity and style.custom.stacking.mode == "none"
            else None,
            fillcolor=_faded(shade, style.custom.fill_opacity / 100),
        )
    stacked = panel.style.custom.stacking.mode != "none"
    figure.update_layout(barmode="relative" if stacked else "group")
    _finish(figure, panel, frame, [column for _, column, _, _ in series], colours, flat=False)
    for shade, moments in (marks or {}).items():
        for at, text in zip(moments["time"], moments["text"], strict=True):
            tone = color(shade, colours)
            line = {"color": tone, "width": 1.2, "dash": "dot"}
            figure.add_vline(x=at.timestamp() * 1000, line=line)
            figure.add_annotation(  # its words on hover, as in Grafana: marks may stand close
                x=at.timestamp() * 1000,
                y=1,
                yref="paper",
                yanchor="middle",
                text="▼",
                hovertext=f"{at:%d %b %H:%M}: {_escaped(str(text))}",
                showarrow=False,
                font={"size": 11, "color": tone},
            )
    figure.update_xaxes(
        type="date", range=list(span) if span else None, showgrid=False, fixedrange=True
    )
    return figure


def _series(
    panel: Panel, frame: pd.DataFrame, time: str
) -> list[tuple[str, str, dict[str, str], pd.DataFrame]]:
    """Return name, column, labels and rows of each series, by name.

    Text columns are labels, as in Grafana. By name, so that a series keeps its colour while it is
    in sight.
    """
    shown = [column for column in frame.columns if not panel.field(column).hidden]
    numbers = [column for column in shown if is_numeric_dtype(frame[column])]
    labels = [column for column in shown if column != time and frame[column].dtype == object]
    if not labels:
        return [(column, column, {}, frame) for column in numbers]
    found = []
    for key, rows in frame.groupby(labels, dropna=False):
        its = {
            name: str(each) for name, each in zip(labels, key, strict=True) if not _nothing(each)
        }
        words = " ".join(its.values())
        for column in numbers:
            alone = len(numbers) == 1 and column.lower() == "value"
            found.append((words if alone else f"{column} {words}", column, its, rows))
    return found


def _named(text: str, column: str, labels: Mapping[str, str]) -> str:
    """Return a display name with `${__field.name}` and `${__field.labels.x}` filled in."""
    text = text.replace("${__field.name}", column)
    return re.sub(
        r"\$\{__field\.labels\.(\w+)\}", lambda match: labels.get(match[1], match[0]), text
    )


def _bar_ms(times: pd.Series[Any]) -> float:
    """Return the width of bars over time: the least distance, an hour if there is but one."""
    steps = pd.Series(times.dropna().unique()).sort_values().diff().dropna()
    least = steps.min().total_seconds() if len(steps) else 3600.0
    return least * 900


def _faded(shade: str, share: float) -> str | None:
    if not share or not shade.startswith("#"):
        return None
    red, green, blue = (int(shade[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share:.2f})"


def _finish(
    figure: go.Figure,
    panel: Panel,
    frame: pd.DataFrame,
    series: Sequence[str],
    colours: Palette,
    flat: bool,
    taken: bool = False,
) -> None:
    """Draw thresholds, the axis of values and the legend; the right side may be `taken`."""
    styles = [panel.field(column) for column in dict.fromkeys(series)]
    limits: dict[float, tuple[Step, str]] = {}
    for style in styles:
        mode = style.custom.thresholds_style.mode
        if mode != "off":
            for step in style.thresholds.limits:
                limits.setdefault(float(step.value or 0), (step, mode))
    for value, (step, mode) in limits.items():
        shade = color(step.color, colours) or colours.limit
        line = {"color": shade, "width": 1.5, "dash": "dash" if "dashed" in mode else "solid"}
        note = {
            "text": formatted(value, styles[0]),
            "font": {"size": 11, "color": shade},
            "bgcolor": colours.background,
            "borderpad": 1,
        }
        # Beside the bars, not over them; where an axis stands there, over them.
        beside = {"x": 1, "xanchor": "left", "yanchor": "middle", "xshift": 2}
        over = {"x": 0.995, "xanchor": "right", "yanchor": "middle"}
        note |= over if taken else beside
        if flat:
            figure.add_vline(x=value, line=line)
        else:
            figure.add_hline(y=value, line=line, annotation=note)
    axis = figure.update_xaxes if flat else figure.update_yaxes
    axis(
        range=_range(panel, frame, series, styles, list(limits)),
        fixedrange=True,
        automargin=True,
        title={"text": styles[0].custom.axis_label, "font": {"size": 12}}
        if styles[0].custom.axis_label
        else None,
        **_ticks(styles[0]),
    )
    legend = panel.options.get("legend") or {}
    wanted = legend.get("showLegend", True) and legend.get("displayMode") != "hidden"
    figure.update_layout(
        height=height(panel),
        margin={"l": 8, "r": 44 if limits and not (flat or taken) else 12, "t": 8, "b": 8},
        showlegend=bool(wanted) and (len(figure.data) > 1 or panel.type == "timeseries"),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"namelength": -1},
    )


def _range(
    panel: Panel,
    frame: pd.DataFrame,
    series: Sequence[str],
    styles: Sequence[FieldStyle],
    limits: Sequence[float],
) -> list[float] | None:
    """Return the axis of values: the file's bounds, else what shows values and limits; or None."""
    if (
        any(style.custom.stacking.mode != "none" for style in styles)
        or (panel.options.get("stacking") or "none") != "none"
    ):
        return None  # Plotly adds up by itself
    values = pd.concat([frame[column] for column in dict.fromkeys(series)]).dropna()
    lows = [style.min for style in styles if style.min is not None]
    highs = [style.max for style in styles if style.max is not None]
    soft_lows = [
        each.custom.axis_soft_min for each in styles if each.custom.axis_soft_min is not None
    ]
    soft_highs = [
        each.custom.axis_soft_max for each in styles if each.custom.axis_soft_max is not None
    ]
    low = min([0.0, *soft_lows, *values, *limits]) if not soft_lows else min([*soft_lows, *values])
    high = max([*soft_highs, *values, *limits], default=1.0)
    room = (high - low or 1.0) * 0.15
    return [
        lows[0] if lows else low - (room if low < 0 else 0),
        highs[0] if highs else high + room,
    ]


def _ticks(style: FieldStyle) -> dict[str, Any]:
    """Return how Plotly writes the axis in the field's unit."""
    unit = style.unit or "none"
    if unit == "percentunit":
        return {"tickformat": ".0%", "nticks": 6}
    if unit == "percent":
        return {"ticksuffix": " %", "nticks": 6}
    if unit == "short":
        return {"tickformat": "~s", "nticks": 6}
    suffix = {"s": " s", "ms": " ms"}.get(unit) or _SUFFIXES.get(unit, "")
    return {"ticksuffix": suffix, "nticks": 6, "tickformat": "~g"}


def _escaped(text: str) -> str:
    """Return text as text where Plotly would read tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# Tables


def table_columns(panel: Panel, frame: pd.DataFrame) -> list[str]:
    """Return the columns that a table shows, in their order."""
    return [column for column in frame.columns if not panel.field(column).hidden]


def cell_look(value: Any, style: FieldStyle, colours: Palette) -> str:
    """Return a cell's CSS: the colour of its value on the text or behind it, as the file says."""
    kind = style.custom.cell_options.type
    if kind not in {"color-text", "color-background"}:
        return ""
    shade = value_color(value, _coloured(style), colours)
    if shade is None:
        return ""
    if kind == "color-text":
        return f"color: {shade}"
    return f"background-color: {_faded(shade, 0.22) or shade}; color: {shade}"


def _coloured(style: FieldStyle) -> FieldStyle:
    """Return `style`, coloured by thresholds where only mappings and thresholds can say how."""
    if style.color.mode in {"fixed", "thresholds"}:
        return style
    return style.model_copy(update={"color": style.color.model_copy(update={"mode": "thresholds"})})
