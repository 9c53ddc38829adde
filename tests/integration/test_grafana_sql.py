"""Every query of Grafana's files, run as role grafana on the real schemas: with rows and without.

Filled in and read by the code that the app draws by, so what is tested here is what is shown there.
"""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pytest

from mlops.alerting.rules import load_provisioning
from mlops.database import connect
from mlops.monitoring.dashboards import (
    DASHBOARDS_FOLDER,
    Dashboard,
    Panel,
    Span,
    load_dashboard,
    read_annotation,
    read_panel,
    variable_options,
)
from mlops.settings import Settings
from tests.fixtures.grafana import CHAMPION, PanelDatabases

pytestmark = pytest.mark.timeout(240)

DASHBOARDS = [load_dashboard(path) for path in sorted(DASHBOARDS_FOLDER.glob("*.json"))]
ASKING = [
    pytest.param(dashboard, panel, id=f"{dashboard.uid}-{panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    if panel.sql is not None
]
MONITORING = next(each for each in DASHBOARDS if each.uid == "model-monitoring")
each_panel = pytest.mark.parametrize(("dashboard", "panel"), ASKING)
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)


def span() -> Span:
    """Return what the dashboards show at first."""
    return Span.last(timedelta(hours=24))


def options(dashboard: Dashboard, settings: Settings) -> dict[str, list[str]]:
    with connect("mlops", "grafana", settings) as connection:
        return {each.name: variable_options(connection, each) for each in dashboard.variables}


def read(
    panel: Panel, settings: Settings, dashboard: Dashboard = MONITORING, **chosen: list[str]
) -> pd.DataFrame:
    """Return the panel's rows; of each variable all is chosen, unless told otherwise."""
    assert panel.database is not None
    choices = {**options(dashboard, settings), **chosen}
    with connect(panel.database, "grafana", settings) as connection:
        return read_panel(connection, panel, choices, span())


def rows(settings: Settings, title: str, **chosen: list[str]) -> pd.DataFrame:
    """Return the rows of the panel `title` of Model monitoring, nulls as None."""
    (panel,) = [each for each in MONITORING.panels if each.title == title]
    frame = read(panel, settings, **chosen)
    return frame.astype(object).where(frame.notna(), None)


def is_number(column: pd.Series) -> bool:  # type: ignore[type-arg]
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


# --- all queries ---


@each_panel
def test_a_panel_gets_the_columns_that_its_type_needs(
    panel_databases: PanelDatabases, dashboard: Dashboard, panel: Panel
) -> None:
    frame = read(panel, panel_databases.filled, dashboard)
    assert len(frame), "no rows, so nothing is shown by this test"
    assert not frame.attrs["cut"]
    assert frame.columns.is_unique
    if panel.type == "barchart":
        assert frame.columns[0] == panel.options["xField"]
        assert all(isinstance(value, str) and value for value in frame.iloc[:, 0])
        assert frame.iloc[:, 0].is_unique
        assert all(is_number(frame[name]) for name in frame.columns[1:])
    elif panel.type == "timeseries":
        assert list(frame.columns) == ["time", frame.columns[1], "value"]
        assert isinstance(frame["time"].dtype, pd.DatetimeTZDtype)
        assert frame["time"].is_monotonic_increasing
        assert is_number(frame["value"])
        assert all(isinstance(value, str) for value in frame.iloc[:, 1])
        assert f"${{__field.labels.{frame.columns[1]}}}" in (panel.style.display_name or "")
    elif panel.type == "stat":
        assert len(frame) == 1


@each_panel
def test_an_override_names_a_column_that_the_query_returns(
    panel_databases: PanelDatabases, dashboard: Dashboard, panel: Panel
) -> None:
    columns = set(read(panel, panel_databases.filled, dashboard).columns)
    named = {each.matcher.options for each in panel._overrides if each.matcher.id == "byName"}
    assert named <= columns


@each_panel
def test_a_value_of_few_kinds_has_a_colour_for_each(
    panel_databases: PanelDatabases, dashboard: Dashboard, panel: Panel
) -> None:
    frame = read(panel, panel_databases.filled, dashboard)
    for name in frame.columns:
        style = panel.field(name)
        if style.mappings:
            unknown = [value for value in frame[name].dropna() if style.mapped(value) is None]
            assert unknown == []


@each_panel
def test_a_panel_of_the_first_day_is_empty_and_no_error(
    panel_databases: PanelDatabases, dashboard: Dashboard, panel: Panel
) -> None:
    frame = read(panel, panel_databases.empty, dashboard)
    if panel.type == "stat" and len(frame):
        assert [value for value in frame.iloc[0] if value and pd.notna(value)] == []
    else:
        assert frame.empty


