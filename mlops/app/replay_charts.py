"""Plotly figures of the page *Replay*: a measure by month and policy, and where versions changed.

Pure functions of data and a palette, as `charts`. They never read a file or need Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from mlops.app.charts import LIGHT, Palette
from mlops.replay.words import NAMES, version_changes


def by_month(
    policies: Mapping[str, Any],
    key: str,
    digits: int = 3,
    limit: tuple[str, float] | None = None,
    from_zero: bool = False,
    colours: Palette = LIGHT,
) -> go.Figure:
    """Return lines of `key` of each policy's months, ours in the accent.

    Dotted lines stand where another version answers (policy alert, if it was played). `limit` is a
    dashed horizontal line: what it is, and its value.
    """
    looks = {
        "static": (colours.muted, 1.6),
        "monthly": (colours.series[1], 1.8),
        "alert": (colours.accent, 2.8),
    }
    figure = go.Figure()
    for name in NAMES:  # ours last, on top
        if name not in policies:
            continue
        months = policies[name]["months"]
        colour, width = looks[name]
        figure.add_scatter(
            x=[month["period"] for month in months],
            y=[month[key] for month in months],
            name=NAMES[name],
            mode="lines+markers",
            line={"color": colour, "width": width},
            marker={"size": 6},
            customdata=[[month["version"], month["candidate"], month["rows"]] for month in months],
            hovertemplate=f"%{{x}}: %{{y:.{digits}f}}<br>version %{{customdata[0]}}, "
            "%{customdata[1]}, %{customdata[2]:,} rows<extra>" + NAMES[name] + "</extra>",
        )
    if "alert" in policies:
        _mark_versions(figure, policies["alert"]["months"], colours)
    if limit is not None:
        text, value = limit
        figure.add_hline(
            y=value,
            line={"color": colours.limit, "width": 1.2, "dash": "dash"},
            annotation={"text": text, "font": {"color": colours.limit}},
            annotation_position="top right",
        )
    figure.update_layout(
        height=330,
        margin={"l": 8, "r": 8, "t": 52, "b": 8},
        legend={"orientation": "h", "y": 1.22, "x": 0, "yanchor": "top"},
        xaxis={"type": "category", "nticks": 12, "showgrid": False},
        yaxis={"gridcolor": colours.track, "rangemode": "tozero" if from_zero else "normal"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
    )
    return figure


def _mark_versions(
    figure: go.Figure, months: Sequence[Mapping[str, Any]], colours: Palette
) -> None:
    for place, version in version_changes(months):
        figure.add_vline(
            x=place - 0.5,
            line={"color": colours.accent, "width": 1, "dash": "dot"},
            opacity=0.7,
            annotation={"text": f"v{version}", "font": {"color": colours.accent, "size": 11}},
            annotation_position="top",
        )
