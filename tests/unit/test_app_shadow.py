"""What the figures and tables of the page *Shadow* make of two versions' scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlops.app import charts
from mlops.app.shadow_rows import decided_otherwise, learnt_by


def months(count: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model_version": "7",
            "champion": "3",
            "period": pd.date_range("2009-03-01", periods=count, freq="MS"),
            "labelled_count": 200,
            "roc_auc": [0.7, None][:count] if count <= 2 else np.linspace(0.6, 0.7, count),
            "champion_roc_auc": [0.65, None][:count] if count <= 2 else 0.65,
            "roc_auc_low": [0.01, None][:count] if count <= 2 else -0.01,
            "roc_auc_high": [0.08, None][:count] if count <= 2 else 0.02,
        }
    )


def test_the_months_have_a_line_for_who_answered_and_one_for_the_shadow() -> None:
    figure = charts.shadow_months(months(), "roc_auc", "ROC AUC")
    assert [(line.name, list(line.y)) for line in figure.data] == [
        ("who answered", [0.65]),
        ("version 7, in shadow", [0.7]),
    ]
    assert figure.data[0].line.color == charts.LIGHT.accent


def test_a_difference_has_its_interval() -> None:
    (marks,) = charts.shadow_differences(months(), "roc_auc", "difference").data
    assert list(marks.y) == pytest.approx([0.05])
    assert list(marks.error_y.array) == pytest.approx([0.03])
    assert list(marks.error_y.arrayminus) == pytest.approx([0.04])


def test_many_months_have_a_few_ticks_and_the_last_is_one() -> None:
    figure = charts.shadow_months(months(20), "roc_auc", "ROC AUC")
    ticks = figure.layout.xaxis.tickvals
    assert len(ticks) <= 6
    assert pd.Timestamp(ticks[-1]) == months(20)["period"].iloc[-1]


def test_without_labels_there_is_an_empty_figure() -> None:
    nothing = months().iloc[1:]
    assert not any(len(line.x) for line in charts.shadow_months(nothing, "roc_auc", "x").data)
    charts.shadow_differences(nothing, "roc_auc", "x")


def test_every_row_is_in_a_cell_of_both_scores() -> None:
    random = np.random.default_rng(0)
    pairs = pd.DataFrame({"champion": random.beta(1, 9, 500), "shadow": random.beta(2, 9, 500)})
    pairs.loc[0] = [1.0, 1.0]
    figure = charts.score_pairs(pairs, ("three", "seven"), (0.1, 0.2))
    assert np.nansum(figure.data[0].customdata) == 500
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("three", "seven")
    marked = [(shape.x0, shape.y0) for shape in figure.layout.shapes[1:]]
    assert marked[0][0] == 0.1
    assert marked[1][1] == 0.2
    charts.score_pairs(pairs.iloc[:1] * 0, ("three", "seven"), (None, None))


def test_decided_otherwise_is_each_at_its_own_threshold_the_furthest_apart_first() -> None:
    pairs = pd.DataFrame(
        {"champion": [0.1, 0.3, 0.3, 0.05], "shadow": [0.15, 0.1, 0.35, 0.9]}, index=list("abcd")
    )
    assert list(decided_otherwise(pairs, 0.2, 0.25).index) == ["d", "b"]
    assert decided_otherwise(pairs, 0.0, 0.0).empty


def test_the_page_names_who_was_fitted_on_a_month() -> None:
    shown = pd.concat([months()] * 2, ignore_index=True).assign(
        known_to_shadow=[True, True, False, False], known_to_champion=[True, False, True, False]
    )
    assert list(learnt_by(shown)) == ["version 7 and version 3", "version 7", "version 3", ""]