@each_dashboard
def test_marks_of_new_versions_are_read(
    panel_databases: PanelDatabases, dashboard: Dashboard
) -> None:
    for annotation in dashboard.annotations:
        with connect(annotation.database, "grafana", panel_databases.filled) as connection:
            marks = read_annotation(connection, annotation, span())
        assert [text.partition(" in ")[0] for text in marks["text"]] == [
            *("Version 2", "Version 9", "Version 10")
        ]
        assert marks["time"].is_monotonic_increasing
        with connect(annotation.database, "grafana", panel_databases.empty) as connection:
            assert read_annotation(connection, annotation, span()).empty


def test_variables_offer_the_newest_first_and_never_nothing(
    panel_databases: PanelDatabases,
) -> None:
    assert options(MONITORING, panel_databases.filled) == {
        "version": ["10", "9", "2"],
        "period": ["2009-08", "2009-07", "2009-06", "2009-05", "2009-04", "2009-03"],
    }
    # Without an option, IN (${version:sqlstring}) would be a syntax error in Grafana.
    assert options(MONITORING, panel_databases.empty) == {"version": ["-"], "period": ["-"]}


def test_a_rules_query_returns_a_time_one_number_and_labels(
    panel_databases: PanelDatabases,
) -> None:
    environment = {"MLOPS_LISTENER_URL": "http://127.0.0.1:1", "MLOPS_WEBHOOK_TOKEN": "x"}
    for rule in load_provisioning(environment).rules:
        with connect("mlops", "grafana", panel_databases.empty) as connection:
            assert _run(connection, rule.sql).empty
        with connect("mlops", "grafana", panel_databases.filled) as connection:
            frame = _run(connection, rule.sql)
        assert len(frame)
        assert "time" in frame
        assert "metric" not in frame, "Grafana takes a column of that name for the series' name"
        assert frame["time"].is_monotonic_increasing
        others = [name for name in frame.columns if name != "time"]
        assert [name for name in others if is_number(frame[name])] == ["value"]
        labels = [name for name in others if name != "value"]
        assert all(isinstance(value, str) for name in labels for value in frame[name])
        assert not frame.duplicated(labels).any(), "one alert per set of labels"


def _run(connection: object, sql: str) -> pd.DataFrame:
    with connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(sql)
        return pd.DataFrame(cursor.fetchall(), columns=[each.name for each in cursor.description])


# --- what single panels say ---


def test_months_stand_in_order_of_time_then_of_version(panel_databases: PanelDatabases) -> None:
    frame = rows(panel_databases.filled, "Prediction drift per month")
    assert list(frame["Month"]) == [
        *("2009-03 · v2", "2009-04 · v9", "2009-05 · v9", "2009-06 · v9"),
        *("2009-06 · v10", "2009-07 · v10", "2009-08 · v10"),
    ]
    assert list(frame["Prediction drift"]) == [0.593, 0.078, 0.869, 0.134, 0.121, 0.064, None]


@pytest.mark.parametrize(
    "title",
    [
        "Prediction drift per month",
        "Drifted columns per month",
        "Missing values per month",
        "Rows per month",
        "AUC and positive rate, once labels are known",
        "Expected and actual positives",
    ],
)
def test_a_choice_of_version_and_month_counts(panel_databases: PanelDatabases, title: str) -> None:
    chosen = {"version": ["9"], "period": ["2009-05", "2009-07"]}
    assert list(rows(panel_databases.filled, title, **chosen)["Month"]) == ["2009-05 · v9"]


def test_a_new_version_is_marked_on_its_first_month_only(panel_databases: PanelDatabases) -> None:
    title = "AUC and positive rate, once labels are known"
    frame = rows(panel_databases.filled, title)
    assert dict(zip(frame["Month"], frame["New version"], strict=True)) == {
        "2009-03 · v2": None,  # the first of all replaced nothing
        "2009-04 · v9": 1,
        "2009-05 · v9": None,
        "2009-06 · v9": None,
        "2009-06 · v10": 1,
    }
    # The mark belongs to the month, and not to whichever month is the first that is chosen.
    assert list(rows(panel_databases.filled, title, period=["2009-05"])["New version"]) == [None]
    assert list(frame["AUC at validation"]) == [0.65, 0.76, 0.76, 0.76, 0.7]


def test_expected_and_actual_are_shares_of_the_labelled_rows(
    panel_databases: PanelDatabases,
) -> None:
    frame = rows(panel_databases.filled, "Expected and actual positives")
    assert list(frame["Month"]) == ["2009-03 · v2", "2009-05 · v9"], "2009-07 has no labels"
    for name in ("Expected (mean score)", "Actual"):
        assert all(0 < share < 1 for share in frame[name])


