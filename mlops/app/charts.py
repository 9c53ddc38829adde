"""Plotly figures of the app: probability, contributions, profit, versions, months, a shadow.

Pure functions of data and a palette. It never reads a table, calls the API or needs Streamlit. One
accent for what is in production or asked for, greys for the rest, one warm colour for limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go


@dataclass(frozen=True)
class Palette:
    """Colours that read well on one background."""

    background: str
    accent: str
    muted: str
    track: str
    limit: str
    series: tuple[str, ...]


LIGHT = Palette(
    background="#ffffff",
    accent="#1f5fa8",
    muted="#697684",
    track="#e3e8ed",
    limit="#b4540a",
    series=("#6f7b88", "#4f8a8b", "#b3a27c", "#6f8f86", "#a58a94"),
)
DARK = Palette(
    background="#14181d",
    accent="#6ea8e6",
    muted="#9aa6b2",
    track="#2c343d",
    limit="#e89a55",
    series=("#97a3af", "#6fa3a4", "#b3a27c", "#86aa9f", "#b99ba6"),
)

#: Shares this near to nobody or to all are marked as one.
NEAR = 0.02

#: Cells of `score_pairs` in each direction.
PAIR_BINS = 48

Unit = Literal["score", "share"]

#: Passed to `st.plotly_chart`: no tool bar over small charts.
CONFIG = {"displayModeBar": False}


def palette(theme: str | None) -> Palette:
    """Return the palette of the theme "dark" or "light" (anything else)."""
    return DARK if theme == "dark" else LIGHT


def probability_bar(
    probability: float,
    threshold: float,
    base_rate: float | None,
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return a bar from 0 to 100 % with the decision threshold above and the base rate below it.

    All three are shares (0..1).
    """
    figure = go.Figure()
    for share, colour in ((1.0, colours.track), (probability, colours.accent)):
        figure.add_bar(
            x=[share], y=[0], width=0.5, orientation="h", marker_color=colour, hoverinfo="skip"
        )
    _mark(figure, threshold, f"threshold {threshold:.1%}", colours.limit, colours, above=True)
    if base_rate is not None:
        _mark(figure, base_rate, f"base rate {base_rate:.1%}", colours.muted, colours, above=False)
    figure.update_layout(
        **_frame(height=118, margin={"l": 4, "r": 4, "t": 0, "b": 24}),
        barmode="overlay",
        showlegend=False,
    )
    figure.update_xaxes(
        # A little more than 0 to 1, or the labels of both ends fall off.
        range=[-0.02, 1.02],
        tickformat=".0%",
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        showgrid=False,
        fixedrange=True,
        zeroline=False,
    )
    figure.update_yaxes(visible=False, range=[-0.75, 0.75], fixedrange=True)
    return figure


def _mark(
    figure: go.Figure, share: float, text: str, colour: str, colours: Palette, above: bool
) -> None:
    low, high = (-0.3, 0.42) if above else (-0.42, 0.3)
    # A halo in the colour of the page keeps the line visible on the bar.
    for line in ({"color": colours.background, "width": 6}, {"color": colour, "width": 2}):
        figure.add_shape(type="line", x0=share, x1=share, y0=low, y1=high, line=line)
    figure.add_annotation(
        x=share,
        y=0.6 if above else -0.6,
        text=text,
        showarrow=False,
        xanchor=_lean(share),
        font={"color": colour, "size": 12},
    )


