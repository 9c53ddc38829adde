"""The page of a replay: whole in one file, with every policy, version change and retrain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mlops.replay.report import page, write_report
from mlops.replay.svg import Line, Mark, line_chart
from mlops.replay.words import version_changes


def month(period: str, version: str, **values: Any) -> dict[str, Any]:
    return {
        "period": period,
        "rows": 300,
        "positive_rate": 0.4,
        "version": version,
        "candidate": "LogisticRegression",
        "roc_auc": 0.7,
        "brier": 0.2,
        "prediction_drift": 0.3,
        "prediction_drift_noise": 0.1,
        "retrain": None,
        **values,
    }


RETRAIN = {
    "cause": "alert: <Prediction drift>",
    "window_start": "2008-11",
    "window_end": "2009-01",
    "candidate": "LogisticRegression",
    "outcome": "promoted",
    "reason": "better & more",
    "version": "2",
}


@pytest.fixture
def result() -> dict[str, Any]:
    figures = {
        "rows": 600,
        "roc_auc": 0.7712,
        "average_precision": 0.5,
        "brier": 0.14,
        "mean_monthly_auc": None,
        "lift_at_10": 2.5,
        "profit": 1234.5,
        "retrains": 1,
        "versions": 2,
        "seconds": 3.0,
    }
    months = [month("2009-01", "1", retrain=RETRAIN, roc_auc=None), month("2009-02", "2")]
    static = [month("2009-01", "1"), month("2009-02", "1")]
    return {
        "title": "Bank <Marketing>",
        "unit": "euros",
        "mode": "fast",
        "start": "2009-01",
        "end": "2009-02",
        "label_delay": 0,
        "source": "file",
        "changed": {},
        "policies": {
            "static": {**figures, "retrains": 0, "versions": 1, "months": static},
            "alert": {**figures, "months": months},
        },
    }


def test_the_page_needs_nothing_from_elsewhere(result: dict[str, Any]) -> None:
    text = page(result)
    assert not re.search(r"(src|href)=|url\(|@import|<script|https?://", text)


def test_the_page_shows_figures_retrains_and_versions_with_text_escaped(
    result: dict[str, Any],
) -> None:
    text = page(result)
    for shown in ("0.7712", "1,234", "Bank &lt;Marketing&gt;", "alert: &lt;Prediction drift&gt;"):
        assert shown in text
    assert "better &amp; more" in text
    assert "promoted as 2" in text
    assert "Version 2, LogisticRegression, answers from 2009-02 on" in text


def test_generated_data_and_changed_settings_are_said(result: dict[str, Any]) -> None:
    changed = {**result, "source": "generated", "changed": {"retrain_window_months": "12"}}
    assert "GENERATED" in page(changed)
    assert "retrain_window_months = 12" in page(changed)
    assert "GENERATED" not in page(result)


def test_versions_change_where_the_answering_one_is_another(result: dict[str, Any]) -> None:
    assert version_changes(result["policies"]["alert"]["months"]) == [(1, "2")]
    assert version_changes(result["policies"]["static"]["months"]) == []


def test_both_files_are_written_and_the_json_is_all_there_is(
    result: dict[str, Any], tmp_path: Path
) -> None:
    written = write_report(result, tmp_path / "reports")
    assert sorted(path.name for path in written) == ["replay.html", "replay.json"]
    assert json.loads((tmp_path / "reports" / "replay.json").read_text()) == result
    assert len(list((tmp_path / "reports").iterdir())) == 2


def test_a_chart_is_well_formed_breaks_where_nothing_is_known_and_stays_in_its_frame() -> None:
    drawing = line_chart(
        ["a", "b", "c", "d"],
        [Line("x < y", "alert", [0.4, None, 0.9, 0.8])],
        label="one & all",
        marks=[Mark(2, "3", "version 3")],
        limits={"a guess": 0.5},
    )
    tree = ElementTree.fromstring(drawing)
    (path,) = list(tree.iter("path"))
    assert path.attrib["d"].count("M") == 2
    points = list(tree.iter("circle"))
    assert len(points) == 3
    assert all(0 < float(each.attrib["cy"]) < 300 for each in points)
    assert float(points[0].attrib["cy"]) > float(points[1].attrib["cy"])  # 0.4 lies below 0.9


def test_a_chart_of_one_value_has_an_axis() -> None:
    assert "circle" in line_chart(["a"], [Line("x", "alert", [0.5])], label="one")
