"""Read Grafana's dashboard files and run their panels' SQL, so that others can draw them.

Panels that ask Prometheus are read too; `mlops.monitoring.prometheus` runs their queries.

One file for Grafana and for whoever has none. Known is the subset that docs/architecture.md names.
What would change a panel's rows and is not known is refused by file, panel and key, since a chart
of other rows than Grafana's is worse than none. A panel of another type is kept, with its title, so
that the reader can be told. This module only reads, and it never draws.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import psycopg2
from psycopg2.extensions import connection as Connection
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from mlops.database import undone
from mlops.settings import ROOT

DASHBOARDS_FOLDER = ROOT / "grafana" / "dashboards"

#: Data sources that panels may query: their uid is the database's name.
DATABASES = ("mlops", "mlflow", "mage")

#: The data source that is no database: its panels have PromQL in place of SQL.
PROMETHEUS = "prometheus"

#: How often Prometheus asks (prometheus/prometheus.yml, and `timeInterval` of the data source).
SCRAPE_INTERVAL_S = 15

#: Points in time of a panel that asks Prometheus, at most.
POINTS = 240

#: Panels that ask a database, the others that are known, and what holds them together.
QUERY_TYPES = ("stat", "barchart", "timeseries", "table")
KNOWN_TYPES = (*QUERY_TYPES, "text", "alertlist")

#: Rows of a panel that are read at most.
ROW_LIMIT = 5_000

Choices = Mapping[str, Sequence[str]]
"""What is chosen of each variable: its name, and the values, of which there may be none."""


class DashboardError(ValueError):
    """A dashboard file says something that cannot be read or is not known here."""


class PanelQueryError(RuntimeError):
    """Postgres did not run a query; `reason` says why, and the message also for what."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.reason = reason


class Span(NamedTuple):
    """The time picker: from `start` to `end`, both with a time zone."""

    start: datetime
    end: datetime

    @classmethod
    def last(cls, length: timedelta, now: datetime | None = None) -> Span:
        """Return the span of `length` that ends `now` (by the clock, if None)."""
        end = now or datetime.now(timezone.utc)
        return cls(end - length, end)


class _Part(BaseModel):
    """A part of the file; keys that only change how Grafana looks are left out."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True
    )


class Step(_Part):
    """From `value` on (None: from the lowest) a field has the colour `color`."""

    value: float | None = None
    color: str


class Thresholds(_Part):
    """Absolute steps, ascending; the first is the base and has no value."""

    mode: Literal["absolute"] = "absolute"
    steps: tuple[Step, ...] = ()

    def color_of(self, value: float) -> str | None:
        """Return the colour of the highest step that `value` reaches."""
        color = None
        for step in self.steps:
            if step.value is None or value >= step.value:
                color = step.color
        return color

    @property
    def limits(self) -> list[Step]:
        """Return the steps that have a value: those that a chart draws as lines."""
        return [step for step in self.steps if step.value is not None]


class Color(_Part):
    """Where a field's colour comes from: `thresholds`, `fixed` (to `fixed_color`), a palette."""

    mode: str = "palette-classic"
    fixed_color: str | None = None


class MappedTo(_Part):
    """What a mapped value is shown as."""

    text: str | None = None
    color: str | None = None


class _ValueMapping(_Part):
    type: Literal["value"]
    options: dict[str, MappedTo]

    def find(self, value: Any) -> MappedTo | None:
        return self.options.get(_key(value))


class _RangeOptions(_Part):
    from_: float | None = Field(None, alias="from")
    to: float | None = None
    result: MappedTo


class _RangeMapping(_Part):
    type: Literal["range"]
    options: _RangeOptions

    def find(self, value: Any) -> MappedTo | None:
        low, high = self.options.from_, self.options.to
        if isinstance(value, bool) or not isinstance(value, int | float) or pd.isna(value):
            return None
        above = low is None or value >= low
        return self.options.result if above and (high is None or value <= high) else None


class _RegexOptions(_Part):
    pattern: str
    result: MappedTo


