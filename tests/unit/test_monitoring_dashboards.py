"""What a dashboard file may say, and how variables and macros are filled in."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.monitoring.dashboards import (
    Dashboard,
    DashboardError,
    Panel,
    Span,
    load_dashboard,
    panel_sql,
)

SPAN = Span(
    datetime(2026, 1, 1, tzinfo=timezone.utc),
    datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))),
)


def panel(number: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "id": number,
        "type": "table",
        "title": f"Panel {number}",
        "gridPos": {"x": 0, "y": number, "w": 12, "h": 8},
        "datasource": {"type": "grafana-postgresql-datasource", "uid": "mlops"},
        "targets": [{"refId": "A", "format": "table", "rawSql": "SELECT 1"}],
        **values,
    }


def variable(name: str = "version", **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"uid": "mlops"},
        "query": "SELECT '1'",
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        **values,
    }


def load(folder: Path, *panels: dict[str, Any], **values: Any) -> Dashboard:
    path = folder / "board.json"
    content = {"uid": "board", "title": "Board", "panels": list(panels), **values}
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_dashboard(path)


def with_sql(folder: Path, sql: str) -> Panel:
    target = {"refId": "A", "format": "table", "rawSql": sql}
    dashboard = load(
        folder,
        panel(targets=[target]),
        templating={"list": [variable(), variable("period")]},
    )
    return dashboard.panels[0]


def test_panels_are_read_in_the_order_of_their_places_under_their_rows(tmp_path: Path) -> None:
    def at(number: int, x: int, y: int, **values: Any) -> dict[str, Any]:
        return panel(number, gridPos={"x": x, "y": y, "w": 6, "h": 4}, **values)

    dashboard = load(
        tmp_path,
        at(
            5, 0, 12, type="row", title="Later", collapsed=True, panels=[at(7, 6, 13), at(6, 0, 13)]
        ),
        at(4, 6, 6),
        at(3, 0, 6),
        at(2, 0, 5, type="row", title="Now"),
        at(1, 0, 0),
    )
    told = [(section.title, [each.id for each in section.panels]) for section in dashboard.sections]
    assert told == [("", [1]), ("Now", [3, 4]), ("Later", [6, 7])]
    assert dashboard.sections[-1].collapsed


def test_a_panel_of_another_type_is_kept_by_name(tmp_path: Path) -> None:
    dashboard = load(tmp_path, panel(type="geomap", title="Where", targets=[{"anything": 1}]))
    (unknown,) = dashboard.panels
    assert (unknown.known, unknown.type, unknown.title, unknown.sql) == (
        False,
        "geomap",
        "Where",
        None,
    )


def test_an_override_counts_for_its_field_only(tmp_path: Path) -> None:
    overrides = [
        {
            "matcher": {"id": "byName", "options": "drift"},
            "properties": [
                {"id": "displayName", "value": "Drift"},
                {"id": "custom.hidden", "value": True},
                {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
            ],
        },
        {
            "matcher": {"id": "byRegexp", "options": "/^share_/"},
            "properties": [{"id": "unit", "value": "percentunit"}],
        },
    ]
    config = {"defaults": {"unit": "short", "decimals": 2}, "overrides": overrides}
    (one,) = load(tmp_path, panel(fieldConfig=config)).panels
    drift = one.field("drift")
    assert (drift.display_name, drift.hidden, drift.unit, drift.decimals) == (
        "Drift",
        True,
        "short",
        2,
    )
    assert drift.color.fixed_color == "red"
    assert one.field("share_missing").unit == "percentunit"
    assert one.field("other") == one.style


def test_values_are_mapped_by_value_range_pattern_and_kind(tmp_path: Path) -> None:
    mappings = [
        {"type": "value", "options": {"failed": {"text": "Failed", "color": "red"}, "3": {}}},
        {"type": "range", "options": {"from": 5, "to": None, "result": {"text": "many"}}},
        {"type": "regex", "options": {"pattern": "/^kept/", "result": {"color": "blue"}}},
        {"type": "special", "options": {"match": "null+nan", "result": {"text": "never"}}},
    ]
    (one,) = load(tmp_path, panel(fieldConfig={"defaults": {"mappings": mappings}})).panels

    def text(value: Any) -> str | None:
        found = one.style.mapped(value)
        return found.text or found.color if found else None

    found = [text(value) for value in ("failed", 7.5, 4, True, "kept_champion", None, float("nan"))]
    assert found == ["Failed", "many", None, None, "blue", "never", "never"]
    assert one.style.mapped(3.0) is not None


def test_thresholds_count_from_their_value_on(tmp_path: Path) -> None:
    steps = [
        {"value": None, "color": "green"},
        {"value": 0.1, "color": "orange"},
        {"value": 0.5, "color": "red"},
    ]
    config = {"defaults": {"thresholds": {"mode": "absolute", "steps": steps}}}
    thresholds = load(tmp_path, panel(fieldConfig=config)).panels[0].style.thresholds
    colours = [thresholds.color_of(value) for value in (-1, 0.0999, 0.1, 0.7)]
    assert colours == ["green", "green", "orange", "red"]
    assert [step.value for step in thresholds.limits] == [0.1, 0.5]


def test_choices_and_macros_are_filled_in_as_grafana_does(tmp_path: Path) -> None:
    sql = (
        "SELECT $__timeGroup(made_at, '1h') AS \"time\", count(*) FROM t"
        " WHERE $__timeFilter(t.made_at) AND v IN (${version:sqlstring}) AND p = ANY(ARRAY["
        "${period:sqlstring}]::text[]) GROUP BY 1"
    )
    choices = {"version": ["1", "o'clock"], "period": []}
    assert panel_sql(with_sql(tmp_path, sql), choices, SPAN) == (
        'SELECT floor(extract(epoch from made_at)/3600)*3600 AS "time", count(*) FROM t'
        " WHERE t.made_at BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T12:00:00Z'"
        " AND v IN ('1','o''clock') AND p = ANY(ARRAY[NULL]::text[]) GROUP BY 1"
    )


def test_a_time_group_before_a_comma_names_its_column(tmp_path: Path) -> None:
    sql = panel_sql(with_sql(tmp_path, "SELECT $__timeGroup(t, '10m'), 1"), {}, SPAN)
    assert sql == 'SELECT floor(extract(epoch from t)/600)*600 AS "time", 1'


@given(values=st.lists(st.text(), min_size=1, max_size=3))
def test_a_choice_is_data_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    one = with_sql(tmp_path_factory.getbasetemp(), "SELECT ${version:sqlstring}")
    filled = panel_sql(one, {"version": values}, SPAN).removeprefix("SELECT ")
    parsed, rest = [], filled
    while rest:
        end = 1
        while rest[end] != "'" or rest[end + 1 : end + 2] == "'":
            end += 2 if rest[end] == "'" else 1
        parsed.append(rest[1:end].replace("''", "'"))
        rest = rest[end + 1 :].removeprefix(",")
    assert parsed == values


def test_a_choice_is_not_looked_into_for_macros(tmp_path: Path) -> None:
    one = with_sql(tmp_path, "SELECT ${version:sqlstring}")
    choices = {"version": ["$__timeFilter(x)", "${period:sqlstring}"]}
    assert panel_sql(one, choices, SPAN) == "SELECT '$__timeFilter(x)','${period:sqlstring}'"


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        (
            "SELECT ${versions:sqlstring}",
            "${versions:sqlstring}: no variable 'versions'; there are: version, period",
        ),
        ("SELECT ${version}", "${version}: write ${version:sqlstring}"),
        ("SELECT ${version:raw}", "${version:raw}: write ${version:sqlstring}"),
        ("SELECT $version", "$version: known are"),
        ("SELECT [[version]]", "[[version]]: write ${version:sqlstring}"),
        ("SELECT $__interval", "$__interval: known are"),
        ("SELECT $__unixEpochFilter(t)", "$__unixEpochFilter(t): known are"),
        ("SELECT $__timeGroup(t, '1h', 0)", "$__timeGroup(t, '1h', 0): known are"),
        ("SELECT $__timeGroup(t, $__interval)", "$__timeGroup(t, $__interval): an interval"),
        ("SELECT $__timeFilter()", "$__timeFilter(): known are"),
    ],
)
def test_what_cannot_be_filled_in_is_named_when_the_file_is_read(
    tmp_path: Path, sql: str, named: str
) -> None:
    with pytest.raises(DashboardError) as raised:
        with_sql(tmp_path, sql)
    assert f"board.json: panel 1 'Panel 1': SQL: {named}" in str(raised.value)


BAD_PANELS: list[tuple[dict[str, Any], str]] = [
    ({"targets": []}, "targets: expected one, found 0"),
    ({"targets": [{"refId": "A", "format": "logs", "rawSql": "SELECT 1"}]}, "targets.0: format"),
    ({"targets": [{"refId": "A", "format": "table"}]}, "targets.0: rawSql: Field required"),
    ({"datasource": {"uid": "other"}}, "datasource.uid: found 'other', known are mlops, mlflow"),
    ({"datasource": None}, "datasource.uid: found None"),
    ({"transformations": [{"id": "organize"}]}, "transformations: "),
    ({"repeat": "version"}, "repeat: "),
    ({"timeFrom": "1h"}, "timeFrom: "),
    ({"gridPos": {"x": 0, "y": 0, "w": 12}}, "gridPos.h: Field required"),
    (
        {"fieldConfig": {"defaults": {"thresholds": {"mode": "percentage", "steps": []}}}},
        "fieldConfig.defaults: thresholds.mode",
    ),
    (
        {"fieldConfig": {"overrides": [{"matcher": {"id": "byType", "options": "x"}}]}},
        "fieldConfig: overrides.0.matcher.id",
    ),
    (
        {
            "fieldConfig": {
                "overrides": [
                    {
                        "matcher": {"id": "byRegexp", "options": "/(/"},
                        "properties": [{"id": "unit", "value": "s"}],
                    }
                ]
            }
        },
        "fieldConfig.overrides.0: matcher.options: '/(/'",
    ),
    (
        {
            "fieldConfig": {
                "overrides": [
                    {
                        "matcher": {"id": "byName", "options": "x"},
                        "properties": [{"id": "decimals", "value": "two"}],
                    }
                ]
            }
        },
        "fieldConfig.overrides.0: decimals",
    ),
]


@pytest.mark.parametrize(("values", "named"), BAD_PANELS)
def test_errors_name_file_panel_and_key(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    with pytest.raises(DashboardError) as raised:
        load(tmp_path, panel(**deepcopy(values)))
    assert "board.json: panel 1 'Panel 1': " in str(raised.value)
    assert named in str(raised.value)


def test_two_panels_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DashboardError, match="panel 1 'Twin': id: stands already at 'Panel 1'"):
        load(tmp_path, panel(1), panel(1, title="Twin"))


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DashboardError, match=r"board\.json: cannot be read"):
        load_dashboard(path)
    with pytest.raises(DashboardError, match=r"none\.json: cannot be read"):
        load_dashboard(tmp_path / "none.json")


def test_a_variable_may_name_those_before_it_only(tmp_path: Path) -> None:
    chained = variable("period", query="SELECT 1 WHERE v IN (${version:sqlstring})")
    dashboard = load(tmp_path, templating={"list": [variable(), chained]})
    assert [each.name for each in dashboard.variables] == ["version", "period"]
    with pytest.raises(DashboardError, match=r"variable 'period': SQL: .*no variable 'version'"):
        load(tmp_path, templating={"list": [chained, variable()]})


def test_what_is_chosen_at_first(tmp_path: Path) -> None:
    several, one, named = load(
        tmp_path,
        templating={
            "list": [
                variable("several"),
                variable("one", includeAll=False, multi=False, current={}),
                variable("named", current={"text": "2", "value": "2"}),
            ]
        },
    ).variables
    assert several.default(["1", "2"]) == ["1", "2"]
    assert one.default(["1", "2"]) == ["1"]
    assert named.default(["1", "2"]) == ["2"]
    assert named.default(["1", "3"]) == ["1", "3"]
    assert one.default([]) == []


def test_marks_over_time_are_read_and_grafanas_own_are_not(tmp_path: Path) -> None:
    built_in = {
        "name": "Annotations & Alerts",
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
    }
    versions = {
        "name": "Versions",
        "enable": True,
        "iconColor": "purple",
        "datasource": {"uid": "mlops"},
        "target": {"rawSql": "SELECT deployed_at AS time FROM ops.deployments", "format": "table"},
    }
    (mark,) = load(tmp_path, annotations={"list": [built_in, versions]}).annotations
    assert (mark.name, mark.color, mark.database) == ("Versions", "purple", "mlops")
