"""What the app's figures mark: the champion, limits, and months too small to alarm on."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pandas as pd
import pytest

from mlops.app import charts


def months() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model_version": ["1", "1", "2"],
            "period": pd.to_datetime(["2009-03-01", "2009-04-01", "2009-04-01"]),
            "row_count": [150, 2000, 2000],
            "prediction_drift": [0.05, 0.2, 0.01],
            "roc_auc": [0.45, None, 0.7],
        }
    )


@pytest.mark.parametrize(("share", "anchor"), [(0.02, "left"), (0.5, "center"), (0.98, "right")])
def test_marks_near_an_end_lean_inwards(share: float, anchor: str) -> None:
    figure = charts.probability_bar(0.3, share, None)
    (mark,) = figure.layout.annotations
    assert (mark.x, mark.xanchor, mark.text) == (share, anchor, f"threshold {share:.1%}")


def test_the_bar_is_as_long_as_the_probability() -> None:
    track, bar = charts.probability_bar(0.3, 0.5, 0.1).data
    assert (track.x, bar.x) == ((1.0,), (0.3,))


def test_contributions_lead_from_the_reference_to_the_score() -> None:
    steps = [
        ("age = 77", 0.05, "told"),
        ("job = maid", -0.02, "told"),
        ("age = 77", -0.01, "twice"),
    ]
    figure = charts.contributions_waterfall(steps, 0.04, 0.06, 0.31)
    (bars,) = figure.data
    assert list(bars.x) == [0.04, 0.05, -0.02, -0.01, 0.06]
    assert list(bars.measure) == ["absolute", *["relative"] * 3, "total"]
    assert sum(bars.x[:-1]) == pytest.approx(bars.x[-1])
    assert list(bars.text) == ["4.0%", "+5.0", "\u22122.0", "\u22121.0", "6.0%"]
    # Two fields may read alike; each has a place of its own all the same.
    assert list(figure.layout.yaxis.ticktext)[1:4] == ["age = 77", "job = maid", "age = 77"]
    assert len(set(bars.y)) == 5
    low, high = figure.layout.xaxis.range
    assert low <= 0 < 0.31 < high, "the threshold stays in sight"


def test_a_long_text_is_cut_in_the_label_only() -> None:
    figure = charts.contributions_waterfall([(f"job = {'x' * 200}", 0.1, "x" * 200)], 0.1, 0.2, 0.5)
    assert len(figure.layout.yaxis.ticktext[1]) == 34
    assert figure.data[0].customdata[1] == "x" * 200


def test_a_value_is_no_html() -> None:
    figure = charts.contributions_waterfall(
        [("pay = <=50K", 0.1, "pay is <=50K\nb")], 0.1, 0.2, 0.5
    )
    assert figure.layout.yaxis.ticktext[1] == "pay = &lt;=50K"
    assert figure.data[0].customdata[1] == "pay is &lt;=50K<br>b"


def test_a_small_step_is_not_called_nothing() -> None:
    figure = charts.contributions_waterfall([("a", 0.0002, ""), ("b", 0.1, "")], 0.1, 0.2002, 0.5)
    assert list(figure.data[0].text)[1:3] == ["+0.02", "+10.0"]


def profit(share: float, everybody: float) -> dict[str, Any]:
    points = [{"threshold": 1 - s, "share": s, "profit": everybody * s} for s in (0.5, 1.0)]
    chosen = {"threshold": 0.3, "share": share, "profit": 70.0}
    return {"per_rows": 1000, "rows": 50, "chosen": chosen, "all": everybody, "curve": points}


def test_the_profit_marks_the_threshold_nobody_and_all() -> None:
    figure = charts.profit_chart(profit(0.4, -30.0), "euros", 0.31)
    assert [mark.text for mark in figure.layout.annotations] == [
        "<b>threshold 31.0%: 70</b>",
        "contact nobody",
        "contact all: \u221230",
    ]
    assert list(figure.data[0].x) == [0.0, 0.5, 1.0]
    assert [list(mark.x) for mark in figure.data[1:]] == [[0.4], [0.0], [1.0]]
    assert figure.layout.yaxis.title.text == "Euros per 1,000 customers"
    low, high = figure.layout.yaxis.range
    assert low < -30 < 70 < high


def test_a_threshold_that_contacts_all_is_marked_once() -> None:
    figure = charts.profit_chart(profit(1.0, 70.0), "euros", 0.01)
    assert [mark.text for mark in figure.layout.annotations] == [
        "<b>threshold 1.0%: 70</b>",
        "contact nobody",
    ]


def test_only_the_version_in_production_has_the_accent() -> None:
    board = pd.DataFrame(
        {
            "candidate": ["A", "B", "C"],
            "version": ["5", "4", None],
            "validation_roc_auc": [0.8, 0.7, None],
        }
    )
    (bars,) = charts.leaderboard_bars(board, "5", "validation_roc_auc").data
    assert list(bars.y) == ["B", "A"]
    assert list(bars.marker.color) == [charts.LIGHT.series[0], charts.LIGHT.accent]
    (bars,) = charts.leaderboard_bars(board, None, "validation_roc_auc").data
    assert charts.LIGHT.accent not in bars.marker.color


def test_a_month_with_few_rows_is_hollow_and_the_limit_is_in_sight() -> None:
    figure = charts.months_chart(months(), "prediction_drift", "2", limit=0.4, minimum_rows=200)
    old, champion = figure.data
    assert list(old.marker.symbol) == ["circle-open", "circle"]
    assert champion.line.color == charts.LIGHT.accent
    assert old.line.color != charts.LIGHT.accent
    (limit,) = figure.layout.shapes
    assert limit.y0 == 0.4
    assert figure.layout.yaxis.range[1] > 0.4


def test_a_score_below_a_guess_stays_in_sight() -> None:
    figure = charts.months_chart(months(), "roc_auc", "2")
    assert figure.layout.yaxis.range[0] < 0.45
    assert [list(line.y) for line in figure.data] == [[0.45], [0.7]]


def test_the_stay_that_has_not_ended_lasts_until_now() -> None:
    hours = [datetime(2026, 1, 1, hour, tzinfo=timezone.utc) for hour in range(4)]
    stays = pd.DataFrame(
        {
            "model_version": ["1", "2"],
            "candidate": ["A", None],
            "cause": ["first", "retrain"],
            "deployed_at": hours[:2],
            "retired_at": [hours[1], None],
        }
    )
    first, current = charts.version_timeline(stays, hours[3]).data
    assert (first.x, current.x) == ((3_600_000.0,), (7_200_000.0,))
    assert current.marker.color == charts.LIGHT.accent
    assert first.marker.color != charts.LIGHT.accent


def test_the_forest_turns_a_lower_brier_to_the_right_and_colours_by_outcome() -> None:
    found = {"difference": -0.02, "low": -0.03, "high": 0.01}
    rows = [
        {"label": "2 < 1", "passed": True, "lost": False, "words": "a", "brier": found},
        {"label": "3", "passed": False, "lost": True, "words": "b", "brier": found},
    ]
    figure = charts.gate_forest(rows, "brier", None)
    first, second = figure.data
    assert list(first.x) == [0.02]
    assert list(first.error_x.array) == pytest.approx([0.01])
    assert list(first.error_x.arrayminus) == pytest.approx([0.03])
    assert (first.marker.color, second.marker.color) == (charts.LIGHT.accent, charts.LIGHT.limit)
    assert list(figure.layout.yaxis.ticktext) == ["2 &lt; 1", "3"]
    assert first.y[0] > second.y[0], "the first stands on top"
