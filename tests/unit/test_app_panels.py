"""What a panel looks like: places, units, colours, cards, bars, lines and cells."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlops.app import panels
from mlops.app.charts import DARK, LIGHT
from mlops.monitoring.dashboards import FieldStyle, Panel, load_dashboard

NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def board(folder: Path, *parts: dict[str, Any]) -> list[Panel]:
    """Return panels as a file has them; each part is what differs from a plain table."""
    full = [
        {
            "id": number,
            "type": "table",
            "title": f"Panel {number}",
            "gridPos": {"x": 0, "y": number * 8, "w": 24, "h": 8},
            "datasource": {"uid": "mlops"},
            "targets": [{"refId": "A", "rawSql": "SELECT 1"}],
            **part,
        }
        for number, part in enumerate(parts, start=1)
    ]
    path = folder / "board.json"
    path.write_text(json.dumps({"uid": "b", "title": "B", "panels": full}), encoding="utf-8")
    return load_dashboard(path).panels


def one(folder: Path, kind: str, options: Any = None, config: Any = None) -> Panel:
    part = {"type": kind, "options": options or {}, "fieldConfig": config or {}}
    return board(folder, part)[0]


def override(column: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": name, "value": value} for name, value in properties.items()],
    }


def steps(*values: tuple[float | None, str]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in values]}


def test_panels_stand_side_by_side_as_their_places_say(tmp_path: Path) -> None:
    def at(x: int, y: int, w: int, h: int) -> dict[str, Any]:
        return {"gridPos": {"x": x, "y": y, "w": w, "h": h}}

    found = panels.bands(
        board(
            tmp_path,
            at(0, 0, 24, 4),
            at(8, 4, 16, 8),  # beside two that stand above one another
            at(0, 4, 8, 4),
            at(0, 8, 8, 4),
            at(0, 12, 12, 4),
            at(12, 12, 12, 4),
        )
    )
    told = [[(cell.width, [each.id for each in cell.panels]) for cell in band] for band in found]
    assert told == [[(24, [1])], [(8, [3, 4]), (16, [2])], [(12, [5]), (12, [6])]]
    assert panels.bands([]) == []


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.1234, "percentunit", None, "12.3 %"),
        (0.5, "percentunit", 0, "50 %"),
        (12.5, "percent", None, "12.5 %"),
        (1234567, "short", None, "1.23 Mil"),
        (27729, "short", 0, "27,729"),
        (0.00012, "none", None, "0.0001"),
        (1234.5, "none", 2, "1,234.50"),
        (12.84, "s", 1, "12.8 s"),
        (0.0042, "s", None, "4 ms"),
        (3725, "s", None, "1 h 2 min"),
        (86_400, "s", None, "1 d"),
        (59.9999, "s", 0, "60 s"),
        (119.9, "s", None, "2 min"),
        (7199, "s", None, "2 h"),
        (1500, "ms", None, "1.50 s"),
        (2048, "bytes", None, "2 KiB"),
        (3, "widgets", None, "3 widgets"),
        (3, "suffix: months", None, "3 months"),
        (1, "bool_yes_no", None, "Yes"),
        ("as it is", "percentunit", None, "as it is"),
        (True, None, None, "true"),
        (None, "s", None, "-"),
        (float("nan"), "s", None, "-"),
        (pd.NaT, "none", None, "-"),
        (NOW, None, None, "2026-01-02 12:00"),
        (datetime(2009, 3, 1, tzinfo=timezone.utc), None, None, "2009-03-01"),
        (NOW - timedelta(minutes=95), "dateTimeFromNow", None, "1 h ago"),
        (NOW + timedelta(seconds=30), "dateTimeFromNow", None, "in 30 s"),
        (NOW, "dateTimeFromNow", None, "now"),
        (NOW.timestamp() * 1000, "dateTimeAsIso", None, "2026-01-02 12:00"),
    ],
)
def test_values_are_written_in_their_unit(
    value: Any, unit: str | None, decimals: int | None, text: str
) -> None:
    assert panels.formatted(value, FieldStyle(unit=unit, decimals=decimals), NOW) == text


def test_nothing_is_written_as_the_file_says() -> None:
    assert panels.formatted(None, FieldStyle(no_value="none yet")) == "none yet"


def test_colours_by_name_are_toned_to_the_background() -> None:
    assert panels.color("red", LIGHT) != panels.color("red", DARK)
    shades = [panels.color(f"{shade}blue", LIGHT) for shade in ("", "light-", "dark-")]
    assert len(set(shades)) == 3
    assert shades[0] == LIGHT.accent
    assert panels.color("#8e99a8", DARK) == "#8e99a8"
    assert panels.color("transparent", LIGHT) is None
    assert panels.color("mauve", LIGHT) == LIGHT.muted


def test_a_card_has_its_reduced_value_its_unit_and_its_thresholds_colour(tmp_path: Path) -> None:
    config = {
        "defaults": {
            "unit": "none",
            "decimals": 3,
            "color": {"mode": "fixed", "fixedColor": "text"},
            "thresholds": steps((None, "green"), (0.1, "red")),
        },
        "overrides": [override("Drift", color={"mode": "thresholds"})],
    }
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "/.*/"}, "colorMode": "value"}
    frame = pd.DataFrame({"Month": ["2009-03", "2009-04"], "Drift": [0.05, 0.23]})
    month, drift = panels.cards(one(tmp_path, "stat", options, config), frame, LIGHT)
    assert (month.name, month.text, month.color) == (
        "Month",
        "2009-04",
        panels.color("text", LIGHT),
    )
    assert (drift.name, drift.text, drift.color) == ("Drift", "0.230", panels.color("red", LIGHT))


def test_without_a_choice_of_fields_a_card_shows_numbers_by_their_threshold(tmp_path: Path) -> None:
    config = {"defaults": {"thresholds": steps((None, "green"), (2, "red"))}}
    frame = pd.DataFrame({"name": ["a"], "n": [2]})
    (card,) = panels.cards(one(tmp_path, "stat", None, config), frame, LIGHT)
    assert (card.name, card.text, card.color) == ("", "2", panels.color("red", LIGHT))


def test_every_row_is_a_card_where_the_file_says_so(tmp_path: Path) -> None:
    options = {"reduceOptions": {"values": True, "fields": ""}}
    frame = pd.DataFrame({"stage": ["production", "staging"], "version": [6, 5]})
    cards = panels.cards(one(tmp_path, "stat", options), frame, LIGHT)
    assert [(card.name, card.text) for card in cards] == [("production", "6"), ("staging", "5")]


def test_a_calculation_that_is_not_known_is_named(tmp_path: Path) -> None:
    panel = one(tmp_path, "stat", {"reduceOptions": {"calcs": ["variance"]}})
    with pytest.raises(panels.PanelError, match="'variance'"):
        panels.cards(panel, pd.DataFrame({"n": [1]}), LIGHT)


@pytest.mark.parametrize(
    ("calculation", "value"),
    [("last", None), ("lastNotNull", 3), ("first", 1), ("max", 3), ("mean", 2), ("count", 3)],
)
def test_values_are_reduced_as_grafana_does(calculation: str, value: float | None) -> None:
    found = panels.reduced(pd.Series([1.0, 3.0, None]), calculation)
    assert found == value or (value is None and found != found)


def months() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Month": ["2009-03 · v1", "2009-04 · v1", "2009-04 · v6"],
            "New version": [None, None, 1.0],
            "Drift": [0.59, 0.08, None],
            "Share": [0.2, 0.3, 0.4],
        }
    )


def drift_panel(folder: Path, **defaults: Any) -> Panel:
    config = {
        "defaults": {
            "min": 0,
            "decimals": 2,
            "thresholds": steps((None, "green"), (0.1, "red"), (0.9, "purple")),
            "custom": {"thresholdsStyle": {"mode": "dashed"}, "axisLabel": "deviations"},
            **defaults,
        },
        "overrides": [
            override(
                "New version",
                **{
                    "custom.axisPlacement": "hidden",
                    "custom.fillOpacity": 30,
                    "custom.thresholdsStyle": {"mode": "off"},
                },
            ),
            override("Drift", color={"mode": "fixed", "fixedColor": "blue"}, displayName="Moved"),
            override(
                "Share",
                unit="percentunit",
                decimals=0,
                **{"custom.axisPlacement": "right", "custom.thresholdsStyle": {"mode": "off"}},
            ),
        ],
    }
    return one(folder, "barchart", {"xField": "Month", "showValue": "never"}, config)


def test_thresholds_are_dashed_lines_that_are_in_sight(tmp_path: Path) -> None:
    figure = panels.bars(drift_panel(tmp_path), months(), LIGHT)
    lines = [(shape.y0, shape.line.dash, shape.line.color) for shape in figure.layout.shapes]
    assert lines == [
        (0.1, "dash", panels.color("red", LIGHT)),
        (0.9, "dash", panels.color("purple", LIGHT)),
    ]
    assert [note.text for note in figure.layout.annotations] == ["0.10", "0.90"]
    low, high = figure.layout.yaxis.range
    assert low == 0
    assert high > 0.9
    assert figure.layout.yaxis.title.text == "deviations"
    solid = panels.bars(
        drift_panel(tmp_path, custom={"thresholdsStyle": {"mode": "line"}}), months(), LIGHT
    )
    assert {shape.line.dash for shape in solid.layout.shapes} == {"solid"}


def test_bars_have_their_names_units_and_axes(tmp_path: Path) -> None:
    figure = panels.bars(drift_panel(tmp_path), months(), LIGHT)
    mark, drift, share = figure.data
    assert (drift.name, drift.marker.color) == ("Moved", LIGHT.accent)
    assert list(drift.x) == list(months()["Month"])
    assert list(drift.customdata) == ["0.59", "0.08", "-"]
    assert (share.yaxis, list(share.customdata)) == ("y2", ["20 %", "30 %", "40 %"])
    assert figure.layout.yaxis2.side == "right"
    assert drift.offsetgroup != share.offsetgroup
    # The mark of a new version lies behind the bars, all over its month.
    assert (mark.yaxis, mark.opacity, list(mark.y)) == ("y3", 0.3, [None, None, 1.0])
    assert figure.layout.yaxis3.overlaying is None
    assert figure.layout.yaxis.overlaying == "y3"


def test_bars_take_the_colour_of_their_threshold_or_mapping(tmp_path: Path) -> None:
    by_threshold = one(
        tmp_path,
        "barchart",
        None,
        {
            "defaults": {
                "color": {"mode": "thresholds"},
                "thresholds": steps((None, "green"), (5, "red")),
            }
        },
    )
    frame = pd.DataFrame({"x": ["a", "b"], "n": [1, 7]})
    (bars,) = panels.bars(by_threshold, frame, DARK).data
    assert list(bars.marker.color) == [panels.color("green", DARK), panels.color("red", DARK)]


def test_stacked_bars_are_stacked(tmp_path: Path) -> None:
    panel = one(tmp_path, "barchart", {"stacking": "normal"})
    frame = pd.DataFrame({"x": ["a"], "n": [1], "m": [2]})
    figure = panels.bars(panel, frame, LIGHT)
    assert (figure.layout.barmode, figure.layout.yaxis.range) == ("relative", None)


@pytest.mark.parametrize("frame", [pd.DataFrame({"x": ["a"]}), pd.DataFrame({"y": [1]})])
def test_rows_without_what_a_chart_needs_are_named(tmp_path: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(panels.PanelError, match="the query returns no"):
        panels.bars(one(tmp_path, "barchart", {"xField": "x"}), frame, LIGHT)
    with pytest.raises(panels.PanelError, match="no column time"):
        panels.lines(one(tmp_path, "timeseries"), frame, LIGHT)


def traffic() -> pd.DataFrame:
    hours = pd.to_datetime(["2026-01-02 10:00", "2026-01-02 10:00", "2026-01-02 11:00"], utc=True)
    return pd.DataFrame({"time": hours, "model_version": ["1", "6", "6"], "value": [5, 7, 9]})


def traffic_panel(folder: Path, **custom: Any) -> Panel:
    defaults = {"displayName": "version ${__field.labels.model_version}", "custom": custom}
    return one(folder, "timeseries", None, {"defaults": defaults})


def test_text_columns_make_series_as_labels_do(tmp_path: Path) -> None:
    old, new = panels.lines(traffic_panel(tmp_path), traffic(), LIGHT).data
    assert (old.name, list(old.y), new.name, list(new.y)) == (
        "version 1",
        [5],
        "version 6",
        [7, 9],
    )
    assert old.line.color != new.line.color


def test_one_bar_over_time_is_an_hour_wide_and_not_a_hair(tmp_path: Path) -> None:
    panel = traffic_panel(tmp_path, drawStyle="bars", stacking={"mode": "normal"})
    figure = panels.lines(panel, traffic().head(1), LIGHT)
    assert figure.data[0].width == pytest.approx(3_600_000 * 0.9)
    assert figure.layout.barmode == "relative"


def test_new_versions_are_marked_over_time(tmp_path: Path) -> None:
    at = pd.Timestamp("2026-01-02 10:30", tz="UTC")
    marks = {"purple": pd.DataFrame({"time": [at], "text": ["Version 6 <b>"]})}
    span = (NOW - timedelta(hours=3), NOW)
    figure = panels.lines(traffic_panel(tmp_path), traffic(), LIGHT, marks, span)
    (line,) = figure.layout.shapes
    assert line.x0 == at.timestamp() * 1000
    assert line.line.color == panels.color("purple", LIGHT)
    (words,) = figure.layout.annotations
    assert "Version 6 &lt;b&gt;" in words.hovertext
    assert list(figure.layout.xaxis.range) == list(span)


def test_cells_are_coloured_where_the_file_says_so(tmp_path: Path) -> None:
    mappings = [{"type": "value", "options": {"failed": {"text": "Failed!", "color": "red"}}}]
    config = {
        "overrides": [
            override("a", mappings=mappings, **{"custom.cellOptions": {"type": "color-text"}}),
            override(
                "b", mappings=mappings, **{"custom.cellOptions": {"type": "color-background"}}
            ),
            override("c", mappings=mappings),
            override("d", **{"custom.hidden": True}),
        ]
    }
    panel = one(tmp_path, "table", None, config)
    looks = [panels.cell_look("failed", panel.field(column), LIGHT) for column in "abc"]
    red = panels.color("red", LIGHT)
    assert looks[0] == f"color: {red}"
    assert looks[1].startswith("background-color: rgba(179,54,60,")
    assert looks[2] == ""
    assert panels.formatted("failed", panel.field("c")) == "Failed!"
    frame = pd.DataFrame(columns=list("abcd"))
    assert panels.table_columns(panel, frame) == ["a", "b", "c"]
