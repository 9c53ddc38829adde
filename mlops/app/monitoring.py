"""Page *Monitoring*: the dashboards of Grafana, drawn from the same files by the same SQL.

It reads as role `grafana` and changes nothing. The page is thin: `mlops.monitoring.dashboards`
reads files and rows, `panels` makes figures of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from html import escape
from pathlib import Path
from types import TracebackType

import pandas as pd
import psycopg2
import streamlit as st
from psycopg2.extensions import connection as Connection

from mlops.alerting.rules import UnsupportedRuleError
from mlops.app import charts, panels
from mlops.app.elsewhere import grafana_address
from mlops.app.rule_states import (
    NOT_EVALUATED,
    RuleState,
    evaluator_watches,
    read_rule_states,
)
from mlops.database import connect
from mlops.monitoring.dashboards import (
    DASHBOARDS_FOLDER,
    ROW_LIMIT,
    Dashboard,
    DashboardError,
    Panel,
    PanelQueryError,
    Section,
    Span,
    Variable,
    load_dashboard,
    read_annotation,
    read_panel,
    variable_options,
)
from mlops.monitoring.prometheus import PrometheusError, is_ready, read_series
from mlops.settings import MissingSecretError, Settings, get_settings

REFRESH_S = 30

#: Seconds that one panel's query may take; the role's own limit is longer than a person waits.
QUERY_LIMIT_S = 10

#: The dashboard that comes first; the others follow by title.
FIRST = "model_monitoring.json"

SPANS = {
    "Last hour": timedelta(hours=1),
    "24 hours": timedelta(hours=24),
    "7 days": timedelta(days=7),
    "30 days": timedelta(days=30),
}


class Databases:
    """One connection a database, opened when the first panel asks for it, closed at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._open: dict[str, Connection] = {}
        self._away: dict[str, str] = {}

    def __enter__(self) -> Databases:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def open(self, database: str) -> Connection:
        """Return the connection to `database`. Raises psycopg2.OperationalError."""
        if database not in self._open:
            connection = self._stack.enter_context(connect(database, "grafana", self._settings))
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = %s", (QUERY_LIMIT_S * 1000,))
            self._open[database] = connection
        return self._open[database]

    def __getitem__(self, database: str) -> Connection:
        """Return the connection to `database`; raises PanelQueryError, each time, if it is away."""
        if database not in self._away:
            try:
                return self.open(database)
            except psycopg2.OperationalError as error:
                reason = str(error).strip().rpartition("FATAL:")[2].strip()
                self._away[database] = reason.partition("\n")[0]
        raise PanelQueryError(f"database {database}", self._away[database])


@dataclass(frozen=True)
class View:
    """What one look at a dashboard is drawn from, the same for each of its panels."""

    board: Dashboard
    databases: Databases
    choices: dict[str, list[str]]
    span: Span
    marks: dict[str, pd.DataFrame]
    colours: charts.Palette


@lru_cache(maxsize=16)
def _load(path: Path, changed_ns: int) -> Dashboard:
    return load_dashboard(path)


def load_all(folder: Path = DASHBOARDS_FOLDER) -> tuple[list[Dashboard], list[str]]:
    """Return the dashboards of `folder` and what is wrong with files that cannot be read."""
    found, wrong = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_load(path, path.stat().st_mtime_ns))
        except DashboardError as error:
            wrong.append(str(error))
    found.sort(key=lambda each: (each.file.name != FIRST, each.title))
    return found, wrong


def choose_dashboard(found: Sequence[Dashboard]) -> Dashboard:
    """Let the reader choose among dashboards, if there are several."""
    by_title = {each.title: each for each in found}
    title = st.segmented_control(
        "Dashboard",
        list(by_title),
        default=found[0].title,
        required=True,
        label_visibility="collapsed",
        key="dashboard",
        persist_state="session",
    )
    return by_title.get(str(title), found[0])


def choose(variable: Variable, options: Sequence[str], board: Dashboard) -> list[str]:
    """Let the reader choose among `options`; nothing chosen is all, or the first."""
    default = [] if variable.include_all and not variable.chosen else variable.default(options)
    everything = list(options) if variable.include_all else list(options[:1])
    key = f"{board.uid}-{variable.name}"
    if variable.multi:
        # What is no option any more would be refused by the widget.
        if key in st.session_state:
            kept = [each for each in st.session_state[key] if each in options]
            if kept != st.session_state[key]:
                st.session_state[key] = kept
        chosen = st.multiselect(
            variable.label,
            options,
            default=None if key in st.session_state else default,
            placeholder="All",
            help=variable.description or None,
            key=key,
            persist_state="session",
        )
        return [str(each) for each in chosen] or everything
    one = st.selectbox(variable.label, options, help=variable.description or None, key=key)
    return [str(one)] if one is not None else everything