class _RegexMapping(_Part):
    type: Literal["regex"]
    options: _RegexOptions

    def find(self, value: Any) -> MappedTo | None:
        found = _pattern(self.options.pattern).search(_key(value))
        return self.options.result if found else None


class _SpecialOptions(_Part):
    match: Literal["null", "nan", "null+nan", "true", "false", "empty"]
    result: MappedTo


class _SpecialMapping(_Part):
    type: Literal["special"]
    options: _SpecialOptions

    def find(self, value: Any) -> MappedTo | None:
        kinds = {"true": value is True, "false": value is False, "empty": value == ""}
        found = kinds.get(self.options.match, value is None or value != value)
        return self.options.result if found else None


class _ThresholdsStyle(_Part):
    mode: str = "off"


class _LineStyle(_Part):
    fill: str = "solid"


class _HideFrom(_Part):
    viz: bool = False


class _CellOptions(_Part):
    type: str = "auto"


class _Stacking(_Part):
    mode: str = "none"


class Custom(_Part):
    """The keys under `custom` that change what a reader sees."""

    draw_style: str = "line"
    bar_alignment: int = 0
    fill_opacity: float = 0
    line_style: _LineStyle = _LineStyle()
    thresholds_style: _ThresholdsStyle = _ThresholdsStyle()
    stacking: _Stacking = _Stacking()
    hide_from: _HideFrom = _HideFrom()
    hidden: bool = False
    cell_options: _CellOptions = _CellOptions()
    axis_label: str = ""
    axis_placement: str = "auto"
    axis_soft_min: float | None = None
    axis_soft_max: float | None = None


class FieldStyle(_Part):
    """How a field (a column of the rows) is shown."""

    display_name: str | None = None
    description: str | None = None
    unit: str | None = None
    decimals: int | None = None
    min: float | None = None
    max: float | None = None
    no_value: str | None = None
    thresholds: Thresholds = Thresholds()
    color: Color = Color()
    mappings: tuple[_ValueMapping | _RangeMapping | _RegexMapping | _SpecialMapping, ...] = ()
    custom: Custom = Custom()

    @property
    def hidden(self) -> bool:
        """Whether the field is read and not shown."""
        return self.custom.hidden or self.custom.hide_from.viz

    def mapped(self, value: Any) -> MappedTo | None:
        """Return what the first mapping that knows `value` makes of it."""
        for mapping in self.mappings:
            if (found := mapping.find(value)) is not None:
                return found
        return None


class _Matcher(_Part):
    id: Literal["byName", "byRegexp"]
    options: str


class _Property(_Part):
    id: str
    value: Any = None


class _Override(_Part):
    matcher: _Matcher
    properties: tuple[_Property, ...]

    def matches(self, column: str) -> bool:
        if self.matcher.id == "byName":
            return column == self.matcher.options
        return bool(_pattern(self.matcher.options).search(column))


class _FieldConfig(_Part):
    defaults: dict[str, Any] = {}
    overrides: tuple[_Override, ...] = ()


class GridPos(_Part):
    """Place in a grid of 24 columns; a row is about 30 pixels high."""

    x: int
    y: int
    w: int
    h: int


class _DataSource(_Part):
    uid: str


class _Target(_Part):
    ref_id: str
    datasource: _DataSource | None = None
    format: Literal["table", "time_series"] = "table"
    raw_sql: str = Field(min_length=1)
    hide: Literal[False] = False


class _PrometheusTarget(_Part):
    ref_id: str
    datasource: _DataSource | None = None
    expr: str = Field(min_length=1)
    legend_format: str = Field(min_length=1)
    instant: bool
    range: bool
    hide: Literal[False] = False