def contributions_waterfall(
    steps: Sequence[tuple[str, float, str]],
    base: float,
    probability: float,
    threshold: float,
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return how a score comes about: from `base` by `steps` (label, change, hover) to the score.

    All numbers are shares (0..1). What raises the score has the accent, what lowers it the warm
    colour; the threshold is a dotted line.
    """
    ends = ("Reference customer", "This record")
    labels = [ends[0], *(label for label, _, _ in steps), ends[1]]
    changes = [change for _, change, _ in steps]
    digits = 1 if max([abs(probability), base]) >= 0.02 else 2
    reached = [base]
    for change in changes:
        reached.append(reached[-1] + change)
    figure = go.Figure(
        go.Waterfall(
            orientation="h",
            # Positions, since two labels may be the same.
            y=list(range(len(labels))),
            x=[base, *changes, probability],
            measure=["absolute", *["relative"] * len(changes), "total"],
            text=[
                f"{base:.{digits}%}",
                *(_signed(_points(change, digits)) for change in changes),
                f"{probability:.{digits}%}",
            ],
            textposition="outside",
            textfont={"size": 12},
            cliponaxis=False,
            customdata=[f"{ends[0]}: {base:.2%}", *(_text(told) for *_, told in steps),
                        f"{ends[1]}: {probability:.2%}"],
            hovertemplate="%{customdata}<extra></extra>",
            width=0.62,
            increasing_marker_color=colours.accent,
            decreasing_marker_color=colours.limit,
            totals_marker_color=colours.series[0],
            connector={"line": {"color": colours.track, "width": 1}},
        )
    )  # fmt: skip
    figure.add_vline(x=threshold, line={"color": colours.muted, "width": 1.5, "dash": "dot"})
    low, high = min(0.0, *reached), max(*reached, probability, threshold)
    room = 0.14 * (high - low or 1.0)
    figure.add_annotation(
        x=threshold,
        y=1,
        yref="paper",
        yanchor="bottom",
        text=f"threshold {threshold:.1%}",
        showarrow=False,
        xanchor="left" if threshold < low + 0.2 * (high - low) else "center",
        font={"color": colours.muted, "size": 12},
    )
    figure.update_layout(
        **_frame(height=30 * len(labels) + 62, margin={"l": 4, "r": 4, "t": 26, "b": 30}),
        showlegend=False,
    )
    figure.update_xaxes(
        range=[low - (room if low < 0 else 0.0), high + room],
        tickformat=".0%" if high - low >= 0.05 else ".1%",
        nticks=6,
        fixedrange=True,
        zeroline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[_text(_short(label)) for label in labels],
        autorange="reversed",
        automargin=True,
        fixedrange=True,
        showgrid=False,
    )
    return figure


def _text(words: str) -> str:
    """Return words as they are for Plotly, which reads them as HTML."""
    return escape(words, quote=False).replace("\n", "<br>")


def _short(label: str, characters: int = 34) -> str:
    return label if len(label) <= characters else label[: characters - 1] + "…"


def profit_chart(
    profit: Mapping[str, Any], unit: str, threshold: float, colours: Palette = LIGHT
) -> go.Figure:
    """Return the profit by the share of customers that is contacted, the chosen one in the accent.

    `profit` is that of `model.json`; to contact nobody and to contact all are marked too.
    """
    curve, chosen = profit["curve"], profit["chosen"]
    figure = go.Figure()
    figure.add_scatter(
        x=[0.0, *(point["share"] for point in curve)],
        y=[0.0, *(point["profit"] for point in curve)],
        mode="lines",
        line={"color": colours.series[0], "width": 2},
        customdata=["above all scores", *(f"{point['threshold']:.2%}" for point in curve)],
        hovertemplate=(
            "threshold %{customdata}<br>%{x:.0%} contacted<br>"
            f"%{{y:,.0f}} {unit} per {profit['per_rows']:,} customers<extra></extra>"
        ),
    )
    share, all_of_them = chosen["share"], _signed(f"{profit['all']:,.0f}")
    best = _signed(f"{chosen['profit']:,.0f}")
    # Where the curve falls from the start, words below its start would lie on it.
    above = 16 if curve[min(5, len(curve) - 1)]["profit"] < 0 else -16
    marks = [
        (share, chosen["profit"], f"<b>threshold {threshold:.1%}: {best}</b>", colours.accent, 16)
    ]
    if share > NEAR:
        marks.append((0.0, 0.0, "contact nobody", colours.muted, above))
    if share < 1 - NEAR:
        marks.append((1.0, profit["all"], f"contact all: {all_of_them}", colours.muted, -16))
    profits = [0.0, chosen["profit"], *(point["profit"] for point in curve)]
    low, high = min(profits), max(profits)
    room = 0.18 * (high - low or 1.0)
    for share, value, text, colour, shift in marks:
        figure.add_scatter(
            x=[share],
            y=[value],
            mode="markers",
            marker={"size": 10, "color": colour, "line": {"color": colours.background, "width": 2}},
            hoverinfo="skip",
        )
        figure.add_annotation(
            x=share,
            y=value,
            text=text,
            showarrow=False,
            xanchor=_lean(share),
            yshift=shift,
            font={"color": colour, "size": 12},
        )
    figure.add_hline(y=0, line={"color": colours.track, "width": 1.5}, layer="below")
    figure.update_layout(
        **_frame(height=300, margin={"l": 8, "r": 8, "t": 8, "b": 44}), showlegend=False
    )
    figure.update_xaxes(
        range=[-0.02, 1.02],
        tickformat=".0%",
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        title={"text": "Share of customers contacted, best scores first", "font": {"size": 12}},
    )
    figure.update_yaxes(
        range=[low - room, high + room],
        tickformat=",.0f",
        zeroline=False,
        fixedrange=True,
        automargin=True,
        title={
            "text": f"{unit.capitalize()} per {profit['per_rows']:,} customers",
            "font": {"size": 12},
        },
    )
    return figure


def _points(change: float, digits: int) -> str:
    """Return a change of a share in percentage points, with a digit more where it would be 0."""
    text = f"{100 * change:+.{digits}f}"
    return text if float(text) else f"{100 * change:+.{digits + 1}f}"


def _signed(number: str) -> str:
    """Return a written number with a minus as wide as a plus, as the axes have it."""
    return number.replace("-", "\u2212")


def _lean(share: float) -> str:
    """Return where words at a share (0..1) of the width are anchored, so that none are cut off."""
    return "left" if share < 0.15 else "right" if share > 0.85 else "center"


def leaderboard_bars(
    board: pd.DataFrame, champion: str | None, metric: str, colours: Palette = LIGHT
) -> go.Figure:
    """Return `metric` of each candidate, best on top, the version in production in the accent.

    `board` has one row a candidate: candidate, version, metrics. The axis starts at 0.5, a guess.
    """
    ranked = board.dropna(subset=[metric]).iloc[::-1]
    champions = [champion is not None and version == champion for version in ranked["version"]]
    figure = go.Figure(
        go.Bar(
            x=ranked[metric] - 0.5,
            base=0.5,
            y=ranked["candidate"],
            orientation="h",
            marker_color=[colours.accent if is_it else colours.series[0] for is_it in champions],
            text=[f"{score:.3f}" for score in ranked[metric]],
            textposition="outside",
            cliponaxis=False,
            customdata=ranked[metric],
            hovertemplate="%{y}: %{customdata:.4f}<extra></extra>",
        )
    )
    figure.update_layout(**_frame(height=44 * max(len(ranked), 2) + 50), showlegend=False)
    scores = ranked[metric]
    low = min(0.5, float(scores.min()) - 0.01) if len(scores) else 0.5
    high = max(0.55, float(scores.max())) if len(scores) else 1.0
    figure.update_xaxes(
        range=[low, min(1.0, high) + 0.12 * (high - low)],
        tickformat=".2f",
        nticks=5,
        fixedrange=True,
        title={"text": "ROC AUC on validation (0.5 is a guess)", "font": {"size": 12}},
    )
    figure.update_yaxes(fixedrange=True, automargin=True)
    return figure


def version_timeline(
    deployments: pd.DataFrame, now: datetime, colours: Palette = LIGHT
) -> go.Figure:
    """Return one bar per stay in production, from `deployed_at` to `retired_at` or `now`."""
    figure = go.Figure()
    for stay in deployments.to_dict("records"):
        current = pd.isna(stay["retired_at"])
        end = pd.Timestamp(now) if current else pd.Timestamp(stay["retired_at"])
        start = pd.Timestamp(stay["deployed_at"])
        until = "now" if current else f"{end:%Y-%m-%d %H:%M}"
        why = f"{stay.get('began') or 'deployed'}: {stay['cause']}"
        figure.add_bar(
            x=[(end - start).total_seconds() * 1000],
            base=[start],
            y=[f"Version {stay['model_version']}"],
            orientation="h",
            width=0.55,
            marker_color=colours.accent if current else colours.series[0],
            text=str(stay["candidate"] or ""),
            textposition="auto",
            insidetextanchor="middle",
            constraintext="none",
            textangle=0,
            textfont={"size": 12},
            insidetextfont={"color": colours.background},
            hovertemplate=(
                f"Version {stay['model_version']} ({stay['candidate']})<br>"
                f"{start:%Y-%m-%d %H:%M} to {until}<br>"
                f"{_text(why)}<extra></extra>"
            ),
        )
    rows = deployments["model_version"].nunique()
    figure.update_layout(
        **_frame(height=38 * max(rows, 1) + 56), barmode="overlay", showlegend=False
    )
    figure.update_xaxes(type="date", fixedrange=True)
    figure.update_yaxes(fixedrange=True, automargin=True, categoryorder="trace")
    return figure


def gate_forest(
    rows: Sequence[Mapping[str, Any]],
    measure: str,
    margin: float | None,
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return the difference of challenger and champion with its interval, one line a row.

    Each of `rows`, drawn from the top, has `label`, `passed` (drawn in the accent), `lost` (in the
    colour of limits), `words` (shown on hovering), and under `measure` (`roc_auc` or `brier`) the
    gate's numbers `difference`, `low`, `high`. To the right the challenger is better, whatever the
    measure: a Brier score's sign is turned. `margin` is drawn as a dashed line beside the zero.
    """
    sign = 1.0 if measure == "roc_auc" else -1.0
    figure = go.Figure()
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        found = row[measure]
        colour = (
            colours.limit if row["lost"] else colours.accent if row["passed"] else colours.series[0]
        )
        ends = sorted((sign * found["low"], sign * found["high"]))
        middle = sign * found["difference"]
        figure.add_scatter(
            x=[middle],
            y=[place],
            mode="markers",
            marker={"color": colour, "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, ends[1] - middle)],
                "arrayminus": [max(0.0, middle - ends[0])],
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
            hovertemplate=f"{_text(row['words'])}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": colours.muted, "width": 1})
    if margin:
        figure.add_vline(x=margin, line={"color": colours.limit, "width": 1, "dash": "dash"})
    figure.update_layout(**_frame(height=30 * max(len(rows), 2) + 60), showlegend=False)
    figure.update_xaxes(
        title={"text": "\u2190 champion better · challenger better \u2192", "font": {"size": 12}},
        tickformat="+.2f",
        nticks=6,
        fixedrange=True,
        zeroline=False,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=places,
        ticktext=[_text(_short(str(row["label"]))) for row in rows],
        range=[-0.6, len(rows) - 0.4],
        fixedrange=True,
        automargin=True,
        showgrid=False,
    )
    return figure


def months_chart(
    months: pd.DataFrame,
    column: str,
    champion: str | None,
    colours: Palette = LIGHT,
    limit: float | None = None,
    minimum_rows: int = 0,
    unit: Unit = "score",
) -> go.Figure:
    """Return `column` by month, one line a version, the one in production in the accent.

    Months with fewer than `minimum_rows` rows, on which no alert is raised, are drawn hollow; a
    `limit` is a dashed line.
    """
    figure = go.Figure()
    known = months.dropna(subset=[column])
    versions: Sequence[str] = list(dict.fromkeys(known["model_version"]))
    greys = iter(colours.series * (len(versions) // len(colours.series) + 1))
    for version in versions:
        of_version = known[known["model_version"] == version].sort_values("period")
        colour = colours.accent if version == champion else next(greys)
        small = of_version["row_count"] < minimum_rows
        figure.add_scatter(
            x=of_version["period"],
            y=of_version[column],
            mode="lines+markers",
            name=f"version {version}",
            line={"color": colour, "width": 2.5 if version == champion else 1.5},
            marker={
                "size": 7,
                "color": colour,
                "symbol": ["circle-open" if few else "circle" for few in small],
            },
            customdata=of_version["row_count"],
            hovertemplate=(
                f"version {version}, %{{x|%Y-%m}}: %{{y:{_format(unit)}}}"
                "<br>%{customdata:,} rows<extra></extra>"
            ),
        )
    if limit is not None:
        figure.add_hline(y=limit, line={"color": colours.limit, "width": 1.5, "dash": "dash"})
    figure.update_layout(
        **_frame(height=230, margin={"l": 8, "r": 8, "t": 0, "b": 30}),
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    periods = known["period"].nunique()
    figure.update_xaxes(
        tickformat="%b %Y", fixedrange=True, showgrid=False, nticks=min(max(periods, 1), 6)
    )
    top = max([*known[column].tolist(), limit or 0.0, 0.01]) * 1.15
    floor = 0.0
    if column == "roc_auc":
        # A guess is 0.5; what lies below it is worth seeing too.
        floor, top = min(0.5, float(known[column].min()) - 0.02) if len(known) else 0.5, 1.0
    figure.update_yaxes(range=[floor, top], tickformat=_format(unit, axis=True), fixedrange=True)
    return figure


def shadow_months(
    months: pd.DataFrame, measure: str, title: str, colours: Palette = LIGHT
) -> go.Figure:
    """Return `measure` by month of who answered (accent) and of the shadow, on the same rows.

    `months` has period, champion, `measure` and `champion_<measure>`; a break in the line is a
    month without it.
    """
    known = months.dropna(subset=[measure]).sort_values("period")
    figure = go.Figure()
    version = known["model_version"].iloc[0] if len(known) else ""
    shown = (
        (f"champion_{measure}", "who answered", colours.accent, 2.5, known["champion"]),
        (measure, f"version {version}, in shadow", colours.series[1], 2.5, known["model_version"]),
    )
    for column, name, colour, width, versions in shown:
        figure.add_scatter(
            x=known["period"],
            y=known[column],
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": width},
            marker={"size": 7, "color": colour},
            customdata=list(zip(versions, known["labelled_count"], strict=True)),
            hovertemplate=(
                "version %{customdata[0]}, %{x|%Y-%m}: %{y:.3f}"
                "<br>%{customdata[1]:,} labelled rows<extra></extra>"
            ),
        )
    figure.update_layout(
        **_frame(height=250, margin={"l": 8, "r": 8, "t": 0, "b": 30}),
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(**_months_axis(known))
    figure.update_yaxes(
        tickformat=".2f", fixedrange=True, title={"text": title, "font": {"size": 12}}
    )
    return figure


def shadow_differences(
    months: pd.DataFrame, measure: str, title: str, colours: Palette = LIGHT
) -> go.Figure:
    """Return by month the shadow's `measure` less the champion's, with its interval, and 0."""
    known = months.dropna(subset=[f"{measure}_low"]).sort_values("period")
    difference = known[measure] - known[f"champion_{measure}"]
    low, high = known[f"{measure}_low"], known[f"{measure}_high"]
    figure = go.Figure(
        go.Scatter(
            x=known["period"],
            y=difference,
            mode="markers",
            marker={"size": 8, "color": colours.series[1]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": high - difference,
                "arrayminus": difference - low,
                "color": colours.series[1],
                "thickness": 1.8,
                "width": 4,
            },
            customdata=list(zip(low, high, known["champion"], strict=True)),
            hovertemplate=(
                "%{x|%Y-%m}, beside version %{customdata[2]}: %{y:+.3f}"
                "<br>%{customdata[0]:+.3f} to %{customdata[1]:+.3f}<extra></extra>"
            ),
        )
    )
    figure.add_hline(y=0, line={"color": colours.accent, "width": 2})
    figure.update_layout(
        **_frame(height=250, margin={"l": 8, "r": 8, "t": 22, "b": 30}), showlegend=False
    )
    figure.update_xaxes(**_months_axis(known))
    figure.update_yaxes(
        tickformat="+.2f", fixedrange=True, title={"text": title, "font": {"size": 12}}
    )
    return figure


def _months_axis(known: pd.DataFrame) -> dict[str, Any]:
    """Return an axis of months with room at both ends: a single one would fill it with days."""
    if known.empty:
        return {"showgrid": False, "fixedrange": True}
    half = pd.Timedelta(days=20)
    return {
        "tickformat": "%b %Y",
        "showgrid": False,
        "fixedrange": True,
        "range": [known["period"].min() - half, known["period"].max() + half],
        "tickvals": _some(sorted(known["period"].unique())),
    }


def _some(values: Sequence[Any], most: int = 6) -> list[Any]:
    """Return values evenly, `most` at most, the last one among them."""
    step = -(-len(values) // most)
    return list(values[::-1][::step][::-1])


def score_pairs(
    pairs: pd.DataFrame,
    names: tuple[str, str],
    thresholds: tuple[float | None, float | None],
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return how many rows lie where, by the champion's score (across) and the shadow's (up).

    `pairs` has `champion` and `shadow`, 0..1; `names` and `thresholds` are in that order. The
    thresholds are dashed; on the dotted line both say the same.
    """
    top = float(pairs[["champion", "shadow"]].to_numpy().max(initial=0.01))
    end = min(1.0, max(1.04 * top, *(1.1 * each for each in thresholds if each is not None), 0.05))
    edges = np.linspace(0, end, PAIR_BINS + 1)
    counts, _, _ = np.histogram2d(pairs["shadow"], pairs["champion"], bins=(edges, edges))
    middles = (edges[:-1] + edges[1:]) / 2
    seen = np.where(counts > 0, counts, np.nan)
    most = float(np.nanmax(seen)) if len(pairs) else 1.0
    ticks = [10**power for power in range(int(np.log10(max(most, 1))) + 1)]
    figure = go.Figure(
        go.Heatmap(
            x=middles,
            y=middles,
            z=np.log10(seen),
            customdata=counts,
            zmin=-0.3,  # one row is to be seen too
            zmax=max(np.log10(most), 1.0),
            colorscale=[[0, colours.track], [1, colours.accent]],
            xgap=0.5,
            ygap=0.5,
            hoverongaps=False,
            hovertemplate=(
                f"{names[0]}: %{{x:.1%}}<br>{names[1]}: %{{y:.1%}}<br>"
                "%{customdata:,} rows<extra></extra>"
            ),
            colorbar={
                "title": {"text": "rows", "font": {"size": 12}},
                "tickvals": [float(np.log10(tick)) for tick in ticks],
                "ticktext": [f"{tick:,}" for tick in ticks],
                "thickness": 12,
                "outlinewidth": 0,
            },
        )
    )
    figure.add_shape(
        type="line", x0=0, y0=0, x1=end, y1=end, line={"color": colours.muted, "dash": "dot"}
    )
    dashed = {"color": colours.limit, "width": 1.5, "dash": "dash"}
    if thresholds[0] is not None:
        figure.add_vline(x=thresholds[0], line=dashed)
    if thresholds[1] is not None:
        figure.add_hline(y=thresholds[1], line=dashed)
    figure.update_layout(**_frame(height=430, margin={"l": 8, "r": 8, "t": 8, "b": 40}))
    for update, name in ((figure.update_xaxes, names[0]), (figure.update_yaxes, names[1])):
        update(
            range=[0, end],
            tickformat=".0%",
            nticks=6,
            fixedrange=True,
            showgrid=False,
            zeroline=False,
            title={"text": name, "font": {"size": 12}},
        )
    return figure


def score_histogram(
    negative: Sequence[int],
    positive: Sequence[int],
    threshold: float,
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return rows by score, those that are decided positively in accent.

    `negative` and `positive` are counts of equal bins from 0 to 1, of rows decided so. The
    threshold is a dashed line; of the bin that it cuts, both kinds stand one on the other.
    """
    width = 1 / len(negative)
    starts = [number * width for number in range(len(negative))]
    figure = go.Figure(
        [
            go.Bar(
                x=[start + width / 2 for start in starts],
                y=list(counts),
                width=width,
                marker={"color": colour, "line": {"color": colours.background, "width": 1}},
                customdata=[f"{start:.3g} to {start + width:.3g}" for start in starts],
                hovertemplate=f"%{{customdata}}, {name}: %{{y:,}} rows<extra></extra>",
            )
            for counts, colour, name in (
                (negative, colours.series[0], "below the threshold"),
                (positive, colours.accent, "from the threshold on"),
            )
        ]
    )
    counts = [low + high for low, high in zip(negative, positive, strict=True)]
    figure.add_vline(x=threshold, line={"color": colours.limit, "width": 2, "dash": "dash"})
    figure.add_annotation(
        x=threshold,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left" if threshold < 0.15 else "right" if threshold > 0.85 else "center",
        text=f"threshold {threshold:.1%}",
        showarrow=False,
        font={"color": colours.limit, "size": 12},
    )
    # Scores of rare events crowd at the left: the empty right half would say nothing.
    filled = max((number for number, count in enumerate(counts) if count), default=0)
    end = min(1.0, max((filled + 1) * width, threshold + width) + width)
    figure.update_layout(**_frame(height=240), showlegend=False, bargap=0, barmode="stack")
    figure.update_xaxes(range=[0, end], tickformat=".0%", fixedrange=True, showgrid=False)
    figure.update_yaxes(fixedrange=True, title={"text": "rows", "font": {"size": 12}})
    return figure


def _format(unit: Unit, axis: bool = False) -> str:
    if unit == "share":
        return ".0%" if axis else ".1%"
    return ".2f" if axis else ".3f"


def _frame(height: int, margin: dict[str, int] | None = None) -> dict[str, object]:
    return {"height": height, "margin": margin or {"l": 8, "r": 16, "t": 24, "b": 36}}