def choose_span() -> Span:
    """Let the reader choose how far back traffic and runs are shown."""
    name = st.segmented_control(
        "Traffic and runs",
        list(SPANS),
        default="24 hours",
        required=True,
        help="Panels over time. Months of the data are chosen by their own name.",
        key="span",
        persist_state="session",
    )
    return Span.last(SPANS.get(str(name), SPANS["24 hours"]))


def show_sections(
    board: Dashboard,
    databases: Databases,
    choices: dict[str, list[str]],
    span: Span,
) -> None:
    """Draw every panel where the file has it; one that fails says so in its place."""
    colours = charts.palette(st.context.theme.type)
    view = View(board, databases, choices, span, read_marks(board, databases, span), colours)
    for section in board.sections:
        with _opened(section):
            for number, band in enumerate(panels.bands(section.panels)):
                key = f"band-{board.uid}-{section.panels[0].id}-{number}"
                row = st.container(horizontal=True, key=key)
                for cell in band:
                    name = f"cell-w{cell.width}-{board.uid}-{cell.panels[0].id}"
                    with row.container(key=name):
                        for panel in cell.panels:
                            show_panel(panel, view)


def _opened(section: Section) -> st.delta_generator.DeltaGenerator:
    """Return where a section's panels go, under its title."""
    if section.collapsed:
        return st.expander(section.title)
    if section.title:
        st.subheader(section.title)
    return st.container()


def read_marks(board: Dashboard, databases: Databases, span: Span) -> dict[str, pd.DataFrame]:
    """Return the marks over time by colour; without them, charts are drawn all the same."""
    marks: dict[str, pd.DataFrame] = {}
    for annotation in board.annotations:
        try:
            frame = read_annotation(databases[annotation.database], annotation, span)
        except PanelQueryError as error:
            st.caption(f"No marks: {error}")
            continue
        if not frame.empty:
            marks[annotation.color] = frame
    return marks


def show_panel(panel: Panel, view: View) -> None:
    """Draw one panel with its title and description."""
    with st.container(border=not panel.transparent, height="stretch", gap="xsmall"):
        if panel.title:
            st.markdown(f"**{panel.title}**", help=panel.description or None)
        try:
            draw(panel, view)
        except PanelQueryError as error:
            st.warning(f"Not read from database {panel.database or 'mlops'}: {error.reason}.")
        except PrometheusError as error:
            st.warning(f"Not read from Prometheus: {error}.")
        except (panels.PanelError, DashboardError, UnsupportedRuleError) as error:
            st.warning(str(error))


def draw(panel: Panel, view: View) -> None:
    """Draw what is inside a panel. Raises what its query, its rows or its file are the cause of."""
    if not panel.known:
        st.info(
            f"A panel of type “{panel.type}”, which only Grafana draws.",
            icon=":material/visibility_off:",
        )
        return
    if panel.type == "text":
        show_text(panel)
        return
    if panel.type == "alertlist":
        show_rules(view.databases["mlops"], view.colours)
        return
    if panel.promql is not None:
        frame = read_series(get_settings().prometheus_url, panel, view.span)
    else:
        frame = read_panel(view.databases[str(panel.database)], panel, view.choices, view.span)
    key = f"panel-{view.board.uid}-{panel.id}"
    if frame.empty:
        st.caption(panel.no_value)
        return
    if panel.type == "stat":
        show_cards(panels.cards(panel, frame, view.colours))
    elif panel.type == "table":
        show_table(panel, frame, view.colours, key)
    else:
        figure = (
            panels.bars(panel, frame, view.colours)
            if panel.type == "barchart"
            else panels.lines(panel, frame, view.colours, view.marks, view.span)
        )
        st.plotly_chart(figure, config=charts.CONFIG, key=key, alt=panel.description or None)
    if frame.attrs["cut"]:
        st.caption(f"Only the first {ROW_LIMIT:,} rows.")


def show_text(panel: Panel) -> None:
    """Show a text panel; HTML of a file is shown as text, never run."""
    content = str(panel.options.get("content") or "")
    if panel.options.get("mode", "markdown") == "markdown":
        st.markdown(content)
    else:
        st.code(content, language=None)


def show_cards(cards: Sequence[panels.Card]) -> None:
    """Show the values of a stat panel."""
    shown = []
    for card in cards:
        look = ""
        if card.color and card.filled:
            look = f"background: {card.color}; color: #fff; padding: 0 .5rem; border-radius: 4px"
        elif card.color:
            look = f"color: {card.color}"
        name = f"<small>{escape(card.name)}</small>" if card.name else ""
        shown.append(f'<div>{name}<b style="{look}">{escape(card.text)}</b></div>')
    st.html(f'<div class="cards">{"".join(shown)}</div>')