@dataclass(frozen=True)
class Panel:
    """One panel; `sql`, `database` and `format` are None where it asks no database.

    `promql` is None where it does not ask Prometheus.
    """

    id: int
    title: str
    type: str
    grid: GridPos
    description: str
    database: str | None
    format: Literal["table", "time_series"] | None
    sql: str | None
    options: Mapping[str, Any]
    """As in the file: they differ from type to type."""
    transparent: bool
    style: FieldStyle
    """Of a field without an override of its own."""
    _defaults: Mapping[str, Any]
    _overrides: tuple[_Override, ...]
    promql: str | None = None

    @property
    def known(self) -> bool:
        """Whether its type is one that is drawn here."""
        return self.type in KNOWN_TYPES

    @property
    def no_value(self) -> str:
        """Return what stands in place of no rows, or of a value that is null."""
        return self.style.no_value or "No data"

    def field(self, *names: str) -> FieldStyle:
        """Return how the field is shown that goes by `names`: its column's, its label's."""
        matching = [each for each in self._overrides if any(each.matches(name) for name in names)]
        if not matching:
            return self.style
        values = deepcopy(dict(self._defaults))
        for override in matching:
            for each in override.properties:
                _put(values, each.id, each.value)
        return FieldStyle.model_validate(values)


@dataclass(frozen=True)
class Section:
    """A row of the dashboard and the panels under it, from left to right and top to bottom."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """A variable whose options a query returns."""

    name: str
    label: str
    description: str
    database: str
    sql: str
    multi: bool
    include_all: bool
    chosen: tuple[str, ...]
    """Chosen until a person chooses; empty: all, or else the first."""

    def default(self, options: Sequence[str]) -> list[str]:
        """Return what is chosen of `options` at first."""
        kept = [option for option in self.chosen if option in options]
        if kept or not options:
            return kept
        return list(options) if self.include_all else [options[0]]


@dataclass(frozen=True)
class Annotation:
    """Marks over all charts with a time axis: a query of `time` and `text`."""

    name: str
    color: str
    database: str
    sql: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard file: sections from top to bottom, variables in their order."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    sections: tuple[Section, ...]
    file: Path

    @property
    def panels(self) -> list[Panel]:
        """Return all panels, in reading order."""
        return [panel for section in self.sections for panel in section.panels]


def load_dashboard(path: Path) -> Dashboard:
    """Return the dashboard that `path` describes.

    Raises DashboardError, naming file, panel and key, for what cannot be read and for what would
    change a panel's rows and is not known: transformations, repeats, further targets, other data
    sources, and variables and macros beyond those that `panel_sql` fills in.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DashboardError(f"{path}: cannot be read: {error}") from error
    file = _validate(_File, content, f"{path}")
    variables = tuple(
        _variable(each, f"{path}: variable {each.name!r}") for each in file.templating.list
    )
    annotations = tuple(
        _annotation(each, f"{path}: annotation {each.name!r}")
        for each in file.annotations.list
        if each.enable and not each.built_in
    )
    dashboard = Dashboard(
        uid=file.uid,
        title=file.title,
        description=file.description,
        variables=variables,
        annotations=annotations,
        sections=_sections(file.panels, path),
        file=path,
    )
    _check(dashboard)
    return dashboard


def variable_options(
    connection: Connection, variable: Variable, choices: Choices | None = None
) -> list[str]:
    """Return the values that `variable` may take, as its query orders them, each once.

    `choices` are those of the variables that its query names. Raises PanelQueryError.
    """
    # A query of options looks at no span: it is asked anew only when a person comes.
    sql = _expand(variable.sql, choices or {}, Span.last(timedelta(hours=1)))
    frame = read_rows(connection, sql, f"options of {variable.name}")
    if frame.empty:
        return []
    values = frame["__value"] if "__value" in frame else frame.iloc[:, 0]
    return list(dict.fromkeys(_key(value) for value in values.dropna()))


def panel_sql(panel: Panel, choices: Choices, span: Span) -> str:
    """Return the panel's SQL as Grafana would send it, variables and macros filled in.

    A choice becomes a quoted literal and is never looked into again, whatever it holds; none chosen
    becomes NULL, so that `IN (...)` finds nothing. Raises DashboardError, naming it, for a variable
    without a choice, another format than `sqlstring`, and another macro.
    """
    if panel.sql is None:
        raise DashboardError(f"panel {panel.id} {panel.title!r} ({panel.type}) has no SQL")
    try:
        return _expand(panel.sql, choices, span)
    except DashboardError as error:
        raise DashboardError(f"panel {panel.id} {panel.title!r}: {error}") from None


