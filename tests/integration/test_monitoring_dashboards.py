"""A panel's SQL on a real Postgres, as the role that panels have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from mlops.database import connect, database_url
from mlops.monitoring import dashboards
from mlops.monitoring.dashboards import (
    DASHBOARDS_FOLDER,
    Dashboard,
    Panel,
    PanelQueryError,
    Span,
    load_dashboard,
    read_annotation,
    read_panel,
    variable_options,
)
from mlops.settings import Settings

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
SPAN = Span(NOON - timedelta(hours=3), NOON)

MakePanel = Callable[..., Panel]


@pytest.fixture
def reader(database: Settings) -> Iterator[Connection]:
    with connect(role="grafana", settings=database) as connection:
        yield connection


@pytest.fixture
def make_panel(tmp_path: Path) -> MakePanel:
    def make(sql: str, form: str = "table") -> Panel:
        return dashboard(tmp_path, sql, form).panels[0]

    return make


def dashboard(folder: Path, sql: str, form: str = "table") -> Dashboard:
    source = {"uid": "mlops"}
    versions = "SELECT 'it''s', 1 UNION ALL SELECT '2', 2 UNION ALL SELECT '2', 3 ORDER BY 2"
    content = {
        "uid": "board",
        "title": "Board",
        "templating": {
            "list": [
                {"name": "version", "type": "query", "datasource": source, "query": versions},
                {
                    "name": "period",
                    "type": "query",
                    "datasource": source,
                    "query": "SELECT v || '!' FROM (VALUES (1, 'it''s'), (2, '3')) AS t (n, v)"
                    " WHERE v IN (${version:sqlstring}) ORDER BY n",
                },
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "New version",
                    "datasource": source,
                    "target": {
                        "rawSql": "SELECT deployed_at AS \"time\", 'v' || model_version AS text"
                        " FROM ops.deployments WHERE $__timeFilter(deployed_at)"
                    },
                }
            ]
        },
        "panels": [
            {
                "id": 1,
                "type": "table",
                "title": "One",
                "gridPos": {"x": 0, "y": 0, "w": 24, "h": 8},
                "datasource": source,
                "targets": [{"refId": "A", "format": form, "rawSql": sql}],
            }
        ],
    }
    path = folder / "board.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_dashboard(path)


def log_predictions(settings: Settings, times: list[datetime]) -> None:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        for number, time in enumerate(times):
            cursor.execute(
                "INSERT INTO serving.predictions (request_id, row, made_at, period, model_version,"
                " features, probability) VALUES (%s, 0, %s, '2026-01-01', '1', '{}', 0.5)",
                (str(number), time),
            )


def test_macros_filter_and_group_by_time_in_utc(
    database: Settings, reader: Connection, make_panel: MakePanel
) -> None:
    at = [timedelta(hours=-4), timedelta(minutes=-90), timedelta(minutes=-61), timedelta(0)]
    log_predictions(database, [NOON + each for each in [*at, timedelta(seconds=1)]])
    panel = make_panel(
        "SELECT $__timeGroup(made_at, '1h') AS \"time\", model_version, count(*) AS value"
        " FROM serving.predictions WHERE $__timeFilter(made_at) GROUP BY 1, 2 ORDER BY 1;\n",
        "time_series",
    )
    with reader.cursor() as cursor:
        cursor.execute("SET timezone = 'Asia/Tokyo'")
    frame = read_panel(reader, panel, {}, SPAN)
    assert list(frame["time"]) == [
        pd.Timestamp("2026-01-02 10:00", tz="UTC"),
        pd.Timestamp("2026-01-02 12:00", tz="UTC"),
    ]
    assert list(frame["value"]) == [2, 1]


def test_values_keep_their_kind_also_where_they_are_missing(
    reader: Connection, make_panel: MakePanel
) -> None:
    panel = make_panel(
        "SELECT * FROM (VALUES (1, 1.5::numeric, 'a', date '2009-03-01', now(), true,"
        " '{\"k\": 1}'::jsonb, 'infinity'::timestamptz),"
        " (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL))"
        " AS t (whole, number, words, day, moment, yes, document, never)"
    )
    frame = read_panel(reader, panel, {}, SPAN)
    kinds = [str(kind) for kind in frame.dtypes]
    utc = "datetime64[ns, UTC]"
    assert kinds == ["int64", "float64", "object", utc, utc, "object", "object", utc]
    assert list(frame["words"]) == ["a", None]
    assert list(frame["yes"]) == [True, None]
    assert frame["document"][0] == '{"k": 1}'
    assert frame["never"].isna().all()
    assert not frame.attrs["cut"]


def test_no_rows_have_their_columns_all_the_same(reader: Connection, make_panel: MakePanel) -> None:
    frame = read_panel(reader, make_panel("SELECT 1 AS a, 'x' AS b WHERE false"), {}, SPAN)
    assert (list(frame.columns), len(frame)) == (["a", "b"], 0)


def test_rows_are_bounded_and_the_frame_says_so(reader: Connection, make_panel: MakePanel) -> None:
    panel = make_panel("SELECT generate_series(1, 100000000) AS n")
    frame = read_panel(reader, panel, {}, SPAN)
    assert (len(frame), frame.attrs["cut"]) == (dashboards.ROW_LIMIT, True)
    assert frame["n"].iloc[-1] == dashboards.ROW_LIMIT


def test_choices_never_become_sql(reader: Connection, make_panel: MakePanel) -> None:
    panel = make_panel("SELECT * FROM unnest(ARRAY[${version:sqlstring}]::text[]) AS v")
    odd = ["it's", "'; DROP TABLE ops.alerts; --", "\\' OR 1=1", "$__timeFilter(x)", "%s", "ü\n"]
    assert list(read_panel(reader, panel, {"version": odd}, SPAN)["v"]) == odd
    found = make_panel("SELECT 1 AS n WHERE '1' IN (${version:sqlstring})")
    assert read_panel(reader, found, {"version": []}, SPAN).empty


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT 1 FROM ops.nothing", 'relation "ops.nothing" does not exist'),
        ("DELETE FROM ops.alerts RETURNING 1", "syntax error"),
        ("SELECT 1; DELETE FROM serving.predictions", "read-only transaction"),
        ("SELECT pg_sleep(20)", "canceling statement due to statement timeout"),
    ],
)
def test_a_query_that_fails_says_why_and_leaves_the_next_one_be(
    database: Settings, reader: Connection, make_panel: MakePanel, sql: str, reason: str
) -> None:
    log_predictions(database, [NOON])
    with reader.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '200ms'")
    with pytest.raises(PanelQueryError, match=reason) as raised:
        read_panel(reader, make_panel(sql), {}, SPAN)
    assert "'One'" in str(raised.value)
    left = make_panel("SELECT count(*) AS n FROM serving.predictions")
    assert list(read_panel(reader, left, {}, SPAN)["n"]) == [1]


def test_a_lost_connection_is_a_failed_query_too(database: Settings, make_panel: MakePanel) -> None:
    lost = psycopg2.connect(database_url(role="grafana", settings=database))
    with connect(settings=database) as owner, owner.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", (lost.info.backend_pid,))
    for _ in range(2):
        with pytest.raises(PanelQueryError, match="Postgres has gone away"):
            read_panel(lost, make_panel("SELECT 1"), {}, SPAN)
    lost.close()


def test_options_come_once_and_in_the_querys_order(reader: Connection, tmp_path: Path) -> None:
    versions, periods = dashboard(tmp_path, "SELECT 1").variables
    assert variable_options(reader, versions) == ["it's", "2"]
    assert variable_options(reader, periods, {"version": ["it's", "3"]}) == ["it's!", "3!"]
    assert variable_options(reader, periods, {"version": []}) == []


def test_marks_are_those_of_the_span(
    database: Settings, reader: Connection, tmp_path: Path
) -> None:
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.deployments (card, model_version, cause, deployed_at, retired_at)"
            " VALUES ('c', '1', 'first', %s, %s), ('c', '2', 'retrain', %s, NULL)",
            (NOON - timedelta(days=9), NOON, NOON - timedelta(hours=1)),
        )
    (annotation,) = dashboard(tmp_path, "SELECT 1").annotations
    marks = read_annotation(reader, annotation, SPAN)
    assert list(marks["text"]) == ["v2"]


@pytest.mark.parametrize("path", sorted(DASHBOARDS_FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_every_panel_on_our_own_tables_answers_on_an_empty_stack(
    reader: Connection, path: Path
) -> None:
    board = load_dashboard(path)
    choices: dict[str, list[str]] = {}
    for variable in board.variables:
        choices[variable.name] = variable_options(reader, variable, choices)
    for panel in board.panels:
        if panel.database == "mlops":
            assert len(read_panel(reader, panel, choices, SPAN).columns), panel.title
