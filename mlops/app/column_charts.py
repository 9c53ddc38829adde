"""Plotly figures of the page *Columns*: a map of months by columns, and two distributions.

Pure functions of data and a palette, as `charts`. They never read a table or need Streamlit.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mlops.app.charts import LIGHT, Palette

BINS = 24
"""Bars of the distribution of a number."""

MOST_CATEGORIES = 12
"""Categories that are shown each, the frequent ones; the others are one bar."""

_PIXELS_A_COLUMN = 34


def drift_map(columns: pd.DataFrame, colours: Palette = LIGHT) -> go.Figure:
    """Return months by columns, in colour where a column has drifted beyond chance.

    `columns` are rows of `grafana.column_history` of one version. The number in a cell is the
    distance; pale cells are within threshold or chance, empty ones are not compared.
    """
    compared = columns[columns["distance"].notna()]
    off = compared["drifted"].eq(True)
    return _map(
        compared.assign(
            off=off,
            value=compared["distance"],
            text=compared["distance"].map("{:.2f}".format).where(off, ""),
            hover=[
                f"distance {row.distance:.3f}, by chance up to {row.noise:.3f}"
                + (f"<br>drifted since {row.drifted_since}" if row.drifted else "")
                for row in compared.itertuples()
            ],
        ),
        top=0.5,
        colours=colours,
    )


def missing_map(columns: pd.DataFrame, colours: Palette = LIGHT) -> go.Figure:
    """Return months by columns, in colour where more is missing than in the reference.

    The number in a cell is the share of missing values.
    """
    off = columns["missing_more"].eq(True)
    return _map(
        columns.assign(
            off=off,
            value=columns["missing_share"],
            text=columns["missing_share"].map("{:.0%}".format).where(off, ""),
            hover=[
                f"{row.missing_share:.1%} missing, {row.reference_missing_share:.1%} in the"
                " reference" + (f"<br>more since {row.missing_since}" if row.missing_more else "")
                for row in columns.itertuples()
            ],
        ),
        top=1.0,
        colours=colours,
    )


def number_distribution(
    reference: pd.Series | None, month: pd.Series, unit: str, colours: Palette = LIGHT
) -> go.Figure:
    """Return the shares of rows by value, the month as bars and the reference as a line.

    The outermost hundredth of the values on either side is drawn in the first and last bar.
    """
    sides = [side.dropna() for side in (reference, month) if side is not None]
    values = np.concatenate([side.to_numpy(dtype=np.float64) for side in sides])
    low, high = np.quantile(values, [0.01, 0.99]) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2

    def shares(side: pd.Series) -> Any:
        counts, _ = np.histogram(np.clip(side.dropna(), edges[0], edges[-1]), edges)
        return counts / max(1, counts.sum())

    figure = go.Figure()
    figure.add_bar(
        x=middles,
        y=shares(month),
        width=edges[1] - edges[0],
        name="month",
        marker={"color": colours.accent, "line": {"color": colours.background, "width": 1}},
        hovertemplate="around %{x:.4g}: %{y:.1%}<extra>month</extra>",
    )
    if reference is not None:
        known = shares(reference)
        figure.add_scatter(
            x=edges,
            y=[*known, known[-1]],
            mode="lines",
            name="reference",
            line={"color": colours.limit, "width": 2, "shape": "hv"},
            hovertemplate="from %{x:.4g}: %{y:.1%}<extra>reference</extra>",
        )
    _finish(figure)
    figure.update_xaxes(title={"text": escape(unit), "font": {"size": 12}})
    return figure


def category_distribution(
    reference: pd.Series | None, month: pd.Series, colours: Palette = LIGHT
) -> go.Figure:
    """Return the shares of rows by category, month and reference side by side."""
    shares = pd.DataFrame({"month": month.value_counts(normalize=True)})
    if reference is not None:
        shares = shares.join(
            reference.value_counts(normalize=True).rename("reference"), how="outer"
        )
    shares = shares.fillna(0.0)
    shares = shares.loc[shares.max(axis=1).sort_values(ascending=False).index]
    if len(shares) > MOST_CATEGORIES:
        rest = shares.iloc[MOST_CATEGORIES:].sum().rename("(others)")
        shares = pd.concat([shares.iloc[:MOST_CATEGORIES], rest.to_frame().T])
    names = ["(missing)" if name == "" else escape(str(name)) for name in shares.index]
    figure = go.Figure()
    for name, colour in (("month", colours.accent), ("reference", colours.limit)):
        if name in shares:
            figure.add_bar(
                x=names,
                y=shares[name],
                name=name,
                marker_color=colour,
                hovertemplate=f"%{{x}}: %{{y:.1%}}<extra>{name}</extra>",
            )
    _finish(figure)
    figure.update_xaxes(type="category")
    return figure


def _map(cells: pd.DataFrame, top: float, colours: Palette) -> go.Figure:
    """Return a heat map of `cells`: column_name, period, value, off, text, hover."""
    # The columns that are off most, and most often, stand on top.
    weight = cells["value"].where(cells["off"], 0.0).groupby(cells["column_name"]).sum()
    names = list(weight.sort_values(kind="stable").index)
    months = sorted(cells["period"].unique())

    def grid(name: str) -> pd.DataFrame:
        wide = cells.pivot(index="column_name", columns="period", values=name)
        return wide.reindex(index=names, columns=months)

    shown = grid("value").where(grid("off").eq(True), 0.0).where(grid("value").notna())
    figure = go.Figure(
        go.Heatmap(
            z=shown.astype(float).to_numpy(),
            x=months,
            y=[escape(name) for name in names],
            text=grid("text").fillna("").to_numpy(),
            texttemplate="%{text}",
            customdata=grid("hover").fillna("").to_numpy(),
            hovertemplate="<b>%{y}</b>, %{x}<br>%{customdata}<extra></extra>",
            zmin=0,
            zmax=top,
            colorscale=[[0, colours.track], [1, colours.limit]],
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
        )
    )
    figure.update_layout(
        height=60 + _PIXELS_A_COLUMN * len(names), margin={"l": 8, "r": 8, "t": 8, "b": 36}
    )
    figure.update_xaxes(type="category", showgrid=False, fixedrange=True)
    figure.update_yaxes(type="category", showgrid=False, fixedrange=True)
    return figure


def _finish(figure: go.Figure) -> None:
    figure.update_layout(
        height=300,
        margin={"l": 8, "r": 8, "t": 32, "b": 40},
        bargap=0.15,
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    figure.update_xaxes(showgrid=False, fixedrange=True)
    figure.update_yaxes(tickformat=".0%", fixedrange=True, rangemode="tozero")