def panel_promql(panel: Panel, span: Span) -> tuple[str, int]:
    """Return the panel's PromQL as Grafana would send it, and the seconds between its points.

    `$__rate_interval` is what Grafana's server makes of it (pkg/promlib/models/query.go): four
    scrapes, or a step and a scrape if that is longer. Raises DashboardError for other macros.
    """
    if panel.promql is None:
        raise DashboardError(f"panel {panel.id} {panel.title!r} ({panel.type}) has no PromQL")
    step = max(SCRAPE_INTERVAL_S, math.ceil((span.end - span.start).total_seconds() / POINTS))
    interval = max(step + SCRAPE_INTERVAL_S, 4 * SCRAPE_INTERVAL_S)
    filled = panel.promql.replace("$__rate_interval", f"{interval}s")
    if "$" in filled or "[[" in filled:
        raise DashboardError(
            f"panel {panel.id} {panel.title!r}: PromQL: known is $__rate_interval, no other macro"
            " and no variable"
        )
    return filled, step


def read_panel(connection: Connection, panel: Panel, choices: Choices, span: Span) -> pd.DataFrame:
    """Return the panel's rows, at most `ROW_LIMIT`; `frame.attrs["cut"]` says if there were more.

    Numbers are numbers, times are UTC (also an epoch in a column `time`), anything else is text as
    Postgres gives it. The connection can be used on after an error. Raises PanelQueryError.
    """
    return read_rows(connection, panel_sql(panel, choices, span), f"panel {panel.title!r}")


def read_annotation(connection: Connection, annotation: Annotation, span: Span) -> pd.DataFrame:
    """Return the marks, `time` and `text`, within `span`. Raises PanelQueryError."""
    frame = read_rows(connection, _expand(annotation.sql, {}, span), f"marks {annotation.name!r}")
    if "time" not in frame:
        raise PanelQueryError(f"marks {annotation.name!r}", "the query returns no column time")
    return frame.assign(text=frame.get("text", annotation.name))


# Grafana's own names for what the file holds; see `Panel` and the others for what is made of it.


class _PanelPart(_Part):
    id: int
    type: str
    title: str = ""
    description: str = ""
    grid_pos: GridPos
    datasource: _DataSource | None = None
    targets: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = {}
    field_config: dict[str, Any] = {}
    transparent: bool = False
    collapsed: bool = False
    panels: tuple[dict[str, Any], ...] = ()
    transformations: tuple[Any, ...] = Field((), max_length=0)
    repeat: Literal[""] | None = None
    time_from: None = None
    time_shift: None = None


class _VariablePart(_Part):
    name: str
    type: Literal["query"]
    label: str | None = None
    description: str | None = None
    datasource: _DataSource
    query: str | dict[str, Any]
    multi: bool = False
    include_all: bool = False
    current: dict[str, Any] = {}
    regex: Literal[""] = ""
    sort: Literal[0] = 0


class _AnnotationPart(_Part):
    name: str
    enable: bool = True
    built_in: int = 0
    icon_color: str = "blue"
    datasource: _DataSource | None = None
    target: dict[str, Any] = {}
    raw_query: str | None = None


class _Templating(_Part):
    list: tuple[_VariablePart, ...] = ()


class _Annotations(_Part):
    list: tuple[_AnnotationPart, ...] = ()


class _File(_Part):
    uid: str = Field(min_length=1)
    title: str = Field(min_length=1)
    description: str = ""
    templating: _Templating = _Templating()
    annotations: _Annotations = _Annotations()
    panels: tuple[dict[str, Any], ...]


