"""Ask Prometheus what a panel of Grafana's dashboard files asks it, over its HTTP API.

It only reads. Which Prometheus runs, and where, is no business of this module.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import requests

from mlops.monitoring.dashboards import ROW_LIMIT, Panel, Span, panel_promql

TIMEOUT_S = 10.0
_READY_TIMEOUT_S = 1.0


class PrometheusError(RuntimeError):
    """Prometheus did not answer a query; the message says why."""


def is_ready(url: str) -> bool:
    """Return whether a Prometheus answers at `url`."""
    try:
        return requests.get(f"{url}/-/ready", timeout=_READY_TIMEOUT_S).ok
    except requests.RequestException:
        return False


def read_series(url: str, panel: Panel, span: Span) -> pd.DataFrame:
    """Return the panel's series, as `read_panel` returns those of a database.

    Of a stat one row: its value, in a column named as the panel. Of a chart one row a point: `time`
    (UTC), a text column for each label, `value`; `frame.attrs["cut"]` says if there were more rows
    than `ROW_LIMIT`. What is no number (0/0: nobody asked) is left out. Raises PrometheusError, and
    DashboardError as `panel_promql` does.
    """
    query, step = panel_promql(panel, span)
    end = span.end.timestamp()
    if panel.type == "stat":
        found = _ask(f"{url}/api/v1/query", query=query, time=end)
        values = [float(each["value"][1]) for each in found]
        frame = pd.DataFrame({panel.title: values[:1]}).dropna()
        frame.attrs["cut"] = False
        return frame
    start = span.start.timestamp()
    found = _ask(f"{url}/api/v1/query_range", query=query, start=start, end=end, step=step)
    rows = [
        {"time": float(time), **each["metric"], "value": float(value)}
        for each in found
        for time, value in each["values"]
    ]
    labels = sorted({name for each in found for name in each["metric"]})
    frame = pd.DataFrame(rows, columns=["time", *labels, "value"]).dropna(subset=["value"])
    frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
    frame = frame.sort_values("time", kind="stable", ignore_index=True)
    cut = frame.head(ROW_LIMIT)
    cut.attrs["cut"] = len(frame) > ROW_LIMIT
    return cut


def _ask(url: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return the series that Prometheus answers. Raises PrometheusError."""
    try:
        response = requests.post(url, data=parameters, timeout=TIMEOUT_S)
        answer = response.json()
    except requests.RequestException as error:
        raise PrometheusError(f"Prometheus does not answer: {type(error).__name__}") from error
    if answer.get("status") != "success":
        raise PrometheusError(str(answer.get("error") or f"Prometheus answers {answer}"))
    return list(answer["data"]["result"])
