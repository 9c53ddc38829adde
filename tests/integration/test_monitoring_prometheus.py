"""Every panel that asks Prometheus, asked of a real one that has watched a real API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import requests

from mlops.monitoring.dashboards import DASHBOARDS_FOLDER, Panel, Span, load_dashboard, panel_promql
from mlops.monitoring.prometheus import PrometheusError, is_ready, read_series
from mlops.serving.payload import switch_current
from mlops.settings import Settings
from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload
from tests.fixtures.prometheus import Prometheus, program
from tests.fixtures.waiting import await_

PANELS = [
    panel
    for path in sorted(DASHBOARDS_FOLDER.glob("*.json"))
    for panel in load_dashboard(path).panels
    if panel.promql is not None
]
each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)

pytestmark = pytest.mark.timeout(120)


def send(server: PredictServer, stop: threading.Event) -> None:
    """Send what has something for every panel, until told to stop."""
    record = server.reference()
    while not stop.wait(0.05):
        server.post([record, {**record, "job": "astronaut"}, {**record, "age": None}])
        server.post({**record, "age": 1e6})
        server.post({**record, "age": "old"})
        requests.get(f"{server.url}/nothing", timeout=10)


@pytest.fixture(scope="module")
def watched(postgres: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that watches an API under all kinds of traffic."""
    program()
    folder = tmp_path_factory.mktemp("watched")
    settings = postgres.model_copy(
        update={"state_dir": folder / "state", "payloads_dir": folder / "payloads"}
    )
    make_payload(settings.payloads_dir, "1")
    switch_current(settings.payloads_dir, "1")
    server, prometheus = PredictServer(settings), Prometheus(settings)
    stop = threading.Event()
    thread = threading.Thread(target=send, args=(server, stop))
    try:
        server.start()
        prometheus.start()
        thread.start()
        yield prometheus
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        prometheus.stop()
        server.stop()


def last_minute() -> Span:
    return Span.last(timedelta(minutes=1))


def read(prometheus: Prometheus, panel: Panel) -> pd.DataFrame:
    return read_series(prometheus.url, panel, last_minute())


@each_panel
def test_a_panel_shows_what_has_happened(watched: Prometheus, panel: Panel) -> None:
    await_(lambda: len(read(watched, panel)), 40, panel.title)
    frame = read(watched, panel)
    assert not frame.attrs["cut"]
    if panel.type == "stat":
        assert list(frame.columns) == [panel.title]
        assert len(frame) == 1
        return
    assert frame.columns[0] == "time"
    assert frame.columns[-1] == "value"
    assert isinstance(frame["time"].dtype, pd.DatetimeTZDtype)
    assert frame["time"].is_monotonic_increasing
    assert (frame["value"] >= 0).all()
    labels = list(frame.columns[1:-1])
    assert labels
    for label in labels:  # else series would go by the same name
        assert f"${{__field.labels.{label}}}" in (panel.style.display_name or "")


def panel_of(title: str) -> Panel:
    (found,) = [panel for panel in PANELS if panel.title == title]
    return found


def test_values_are_those_of_the_traffic(watched: Prometheus) -> None:
    def labels(title: str, *names: str) -> set[tuple[str, ...]]:
        frame = read(watched, panel_of(title))
        return set(frame[list(names)].itertuples(index=False, name=None)) if len(frame) else set()

    await_(lambda: len(labels("Requests a second, by status", "status")) == 3, 40)
    assert labels("Requests a second, by status", "status") == {("200",), ("422",), ("404",)}
    assert labels("Latency of /predict", "quantile") == {("p50",), ("p90",), ("p99",)}
    assert ("/predict",) in labels("Requests a second, by route", "route")
    assert labels("Rows a second, by version", "version") == {("1",)}
    assert labels("Workers, by version", "version") == {("1",)}
    await_(lambda: len(labels("Unusual values, by field", "field", "kind")) == 2, 40)
    assert labels("Unusual values, by field", "field", "kind") == {
        *(("age", "out_of_range"), ("job", "unseen")),
    }
    frame = read(watched, panel_of("Unusual values, by field"))
    # One row of four has an unknown job, one an age that nobody has.
    assert frame["value"].iloc[-2:].tolist() == pytest.approx([0.25, 0.25], abs=0.05)
    latency = read(watched, panel_of("Latency of /predict")).groupby("quantile")["value"].last()
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] < 10
    # Two of four requests are refused.
    refused = read(watched, panel_of("Refused or failed"))
    assert refused.iloc[0, 0] == pytest.approx(0.5, abs=0.1)
    assert read(watched, panel_of("Workers")).iloc[0, 0] == 2


def test_a_query_that_prometheus_refuses_says_why(watched: Prometheus) -> None:
    panel = replace(panel_of("Workers, by version"), promql="sum by (version (predict_workers)")
    with pytest.raises(PrometheusError, match="parse error"):
        read(watched, panel)


def test_nobody_at_the_address_is_no_prometheus(tmp_path: Path) -> None:
    url = make_settings(tmp_path).prometheus_url
    assert not is_ready(url)
    with pytest.raises(PrometheusError, match="Prometheus does not answer"):
        read_series(url, PANELS[0], last_minute())


@pytest.mark.parametrize(
    ("length", "step", "interval"),
    [
        (timedelta(hours=1), 15, 60),
        (timedelta(hours=24), 360, 375),
        (timedelta(days=30), 10800, 10815),
    ],
)
def test_a_longer_time_has_longer_steps_and_rates(
    length: timedelta, step: int, interval: int
) -> None:
    promql, seconds = panel_promql(panel_of("Rows a second, by version"), Span.last(length))
    assert seconds == step
    assert f"[{interval}s]" in promql
