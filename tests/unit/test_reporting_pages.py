"""Pages of reports: whole in themselves, escaped, and true of the numbers that they are given."""

from __future__ import annotations

import re
from datetime import date, datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evidently.legacy.utils import dashboard

from mlops.app.report_list import framed, index_of, matching, no_facts, title_of
from mlops.dataset.card import load_card
from mlops.reporting import pictures
from mlops.reporting.library import list_reports, write_page
from mlops.reporting.months import month_page, signals, without_assets
from mlops.reporting.retrains import retrain_page
from mlops.settings import Settings

CARD = load_card("bank_marketing")
SETTINGS = Settings(_env_file=None)
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
HOSTILE = "<script>alert(1)</script>\"'"


class Tags(HTMLParser):
    """The tags of a page, which must all be closed, and the addresses in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(n: int = 600, shift: float = 0.0, labelled: int | None = None) -> pd.DataFrame:
    random = np.random.default_rng(1)
    score = np.clip(random.beta(2, 8, n) + shift, 0, 1)
    target = (random.random(n) < score).astype(float)
    target[n if labelled is None else labelled :] = np.nan
    return pd.DataFrame({"score": score, "target": target})


def metrics(**values: Any) -> dict[str, Any]:
    return {
        "period": date(2009, 4, 1), "row_count": 600, "prediction_drift": 0.17,
        "prediction_drift_noise": 0.07, "share_drifted_columns": 0.2, "share_missing_values": 0.1,
        "roc_auc": 0.61, "brier": 0.14, "positive_rate": 0.2, "labelled_count": 600,
        "labelled_since": date(2009, 4, 1), "roc_auc_loss": 0.02, "roc_auc_loss_low": -0.03,
        "calibration_gap": 0.01, "calibration_gap_low": -0.02, "calibration_gap_high": 0.04,
        **values,
    }  # fmt: skip


def column(name: str = "balance", **values: Any) -> dict[str, Any]:
    return {
        "column_name": name, "kind": "number", "distance": 0.3, "noise": 0.1, "drifted": True,
        "missing_share": 0.0, "reference_missing_share": 0.0, "missing_more": False,
        "drifted_since": date(2009, 3, 1), "missing_since": None, **values,
    }  # fmt: skip


def month(**values: Any) -> str:
    facts: dict[str, Any] = {
        "metrics": metrics(), "columns": [column()], "alerts": [], **values,
    }  # fmt: skip
    current = facts.pop("current", rows(600, 0.05))
    return month_page(
        CARD, "3", "2009-04", rows(), current, 0.31, "2009-04.evidently.html", SETTINGS, **facts
    )


def retrain(**values: Any) -> dict[str, Any]:
    return {
        "id": "r1", "cause": "alert: Prediction drift", "outcome": "promoted", "reason": "better",
        "champion": "3", "challenger": "4", "champion_score": 0.6, "challenger_score": 0.62,
        "gate": None, "started_at": NOW, "finished_at": NOW, **values,
    }  # fmt: skip


def retrain_report(of: dict[str, Any], **values: Any) -> str:
    facts = {"training": None, "check": None, "stay": None, "months": [], **values}
    return retrain_page(CARD, retrain=of, **facts)


def check_whole(page: str) -> Tags:
    tags = Tags(page)
    assert not tags.names & {"script", "iframe", "object", "embed", "link", "img", "form"}
    assert "default-src 'none'" in page
    assert "http" not in re.sub(r"http-equiv", "", page), "nothing is fetched from anywhere"
    return tags


def test_a_month_is_whole_in_itself_and_draws_what_was_measured() -> None:
    tags = check_whole(month())
    assert "svg" in tags.names
    assert tags.addresses == ["2009-04.evidently.html"]
    for part in ("0.170", "balance", "since 2009-03", "threshold 0.310", "Calibration"):
        assert part in tags.text


def test_what_comes_from_outside_is_text_in_a_page() -> None:
    alert = {"received_at": NOW, "rule": HOSTILE, "status": "firing", "decision": HOSTILE,
             "retrain": HOSTILE}  # fmt: skip
    tags = check_whole(
        month(
            columns=[column(HOSTILE, missing_more=True, missing_since=date(2009, 4, 1))],
            alerts=[alert],
        )
    )
    assert HOSTILE in tags.text
    gate = {"rows": 10, "positive_rate": 0.2, "rule": HOSTILE, "slices": [], "roc_auc": None}
    board = [{"rank": None, "candidate": HOSTILE, "status": "failed", "reason": HOSTILE}]
    page = retrain_report(
        retrain(cause=HOSTILE, reason=HOSTILE, gate=gate),
        training={"window_start": date(2009, 1, 1), "window_end": date(2009, 4, 1),
                  "leaderboard": board},
        check={"findings": [{"check": "x", "severity": "warn", "message": HOSTILE}]},
    )  # fmt: skip
    assert HOSTILE in check_whole(page).text


def test_a_month_without_labels_and_one_of_a_few_rows_have_a_page() -> None:
    empty = dict.fromkeys(metrics(), None) | {
        "period": date(2009, 4, 1), "row_count": 5, "labelled_count": 0,
    }  # fmt: skip
    tags = check_whole(month(metrics=empty, columns=[], current=rows(5, labelled=0)))
    assert "Too few labels" in tags.text
    assert "fewer than 200 rows" in tags.text
    assert "No signal beyond its limit" in tags.text


def test_labels_of_one_answer_draw_no_curve() -> None:
    current = rows(600)
    current["target"] = 0.0
    assert "Too few labels" in check_whole(month(current=current)).text


@pytest.mark.parametrize(
    ("changes", "alarms"),
    [
        ({}, ["Prediction drift"]),
        ({"prediction_drift_noise": 0.2}, []),
        ({"row_count": 199}, []),
        ({"prediction_drift": 0.1}, []),
        ({"share_drifted_columns": 0.6}, ["Prediction drift", "Data drift"]),
        ({"roc_auc_loss": 0.18, "roc_auc_loss_low": 0.01}, ["Prediction drift", "Loss of ROC AUC"]),
        ({"roc_auc_loss": 0.18}, ["Prediction drift"]),
        (
            {"calibration_gap": -0.09, "calibration_gap_low": -0.1, "calibration_gap_high": -0.08},
            ["Prediction drift", "Calibration gap"],
        ),
        ({"roc_auc_loss": 0.18, "roc_auc_loss_low": 0.01, "labelled_count": 50},
         ["Prediction drift"]),
    ],
)  # fmt: skip
def test_signals_say_what_the_rules_say(changes: dict[str, Any], alarms: list[str]) -> None:
    found = signals(metrics(**changes), [column()], SETTINGS)
    assert [signal.name for signal in found if signal.alarm] == alarms


def test_a_column_that_misses_more_is_named() -> None:
    found = signals(
        metrics(),
        [column(missing_more=True, missing_share=0.4, reference_missing_share=0.01)],
        SETTINGS,
    )
    (missing,) = [signal for signal in found if signal.name == "Missing data"]
    assert missing.alarm
    assert missing.found == "balance 40.0%, was 1.0%"


def test_a_retrain_shows_gate_slices_and_months_before_and_after() -> None:
    compared = {"difference": 0.02, "low": 0.01, "high": 0.03, "better_share": 0.99}
    gate = {
        "rule": "better", "rows": 900, "positive_rate": 0.1, "window_start": "2009-03",
        "window_end": "2009-04", "roc_auc": compared, "brier": compared,
        "champion_roc_auc": 0.6, "challenger_roc_auc": 0.62, "champion_brier": 0.1,
        "challenger_brier": 0.09, "held_slices": ["job = student"],
        "slices": [{"name": "job = student", "rows": 300, "roc_auc": compared,
                    "worse_by": ["roc_auc"]}],
    }  # fmt: skip
    months = [
        {"model_version": "3", "period": date(2009, 3, 1), "roc_auc": 0.55, "live": True},
        {"model_version": "4", "period": date(2009, 5, 1), "roc_auc": 0.7, "live": True},
    ]
    stay = {"deployed_at": NOW, "retired_at": None}
    tags = check_whole(retrain_report(retrain(gate=gate), stay=stay, months=months))
    for part in (
        "Version 4 is in production in place of version 3",
        "+0.0200 (+0.0100 to +0.0300)",
        "job = student (300)",
        "2009-05",
        "version 4 serves",
        "2026-01-02 03:04",
    ):
        assert part in tags.text


def test_a_retrain_without_a_comparison_shows_none() -> None:
    gate = {
        "rule": "no comparison", "rows": 900, "positive_rate": 0.1, "window_start": "2009-03",
        "window_end": "2009-04", "roc_auc": None, "brier": None, "champion_roc_auc": None,
        "challenger_roc_auc": 0.62, "champion_brier": None, "challenger_brier": 0.09,
        "held_slices": [], "slices": [],
    }  # fmt: skip
    of = retrain(gate=gate, outcome="kept_champion", champion_score=None)
    said = check_whole(retrain_report(of)).text
    assert "were not compared; the challenger alone, on 900 labelled rows" in said
    assert "on the same" not in said
    assert "challenger better" not in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"champion": None}, "Version 4 is in production"),
        ({"outcome": "kept_champion"}, "Challenger 4 did not pass: version 3 stays"),
        ({"outcome": "kept_champion", "champion": None}, "nothing goes to production"),
        ({"outcome": "failed", "challenger": None}, "The retrain failed: version 3 stays"),
    ],
)
def test_a_retrain_is_headed_by_what_it_came_to(values: dict[str, Any], said: str) -> None:
    assert said in check_whole(retrain_report(retrain(**values))).text


def test_calibration_points_hold_their_share() -> None:
    score = np.repeat([0.1, 0.9], 500)
    target = np.r_[np.repeat([1, 0], [50, 450]), np.repeat([1, 0], [450, 50])]
    points = pictures.calibration_points(target, score, bins=2)
    assert [(round(x, 2), round(share, 2)) for x, share, _, _ in points] == [(0.1, 0.1), (0.9, 0.9)]
    assert all(low < share < high for _, share, low, high in points)


def test_what_all_of_evidentlys_pages_share_lies_beside_them_once(tmp_path) -> None:
    script = Path(dashboard.STATIC_PATH, "index.js").read_text(encoding="utf-8")
    page = f"<p>own</p><script>{script}</script><p>rest</p>"
    small = without_assets(page, tmp_path)
    assert len(small) < 200
    (asset,) = (tmp_path / "assets").iterdir()
    assert f'<script src="../assets/{asset.name}"></script>' in small
    assert asset.read_text(encoding="utf-8") == script
    assert without_assets("<p>another form</p>", tmp_path) == "<p>another form</p>"


def test_a_page_in_the_app_stands_in_a_frame_that_reaches_nothing() -> None:
    shown = framed('<html lang="en"><p class="x">"quoted" & more</p>', "dark")
    assert '<iframe sandbox="" ' in shown
    assert shown.count("<p") == 0, "it cannot break out of its attribute"
    assert "&lt;html lang=&quot;en&quot; data-theme=&quot;dark&quot;&gt;" in shown
    evidently = framed("<p>", "light", scripts=True)
    assert 'sandbox="allow-scripts"' in evidently
    assert "same-origin" not in evidently


def test_the_list_goes_on_without_postgres(tmp_path) -> None:
    write_page(tmp_path / "3" / "2009-03.html", "x")
    write_page(tmp_path / "retrains" / "r1.html", "x")
    reports = list_reports(tmp_path)
    table = index_of(reports, *no_facts())
    assert sorted(table["report"]) == ["month", "retrain"]
    assert [title_of(each) for each in matching(reports, "months", "3", "2009-03")] == [
        "2009-03, version 3"
    ]
    assert matching(reports, "months", "4", "") == []
    assert len(matching(reports, "", "", "")) == 2