def show_table(panel: Panel, frame: pd.DataFrame, colours: charts.Palette, key: str) -> None:
    """Show rows with their units and colours; a click on a heading sorts by the value itself."""
    frame = frame[panels.table_columns(panel, frame)]
    styles = {column: panel.field(column) for column in frame.columns}
    look = frame.style.format({c: lambda v, s=s: panels.formatted(v, s) for c, s in styles.items()})
    for column, style in styles.items():
        look = look.map(
            lambda value, style=style: panels.cell_look(value, style, colours), subset=[column]
        )
    tall = 37 + 35 * len(frame)
    st.dataframe(
        look,
        hide_index=True,
        placeholder=next((each.no_value for each in styles.values() if each.no_value), "-"),
        height=tall if tall <= panels.height(panel) else panels.height(panel),
        column_config={
            column: st.column_config.Column(
                panels.label(panel, column),
                help=style.description,
            )
            for column, style in styles.items()
        },
        key=key,
    )


def show_rules(connection: Connection, colours: charts.Palette) -> None:
    """Show the defined alert rules and how they stand, and where Grafana shows more."""
    settings = get_settings()
    grafana = grafana_address(settings)
    watches = evaluator_watches(connection, settings)
    for rule in read_rule_states(connection, watches, grafana is not None):
        show_rule(rule, colours)
    if grafana is not None:
        st.markdown(f"[All states, in Grafana]({grafana}/alerting/list)")
    elif not watches:
        st.caption(
            "No sign of Grafana or the evaluator; these alerts came last."
            f" `{settings.start_command}` starts it."
        )


def show_rule(rule: RuleState, colours: charts.Palette) -> None:
    """Show one rule, and below it what fires or is about to."""
    tones = {"firing": "red", "pending": "orange", "normal": "green", NOT_EVALUATED: "orange"}
    tone = panels.color(tones[rule.state], colours)
    lines = [
        f'<div><b style="color: {tone}">{rule.state}</b> {escape(rule.title)}'
        f" <small>{escape(rule.condition)}</small></div>"
    ]
    for alert in rule.alerts:
        value = "" if alert.value is None else f" at {alert.value:.3f}"
        since = "" if alert.since is None else f"since {alert.since:%Y-%m-%d %H:%M} UTC"
        tone = panels.color(tones[alert.state], colours)
        lines.append(
            f'<div class="alert" style="border-color: {tone}">{escape(alert.labels)}{value}'
            f"<small>{since}</small></div>"
        )
    st.html(f'<div class="rule">{"".join(lines)}</div>')


def lacks_prometheus(board: Dashboard, settings: Settings) -> bool:
    """Say so if the panels of `board` ask a Prometheus that does not answer; return whether."""
    if all(panel.promql is None for panel in board.panels) or is_ready(settings.prometheus_url):
        return False
    if settings.prometheus == "off":
        way = "`MLOPS_PROMETHEUS` is off"
    elif settings.in_containers:
        way = f"`{settings.start_command}` starts it"
    else:
        way = (
            "the stack starts the one that it finds on PATH (a package of your system, or"
            " prometheus.io) or in the folder that `MLOPS_PROMETHEUS_HOME` names, by"
            " `make down up`"
        )
    st.info(
        f"This dashboard needs Prometheus, and none answers at {settings.prometheus_url}: {way}.",
        icon=":material/monitoring:",
    )
    return True


@st.fragment(run_every=REFRESH_S)
def show_page() -> None:
    """Read files and rows once and show everything; again every `REFRESH_S` seconds."""
    settings = get_settings()
    found, wrong = load_all()
    for message in wrong:
        st.warning(message, icon=":material/error:")
    if not found:
        if not wrong:
            st.warning(f"No dashboard lies in {DASHBOARDS_FOLDER}.", icon=":material/error:")
        return
    board = choose_dashboard(found)
    st.caption(f"{board.description} Times are UTC.".strip())
    if lacks_prometheus(board, settings):
        return
    try:
        with Databases(settings) as databases:
            databases.open("mlops")  # if Postgres is away, one message says so, not every panel
            row = st.container(horizontal=True, key="choices")
            choices: dict[str, list[str]] = {}
            for variable in board.variables:
                with row.container():
                    connection = databases[variable.database]
                    choices[variable.name] = choose(
                        variable, variable_options(connection, variable, choices), board
                    )
            with row.container():
                span = choose_span()
            show_sections(board, databases, choices, span)
    except MissingSecretError as error:
        st.warning(str(error), icon=":material/settings_alert:")
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        st.warning(
            f"Postgres does not answer at {settings.postgres_host}:{settings.postgres_port}."
            f" Start the stack with `{settings.start_command}`; this page comes back by itself.",
            icon=":material/cloud_off:",
        )
        st.button("Try again", icon=":material/refresh:")
    except PanelQueryError as error:
        st.warning(
            f"{error}. `{settings.start_command}` makes the tables.", icon=":material/table:"
        )


st.title("Monitoring")
show_page()