def _validate(model: type[Any], content: Any, place: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = []
        for each in error.errors():
            key = ".".join(str(step) for step in each["loc"]) or "content"
            found = "" if each["type"] == "missing" else f" (found {each['input']!r:.80})"
            lines.append(f"{place}: {key}: {each['msg']}{found}")
        raise DashboardError("\n".join(dict.fromkeys(lines))) from None


def _variable(part: _VariablePart, place: str) -> Variable:
    sql = part.query if isinstance(part.query, str) else part.query.get("rawSql")
    if not sql:
        raise DashboardError(f"{place}: query: no SQL")
    current = part.current.get("value", [])
    values = [current] if isinstance(current, str) else list(current)
    return Variable(
        name=part.name,
        label=part.label or part.name,
        description=part.description or "",
        database=_database(part.datasource, place),
        sql=sql,
        multi=part.multi,
        include_all=part.include_all,
        chosen=tuple(value for value in values if value and value != "$__all"),
    )


def _annotation(part: _AnnotationPart, place: str) -> Annotation:
    sql = part.target.get("rawSql") or part.raw_query
    if not sql:
        raise DashboardError(f"{place}: target.rawSql: no SQL")
    return Annotation(part.name, part.icon_color, _database(part.datasource, place), sql)


def _sections(parts: Sequence[Mapping[str, Any]], path: Path) -> tuple[Section, ...]:
    """Return sections by the panels' places, as Grafana does: a row holds what stands below it."""
    read = [(_panel_part(part, path), part) for part in parts]
    read.sort(key=lambda each: (each[0].grid_pos.y, each[0].grid_pos.x))
    sections: list[tuple[str, bool, list[Panel]]] = []
    for part, _ in read:
        if part.type == "row":
            nested = [_panel(_panel_part(each, path), path) for each in part.panels]
            nested.sort(key=lambda panel: (panel.grid.y, panel.grid.x))
            sections.append((part.title, part.collapsed, nested))
            continue
        if not sections:
            sections.append(("", False, []))
        sections[-1][2].append(_panel(part, path))
    return tuple(Section(title, tuple(panels), shut) for title, shut, panels in sections)


def _panel_part(content: Mapping[str, Any], path: Path) -> _PanelPart:
    part: _PanelPart = _validate(_PanelPart, content, _place(content, path))
    return part


def _place(content: Mapping[str, Any], path: Path) -> str:
    return f"{path}: panel {content.get('id', '?')} {content.get('title', '')!r}"


def _panel(part: _PanelPart, path: Path) -> Panel:
    place = f"{path}: panel {part.id} {part.title!r}"
    config: _FieldConfig = _validate(_FieldConfig, part.field_config, f"{place}: fieldConfig")
    style = _validate(FieldStyle, config.defaults, f"{place}: fieldConfig.defaults")
    for number, override in enumerate(config.overrides):
        here = f"{place}: fieldConfig.overrides.{number}"
        values: dict[str, Any] = {}
        for each in override.properties:
            _put(values, each.id, each.value)
        _validate(FieldStyle, values, here)
        if override.matcher.id == "byRegexp":
            _check_pattern(override.matcher.options, here)
    target, database, promql = None, None, None
    if part.type in QUERY_TYPES and _asks_prometheus(part):
        if len(part.targets) != 1:
            raise DashboardError(f"{place}: targets: expected one, found {len(part.targets)}")
        asked = _validate(_PrometheusTarget, part.targets[0], f"{place}: targets.0")
        if (part.type, asked.instant, asked.range) not in _PROMETHEUS_FORMS:
            raise DashboardError(
                f"{place}: targets.0: expected a stat with instant or a timeseries with range"
            )
        promql = asked.expr
        # Grafana writes the legend's name where the panel has none of its own.
        legend = re.sub(r"\{\{\s*(\w+)\s*\}\}", r"${__field.labels.\1}", asked.legend_format)
        config = config.model_copy(update={"defaults": {"displayName": legend, **config.defaults}})
        style = _validate(FieldStyle, config.defaults, f"{place}: fieldConfig.defaults")
    elif part.type in QUERY_TYPES:
        if len(part.targets) != 1:
            raise DashboardError(f"{place}: targets: expected one, found {len(part.targets)}")
        target = _validate(_Target, part.targets[0], f"{place}: targets.0")
        database = _database(target.datasource or part.datasource, f"{place}: targets.0")
    return Panel(
        id=part.id,
        title=part.title,
        type=part.type,
        grid=part.grid_pos,
        description=part.description,
        database=database,
        format=target.format if target else None,
        sql=target.raw_sql if target else None,
        options=part.options,
        transparent=part.transparent,
        style=style,
        _defaults=config.defaults,
        _overrides=config.overrides,
        promql=promql,
    )


_PROMETHEUS_FORMS = {("stat", True, False), ("timeseries", False, True)}
"""Type, instant and range of the panels that may ask Prometheus."""


def _asks_prometheus(part: _PanelPart) -> bool:
    return part.datasource is not None and part.datasource.uid == PROMETHEUS


def _database(source: _DataSource | None, place: str) -> str:
    uid = source.uid if source else None
    if uid not in DATABASES:
        raise DashboardError(
            f"{place}: datasource.uid: found {uid!r}, known are {', '.join(DATABASES)}"
        )
    return str(uid)


def _check(dashboard: Dashboard) -> None:
    """Refuse two panels of one id, and SQL with variables or macros that are not known."""
    seen: dict[int, Panel] = {}
    for panel in dashboard.panels:
        if panel.id in seen:
            raise DashboardError(
                f"{dashboard.file}: panel {panel.id} {panel.title!r}: id: stands already at"
                f" {seen[panel.id].title!r}"
            )
        seen[panel.id] = panel
        if panel.promql is not None:
            try:
                panel_promql(panel, Span.last(timedelta(hours=1)))
            except DashboardError as error:
                raise DashboardError(f"{dashboard.file}: {error}") from None
    known: dict[str, list[str]] = {}
    span = Span.last(timedelta(hours=1))
    # A variable may name those before it, as they are chosen first.
    queries = [(f"variable {each.name!r}", each.sql, each.name) for each in dashboard.variables]
    queries += [
        (f"panel {each.id} {each.title!r}", each.sql, "") for each in dashboard.panels if each.sql
    ]
    queries += [(f"annotation {each.name!r}", each.sql, "") for each in dashboard.annotations]
    for place, sql, name in queries:
        try:
            _expand(sql, {} if place.startswith("annotation") else known, span)
        except DashboardError as error:
            raise DashboardError(f"{dashboard.file}: {place}: SQL: {error}") from None
        if name:
            known[name] = []


def _put(values: dict[str, Any], place: str, value: Any) -> None:
    """Set the value of a property as overrides name it: `unit`, `custom.hidden`."""
    *folders, name = place.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
    values[name] = value


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern that is written /like this/i, or plain."""
    match = re.fullmatch(r"/(.*)/([a-z]*)", text, re.DOTALL)
    if match is None:
        return re.compile(text)
    return re.compile(match[1], re.IGNORECASE if "i" in match[2] else 0)


def _check_pattern(text: str, place: str) -> None:
    try:
        _pattern(text)
    except re.error as error:
        raise DashboardError(f"{place}: matcher.options: {text!r}: {error}") from None


# Variables and macros. Grafana fills in variables in the browser and macros in its server
# (pkg/tsdb/grafana-postgresql-datasource/macros.go); here both are done in one pass, so that a
# choice is not looked into for macros.

_DOLLAR = re.compile(
    r"\$\{(?P<variable>[^}]*)\}|\$(?P<name>[A-Za-z_]\w*)(?:\((?P<arguments>[^)]*)\))?(?P<comma>,)?"
    r"|\[\[(?P<brackets>\w+)\]\]"
)
_INTERVAL = re.compile(r"(\d+)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def _expand(sql: str, choices: Choices, span: Span) -> str:
    def fill(match: re.Match[str]) -> str:
        if match["variable"] is not None:
            return _literals(match["variable"], match[0], choices)
        if match["brackets"] is not None:
            if match["brackets"] not in choices:
                return match[0]  # a nested array of SQL's own
            raise DashboardError(f"{match[0]}: write ${{{match['brackets']}:sqlstring}}")
        comma = match["comma"] or ""
        return _macro(match["name"], match["arguments"], match[0], bool(comma), span) + comma

    return _DOLLAR.sub(fill, sql)


def _literals(variable: str, written: str, choices: Choices) -> str:
    name, _, form = variable.partition(":")
    if name not in choices:
        known = ", ".join(choices) or "none"
        raise DashboardError(f"{written}: no variable {name!r}; there are: {known}")
    if form != "sqlstring":
        raise DashboardError(f"{written}: write ${{{name}:sqlstring}}, which quotes the values")
    quoted = ("'" + value.replace("'", "''") + "'" for value in choices[name])
    return ",".join(quoted) or "NULL"


def _macro(name: str, arguments: str | None, written: str, comma: bool, span: Span) -> str:
    given = [each.strip() for each in (arguments or "").split(",")]
    if name == "__timeFilter" and len(given) == 1 and given[0]:
        return f"{given[0]} BETWEEN '{_rfc3339(span.start)}' AND '{_rfc3339(span.end)}'"
    if name == "__timeGroup" and len(given) == 2 and given[0]:
        interval = _INTERVAL.fullmatch(given[1].strip("'"))
        if interval is None or not int(interval[1]):
            raise DashboardError(f"{written}: an interval is written '10m', '1h' or '1d'")
        seconds = int(interval[1]) * _SECONDS[interval[2]]
        group = f"floor(extract(epoch from {given[0]})/{seconds})*{seconds}"
        # Grafana names the column if a comma follows at once, for queries of long ago.
        return f'{group} AS "time"' if comma else group
    raise DashboardError(
        f"{written.rstrip(',')}: known are $__timeFilter(column), $__timeGroup(column, '1h') and"
        " ${variable:sqlstring}"
    )


def _rfc3339(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


_TIMES = {1082, 1114, 1184}  # date, timestamp, timestamptz


def read_rows(connection: Connection, sql: str, subject: str) -> pd.DataFrame:
    """Return the rows of `sql`, at most `ROW_LIMIT`; see `read_panel` for what they hold.

    It runs in a savepoint of its own, through a cursor of the server's: no more rows than the limit
    come over, and the transaction outlives a query that fails. Raises PanelQueryError, naming
    `subject`.
    """
    try:
        with undone(connection), connection.cursor() as cursor:
            # The transaction's only cursor: closed by what undoes the block.
            cursor.execute(f"DECLARE panel_rows NO SCROLL CURSOR FOR {sql.strip().rstrip(';')}")
            cursor.execute(f"FETCH {ROW_LIMIT + 1} FROM panel_rows")
            columns = list(cursor.description or [])
            rows = cursor.fetchall()
    except psycopg2.Error as error:
        reason = "Postgres has gone away" if connection.closed else _reason(error)
        raise PanelQueryError(subject, reason) from error
    frame = pd.DataFrame(
        {
            place: _series([row[place] for row in rows[:ROW_LIMIT]], column)
            for place, column in enumerate(columns)
        },
        columns=range(len(columns)),
    )
    frame.columns = pd.Index([column.name for column in columns])
    frame.attrs["cut"] = len(rows) > ROW_LIMIT
    return frame


def _series(values: list[Any], column: Any) -> pd.Series[Any]:
    if column.type_code in _TIMES:
        return pd.Series(pd.to_datetime(pd.Series(values, dtype=object), utc=True, errors="coerce"))
    if column.type_code in psycopg2.NUMBER.values:
        numbers = pd.to_numeric(pd.Series(values, dtype=object))
        numbers = numbers.astype(float) if numbers.dtype == object else numbers
        return pd.to_datetime(numbers, unit="s", utc=True) if column.name == "time" else numbers
    return pd.Series([_text(value) for value in values], dtype=object)


def _text(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _key(value: Any) -> str:
    """Return a value as mappings and options write it: 3 for 3.0, true for True."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _reason(error: psycopg2.Error) -> str:
    """Return Postgres' own first line, without the statement."""
    message = error.diag.message_primary or str(error)
    return message.strip().partition("\n")[0]