def test_the_first_row_is_about_the_version_in_production(panel_databases: PanelDatabases) -> None:
    filled = panel_databases.filled
    production = rows(filled, "In production").iloc[0]
    assert production["Version"] == f"v{CHAMPION}"
    # 2009-08 is younger, and too small to be judged.
    drift = rows(filled, "Drift, latest month").iloc[0]
    assert (drift["Month"], drift["Drift"]) == ("2009-07", 0.064)
    # 2009-07 is younger, and has no labels.
    auc = rows(filled, "AUC, latest labelled month").iloc[0]
    assert (auc["Month"], auc["AUC"]) == ("2009-06", 0.66)
    assert auc["Against validation"] == pytest.approx(0.66 - 0.70)
    assert rows(filled, "Last retrain").iloc[0]["Outcome"] == "running"


def test_the_latest_training_is_shown_by_candidate_the_best_first(
    panel_databases: PanelDatabases,
) -> None:
    frame = rows(panel_databases.filled, "Model performance of the latest training")
    assert frame.to_numpy().tolist() == [
        ["Linear", 0.7, 0.65, 0.86, 0.87],
        ["Forest", 0.99, 0.61, 0.95, 0.88],
        ["Broken (failed)", None, None, None, None],
        ["Constant", 0.5, None, 0.9, 0.9],  # NaN is no score
    ]


def test_pipeline_runs_are_those_of_the_chosen_time(panel_databases: PanelDatabases) -> None:
    frame = rows(panel_databases.filled, "Pipeline runs")
    assert list(frame["Pipeline"]) == ["monitor", "retrain", "deploy", "train"]
    assert list(frame["Status"]) == ["initial", "running", "failed", "completed"]
    durations = dict(zip(frame["Pipeline"], frame["Duration"], strict=True))
    assert durations["train"] == pytest.approx(360, abs=1)
    assert durations["retrain"] > 300, "a run under way lasts until now"
    assert durations["deploy"] is None, "one that failed without an end has no length"


def test_alerts_say_what_became_of_them(panel_databases: PanelDatabases) -> None:
    frame = rows(panel_databases.filled, "Alerts received")
    said = frame[["Rule", "Version", "Month", "State", "Decision", "Retrain"]].to_numpy().tolist()
    assert ["Prediction drift", "v2", "2009-03", "resolved", "retrain", "r1"] in said
    assert ["Prediction drift", "v10", "2009-06", "firing", "waits", None] in said
    assert ["TestAlert", None, None, "firing", "ignored", None] in said
    assert ["Missing data", "v10", "2009-06", "firing", "noted", None] in said
    assert "contact" in set(frame["About"])


def test_columns_that_are_off_say_since_when(panel_databases: PanelDatabases) -> None:
    frame = rows(panel_databases.filled, "Columns that are off")
    said = frame[["Month", "Version", "Column", "Drifted since", "Missing since"]]
    assert said.to_numpy().tolist() == [
        ["2009-07", "v10", "contact", "2009-07", "2009-06"],
        ["2009-07", "v10", "age", "2009-06", None],
        ["2009-06", "v10", "age", "2009-06", None],
        ["2009-06", "v10", "contact", None, "2009-06"],
        ["2009-06", "v9", "age", "2009-06", None],  # 2009-05 had ended the run of 2009-04
        ["2009-04", "v9", "age", "2009-04", None],
    ]


def test_a_verdict_is_that_of_the_rule(panel_databases: PanelDatabases) -> None:
    frame = rows(panel_databases.filled, "How sure is that?")
    verdicts = {(row["Month"], row["Version"]): row["Verdict"] for _, row in frame.iterrows()}
    assert verdicts == {
        ("2009-06", "v10"): "promises too few",
        ("2009-06", "v9"): "too few labels",
        ("2009-05", "v9"): "ranks worse",
        ("2009-03", "v2"): "as promised",
    }
    (rule,) = [
        each
        for each in load_provisioning(
            {"MLOPS_LISTENER_URL": "http://127.0.0.1:1", "MLOPS_WEBHOOK_TOKEN": "x"}
        ).rules
        if each.uid == "performance_loss"
    ]
    with connect("mlops", "grafana", panel_databases.filled) as connection:
        told = _run(connection, rule.sql)
    told = told[told["value"] > rule.threshold]
    assert told[["period", "measure"]].to_numpy().tolist() == [["2009-06", "calibration"]]


def test_scores_are_shares_of_each_group(panel_databases: PanelDatabases) -> None:
    (panel,) = [each for each in DASHBOARDS[1].panels if each.title == "Distribution of scores"]
    frame = read(panel, panel_databases.filled, DASHBOARDS[1])
    assert len(frame) == 10
    assert frame["In production"].sum() == pytest.approx(1)
    assert frame["Earlier versions"].sum() == pytest.approx(1)
