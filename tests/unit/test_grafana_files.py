"""Grafana's files: what a real Grafana 11 or 12 takes, and nothing that it would pass over.

No Grafana can be started here, so its rules stand below: the panels' schemas are those of
grafana-foundation-sdk, and what it does not check (enums, keys, units) is from Grafana's sources.
"""

from __future__ import annotations

import configparser
import copy
import json
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.monitoring.dashboards import SCRAPE_INTERVAL_S, load_dashboard
from mlops.settings import ROOT, Settings
from predictor import metrics
from tests.fixtures.alerts import shipped_rule

GRAFANA = ROOT / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
CONTENT = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
PANELS = [(name, panel) for name, content in CONTENT.items() for panel in content["panels"]]
ASKING = [(name, panel) for name, panel in PANELS if "targets" in panel]
ASKING_SQL = [(name, panel) for name, panel in ASKING if "rawSql" in panel["targets"][0]]
ASKING_PROMETHEUS = [each for each in ASKING if each not in ASKING_SQL]
DATABASES = {"mlops", "mlflow", "mage"}
POSTGRES = "grafana-postgresql-datasource"
DASH = "\N{EN DASH}"

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def named(panels: list[tuple[str, Any]]) -> Any:
    """Run a test once for each panel, under its name."""
    return pytest.mark.parametrize(
        "panel", [panel for _, panel in panels], ids=[f"{n}-{p['title']}" for n, p in panels]
    )


def panel_of(dashboard: str, title: str) -> dict[str, Any]:
    (found,) = [panel for panel in CONTENT[dashboard]["panels"] if panel["title"] == title]
    return dict(found)


def read_yaml(path: str) -> dict[str, Any]:
    return dict(yaml.safe_load((GRAFANA / "provisioning" / path).read_text(encoding="utf-8")))


def test_there_are_the_dashboards_that_the_architecture_names() -> None:
    assert {name: content["uid"] for name, content in CONTENT.items()} == {
        "model_monitoring": "model-monitoring",
        "predict_api": "predict-api",
        "predict_service": "predict-service",
    }


# --- schema ---


def lost(written: Any, read: Any, place: str = "") -> Iterator[str]:
    """Yield where `read` lacks or changes what `written` says; null and left out are the same."""
    if isinstance(written, dict):
        for key, value in written.items():
            if value is None:
                continue
            if not isinstance(read, dict) or key not in read:
                yield f"{place}.{key}"
            else:
                yield from lost(value, read[key], f"{place}.{key}")
    elif isinstance(written, list):
        if not isinstance(read, list) or len(read) != len(written):
            yield place
        else:
            for number, (one, other) in enumerate(zip(written, read, strict=True)):
                yield from lost(one, other, f"{place}[{number}]")
    elif written != read:
        yield f"{place}: {written!r} became {read!r}"


def as_grafana_reads(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` after a way through Grafana's typed classes: unknown keys are gone."""
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11: schemas are NOT checked on 3.10")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    return dict(json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(content)))))


@each_file
def test_a_dashboard_says_only_what_grafanas_schema_knows(path: Path) -> None:
    content = CONTENT[path.stem]
    assert list(lost(content, as_grafana_reads(content))) == []


def test_a_key_that_grafana_would_pass_over_is_found() -> None:
    content = copy.deepcopy(CONTENT["model_monitoring"])
    bars = next(panel for panel in content["panels"] if panel["type"] == "barchart")
    bars["options"]["xFeld"] = "Month"
    bars["fieldConfig"]["defaults"]["custom"]["tresholdsStyle"] = {"mode": "dashed"}
    bars["descripton"] = "?"
    found = " ".join(lost(content, as_grafana_reads(content)))
    assert all(key in found for key in ("xFeld", "tresholdsStyle", "descripton"))


@each_file
def test_the_app_can_read_and_draw_every_panel(path: Path) -> None:
    dashboard = load_dashboard(path)
    assert [panel.title for panel in dashboard.panels if not panel.known] == []
    assert len(dashboard.panels) == len(
        [panel for panel in CONTENT[path.stem]["panels"] if panel["type"] != "row"]
    )


# Enums of packages/grafana-schema/src/common/common.gen.ts and of the panels' panelcfg.cue.
LEGEND = {
    "options.legend.displayMode": {"list", "table", "hidden"},
    "options.legend.placement": {"bottom", "right"},
    "options.legend.showLegend": {True, False},
    "options.tooltip.mode": {"single", "multi", "none"},
    "options.tooltip.sort": {"asc", "desc", "none"},
}
AXIS = {
    "fieldConfig.defaults.custom.axisPlacement": {
        *("auto", "top", "right", "bottom", "left", "hidden")
    },
    "fieldConfig.defaults.custom.axisColorMode": {"text", "series"},
    "fieldConfig.defaults.custom.scaleDistribution.type": {"linear", "log", "ordinal", "symlog"},
    "fieldConfig.defaults.custom.gradientMode": {"none", "opacity", "hue", "scheme"},
    "fieldConfig.defaults.custom.thresholdsStyle.mode": {
        *("off", "line", "dashed", "area", "line+area", "dashed+area", "series")
    },
}
ENUMS: dict[str, dict[str, set[Any]]] = {
    "barchart": {
        **LEGEND,
        **AXIS,
        "options.orientation": {"auto", "vertical", "horizontal"},
        "options.stacking": {"none", "normal", "percent"},
        "options.showValue": {"auto", "never", "always"},
    },
    "timeseries": {
        **LEGEND,
        **AXIS,
        "fieldConfig.defaults.custom.drawStyle": {"line", "bars", "points"},
        "fieldConfig.defaults.custom.lineInterpolation": {
            *("linear", "smooth", "stepBefore", "stepAfter")
        },
        "fieldConfig.defaults.custom.showPoints": {"auto", "never", "always"},
        "fieldConfig.defaults.custom.barAlignment": {-1, 0, 1},
        "fieldConfig.defaults.custom.stacking.mode": {"none", "normal", "percent"},
    },
    "stat": {
        "options.orientation": {"auto", "vertical", "horizontal"},
        "options.textMode": {"auto", "value", "value_and_name", "name", "none"},
        "options.colorMode": {"value", "background", "background_solid", "none"},
        "options.graphMode": {"none", "line", "area"},
        "options.justifyMode": {"auto", "center"},
    },
    "table": {
        "options.cellHeight": {"sm", "md", "lg", "auto"},
        "fieldConfig.defaults.custom.align": {"auto", "left", "right", "center"},
        "fieldConfig.defaults.custom.cellOptions.type": {"auto", "color-text", "color-background"},
    },
    # public/app/plugins/panel/alertlist/types.ts, which the sdk does not know
    "alertlist": {
        "options.sortOrder": {1, 2, 3, 4, 5},
        "options.groupMode": {"default", "custom"},
        "options.viewMode": {"list", "stat"},
        "options.dashboardAlerts": {True, False},
        "options.showInstances": {True, False},
        "options.datasource": {"-- Grafana --"},
    },
    "row": {},
}
COMMON_ENUMS = {
    "fieldConfig.defaults.thresholds.mode": {"absolute"},
    "fieldConfig.defaults.color.mode": {
        *("fixed", "thresholds", "palette-classic", "palette-classic-by-name")
    },
}
ALERTLIST_KEYS = {
    *("alertInstanceLabelFilter", "alertName", "dashboardAlerts", "datasource", "folder"),
    *("groupBy", "groupMode", "maxItems", "showInactiveAlerts", "showInstances", "sortOrder"),
    *("stateFilter", "viewMode"),
}
ALERTLIST_STATES = {"error", "firing", "noData", "normal", "pending", "recovering"}
UNITS = {"none", "short", "percentunit", "s", "string", "bool_yes_no", "dateTimeFromNow"}
"""Of packages/grafana-data/src/valueFormats/categories.ts; an unknown one is shown as a suffix."""


def at(panel: dict[str, Any], place: str) -> Any:
    value: Any = panel
    for key in place.split("."):
        value = value[key]
    return value


@named(PANELS)
def test_a_panel_holds_values_that_grafana_knows(panel: dict[str, Any]) -> None:
    assert panel["type"] in ENUMS
    enums = ENUMS[panel["type"]]
    if "targets" in panel:
        enums = {**enums, **COMMON_ENUMS}
    wrong = {place: at(panel, place) for place in enums if at(panel, place) not in enums[place]}
    assert wrong == {}


def test_the_alert_list_shows_all_rules_of_this_grafana() -> None:
    panel = panel_of("model_monitoring", "Alert rules and their state")
    assert set(panel["options"]) <= ALERTLIST_KEYS
    assert panel["options"]["stateFilter"] == dict.fromkeys(ALERTLIST_STATES, True)
    assert panel["options"]["showInactiveAlerts"] is True  # else a rule without alerts is hidden
    assert panel["options"]["alertName"] == panel["options"]["alertInstanceLabelFilter"] == ""


@named(ASKING)
def test_units_colours_and_properties_of_columns_are_grafanas(panel: dict[str, Any]) -> None:
    config = panel["fieldConfig"]
    for override in config["overrides"]:
        assert override["matcher"]["id"] in ("byName", "byRegexp")
        for each in override["properties"]:
            head, _, custom = each["id"].partition(".")
            known = {"unit", "decimals", "noValue", "color", "mappings", "thresholds"}
            assert head in known or (head == "custom" and custom)
            if head == "unit":
                assert each["value"] in UNITS
            if head == "color":
                assert each["value"]["mode"] in COMMON_ENUMS["fieldConfig.defaults.color.mode"]
            if each["id"] == "custom.cellOptions":
                assert each["value"] == {"type": "color-text"}
    assert config["defaults"]["unit"] in UNITS


@named(ASKING)
def test_thresholds_are_absolute_steps_from_the_lowest(panel: dict[str, Any]) -> None:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    values = [step["value"] for step in steps]
    assert values[0] is None
    assert values[1:] == sorted(values[1:])


@named([(name, panel) for name, panel in PANELS if panel["type"] == "barchart"])
def test_categories_are_not_cut_to_nothing(panel: dict[str, Any]) -> None:
    # 0 is no "as long as it is": Grafana would write "..." below every bar.
    assert panel["options"]["xTickLabelMaxLength"] >= 20
    assert f'AS "{panel["options"]["xField"]}"' in panel["targets"][0]["rawSql"]


# --- what a person needs ---


@named(ASKING)
def test_a_panel_says_what_it_means_and_what_nothing_means(panel: dict[str, Any]) -> None:
    assert panel["title"].strip()
    assert len(panel["description"]) > 60
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["noValue"].strip()


@named([(name, panel) for name, panel in ASKING if panel["type"] != "stat"])
def test_an_empty_cell_does_not_repeat_the_text_of_an_empty_panel(panel: dict[str, Any]) -> None:
    # Grafana shows noValue for each null as well, in cells and in tooltips.
    assert panel["fieldConfig"]["overrides"][0] == {
        "matcher": {"id": "byRegexp", "options": "/.*/"},
        "properties": [{"id": "noValue", "value": DASH}],
    }


def test_no_two_panels_are_alike() -> None:
    for content in CONTENT.values():
        ids = [panel["id"] for panel in content["panels"]]
        assert len(set(ids)) == len(ids)
    titles = [panel["title"] for _, panel in PANELS]
    assert len(set(titles)) == len(titles)
    targets = [panel["targets"][0] for _, panel in ASKING]
    statements = [" ".join(each.get("rawSql", each.get("expr")).split()) for each in targets]
    assert len(set(statements)) == len(statements)


@each_file
def test_panels_lie_on_the_grid_and_not_on_one_another(path: Path) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in CONTENT[path.stem]["panels"]]
    for title, place in places:
        assert set(place) == {"x", "y", "w", "h"}, title
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} and {other} overlap"
    assert sum(place["w"] * place["h"] for _, place in places) == 24 * max(
        place["y"] + place["h"] for _, place in places
    ), "there are holes"


def test_the_rows_tell_the_story_from_top_to_bottom() -> None:
    sections = load_dashboard(GRAFANA / "dashboards" / "model_monitoring.json").sections
    assert [section.title for section in sections] == [
        "How is it now?",
        "Has the world moved?",
        "Is the model still right?",
        "What has the loop done?",
        "What was trained?",
        "Who asks?",
    ]
    assert all(section.panels for section in sections)


@each_file
def test_a_dashboard_stays_fresh_and_leads_to_the_others(path: Path) -> None:
    content = CONTENT[path.stem]
    # A change can be tried; the provider's allowUiUpdates keeps it from being saved.
    assert content["editable"] is True
    assert content["refresh"] == "30s"
    assert content["graphTooltip"] == 1
    assert content["schemaVersion"] >= 39
    assert content["id"] is None, "an id of another Grafana"
    (link,) = content["links"]
    assert (link["type"], link["tags"]) == ("dashboards", content["tags"])


# --- thresholds ---


def limits(panel: dict[str, Any]) -> list[float]:
    return [
        step["value"]
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        if step["value"] is not None
    ]


@pytest.mark.parametrize(
    ("title", "setting"),
    [
        ("Prediction drift per month", "prediction_drift_threshold"),
        ("Drifted columns per month", "drifted_columns_threshold"),
        ("Rows per month", "drift_min_rows"),
    ],
)
def test_a_drawn_threshold_is_that_of_the_settings_and_can_be_seen(
    title: str, setting: str
) -> None:
    panel = panel_of("model_monitoring", title)
    assert limits(panel) == [getattr(Settings(_env_file=None), setting)]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["custom"]["thresholdsStyle"] == {"mode": "dashed"}
    # Else the line lies outside of the axis as long as all is well.
    assert max(defaults["custom"].get("axisSoftMax", 0), defaults.get("max", 0)) > limits(panel)[0]


def test_the_verdict_on_performance_uses_the_figures_of_the_settings() -> None:
    settings = Settings(_env_file=None)
    panel = panel_of("model_monitoring", "How sure is that?")
    sql = panel["targets"][0]["rawSql"]
    assert f"labelled_count < {settings.drift_min_rows} " in sql
    assert f"roc_auc_loss > {settings.auc_loss_margin:g} " in sql
    assert f"calibration_gap > {settings.calibration_margin:g} " in sql
    assert f"calibration_gap < -{settings.calibration_margin:g} " in sql
    said = panel["description"]
    assert f"ROC AUC {settings.auc_loss_margin:g} below validation" in said
    assert f"mean score {settings.calibration_margin:g} beside" in said
    assert f"together they are {settings.drift_min_rows};" in said
    columns = panel_of("model_monitoring", "Columns that are off")["description"]
    assert f"further than {settings.column_drift_threshold:g} and than chance" in columns
    assert f"by more than {settings.missing_margin:g} and than chance" in columns


def test_the_latest_drift_is_judged_as_the_alert_rule_does() -> None:
    settings = Settings(_env_file=None)
    panel = panel_of("model_monitoring", "Drift, latest month")
    environment = {"MLOPS_LISTENER_URL": "http://127.0.0.1:1", "MLOPS_WEBHOOK_TOKEN": "x"}
    rule = shipped_rule(environment)
    assert limits(panel) == [rule.threshold] == [settings.prediction_drift_threshold]
    for sql in (panel["targets"][0]["rawSql"], rule.sql):
        assert f"row_count >= {settings.drift_min_rows}\n" in sql


# --- queries ---

ALLOWED = re.compile(
    r"\$__timeFilter\(\w+\)|\$__timeGroup\(\w+, '1h'\)|\$\{(?:version|period):sqlstring\}"
)


def statements() -> Iterator[tuple[str, str, list[str], dict[str, Any], str]]:
    """Yield place, SQL, known variables, the source named, and the format of all queries."""
    for name, content in CONTENT.items():
        variables = [each["name"] for each in content["templating"]["list"]]
        for each in content["templating"]["list"]:
            yield f"{name} {each['name']}", each["query"], [], each["datasource"], "table"
        for each in content["annotations"]["list"]:
            if "target" in each:
                target = each["target"]
                place = f"{name} {each['name']}"
                yield place, target["rawSql"], [], each["datasource"], target["format"]
        for panel in content["panels"]:
            for target in panel.get("targets", []):
                assert panel["datasource"] == target["datasource"], panel["title"]
                if "rawSql" not in target:
                    continue
                place = f"{name} {panel['title']}"
                source = target["datasource"]
                yield place, target["rawSql"], variables, source, target["format"]


@pytest.mark.parametrize(
    ("sql", "variables", "source", "form"),
    [pytest.param(*rest, id=place) for place, *rest in statements()],
)
def test_a_query_names_what_there_is(
    sql: str, variables: list[str], source: dict[str, Any], form: str
) -> None:
    assert source == {"type": POSTGRES, "uid": source["uid"]}
    assert source["uid"] in DATABASES
    assert form in ("table", "time_series")
    assert "$" not in ALLOWED.sub("", sql), "another macro or variable"
    assert "[[" not in sql, "Grafana's old way to name a variable"
    used = set(re.findall(r"\$\{(\w+)", sql))
    assert used <= set(variables)
    # Tables of others grow columns, some of which the role may not read.
    assert not re.search(r"SELECT\s+(\w+\.)?\*", sql, re.IGNORECASE)
    if form == "time_series":
        assert sql.startswith("SELECT $__timeGroup(made_at, '1h') AS \"time\"")
        assert " metric" not in sql


@named(ASKING_SQL)
def test_a_panel_asks_once(panel: dict[str, Any]) -> None:
    (target,) = panel["targets"]
    assert (target["refId"], target["rawQuery"], target["editorMode"]) == ("A", True, "code")
    expected = "time_series" if panel["type"] == "timeseries" else "table"
    assert target["format"] == expected


@named(ASKING_PROMETHEUS)
def test_a_panel_asks_prometheus_once_for_what_its_type_shows(panel: dict[str, Any]) -> None:
    """What the expressions return is tested with a Prometheus: test_monitoring_prometheus.py."""
    (target,) = panel["targets"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
    # pkg/promlib/models/query.go; without instant or range Grafana asks for a range.
    assert set(target) == {
        *("refId", "datasource", "editorMode", "expr", "legendFormat", "instant", "range")
    }
    assert (target["refId"], target["editorMode"]) == ("A", "code")
    assert panel["type"] in ("stat", "timeseries")
    assert (target["instant"], target["range"]) == (
        panel["type"] == "stat",
        panel["type"] == "timeseries",
    )
    # A rate over a time of its own shows nothing where Prometheus asks less often.
    assert target["expr"].count("rate(") == target["expr"].count("[$__rate_interval]")
    assert "$" not in target["expr"].replace("$__rate_interval", "")


def test_metrics_that_panels_ask_for_are_those_that_the_api_has() -> None:
    told = {
        *(f"{metric.name}_total" for metric in metrics._registry.collect()),
        *("predict_workers", "predict_request_duration_seconds_bucket", *metrics.MOMENTARY),
    }
    asked = {
        name
        for _, panel in ASKING_PROMETHEUS
        for name in re.findall(r"\bpredict_\w+", panel["targets"][0]["expr"])
    }
    assert len(asked) > 8
    assert asked <= told


def test_prometheus_asks_as_often_as_the_data_source_and_the_app_say() -> None:
    (source,) = read_yaml("datasources/prometheus.yaml")["datasources"]
    # pkg/services/provisioning/datasources/types.go, upsertDataSourceFromConfigV1
    assert set(source) == {
        *("uid", "name", "orgId", "type", "access", "url", "isDefault", "editable", "jsonData")
    }
    assert (source["uid"], source["type"], source["access"]) == (
        *("prometheus", "prometheus", "proxy"),
    )
    assert (source["isDefault"], source["editable"]) == (False, False)
    assert source["url"] == "$MLOPS_PROMETHEUS_URL"
    content = (ROOT / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    interval = yaml.safe_load(content)["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval == f"{SCRAPE_INTERVAL_S}s"


def test_variables_offer_all_and_are_asked_anew_with_each_refresh() -> None:
    variables = CONTENT["model_monitoring"]["templating"]["list"]
    assert [each["name"] for each in variables] == ["version", "period"]
    for each in variables:
        assert (each["multi"], each["includeAll"], each["allValue"]) == (True, True, None)
        assert each["refresh"] == 2, "a month measured since would stay away from All"
        assert each["sort"] == 0, "the query sorts: versions are numbers, the newest come first"
        assert (each["options"], each["current"]["value"]) == ([], ["$__all"])
        assert each["definition"] == each["query"]


# --- provisioning and grafana.ini ---


def test_data_sources_are_the_three_databases_as_the_reading_role() -> None:
    content = read_yaml("datasources/postgres.yaml")
    assert set(content) <= {"apiVersion", "datasources", "deleteDatasources"}
    assert content["apiVersion"] == 1
    sources = content["datasources"]
    assert [source["uid"] for source in sources] == ["mlops", "mlflow", "mage"]
    for source in sources:
        # pkg/services/provisioning/datasources/types.go, upsertDataSourceFromConfigV1
        assert set(source) == {
            *("uid", "name", "orgId", "type", "access", "url", "user", "isDefault", "editable"),
            *("jsonData", "secureJsonData"),
        }
        assert (source["type"], source["access"], source["user"]) == (POSTGRES, "proxy", "grafana")
        assert source["url"] == "${MLOPS_POSTGRES_HOST}:${MLOPS_POSTGRES_PORT}"
        assert source["editable"] is False
        assert source["secureJsonData"] == {"password": "$MLOPS_GRAFANA_DB_PASSWORD"}
        assert set(source["jsonData"]) == {
            *("database", "sslmode", "postgresVersion"),
            *("maxOpenConns", "maxIdleConns", "connMaxLifetime"),
        }
        assert source["jsonData"]["database"] == source["uid"]
    assert [source["isDefault"] for source in sources] == [True, False, False]
    roles = (ROOT / "postgres" / "roles.sql").read_text(encoding="utf-8")
    limit = re.search(r"ALTER ROLE grafana[^;]*CONNECTION LIMIT (\d+)", roles)
    assert limit
    assert sum(source["jsonData"]["maxOpenConns"] for source in sources) <= int(limit[1]) / 2


def test_dashboards_come_from_the_folder_and_stay_as_they_are() -> None:
    content = read_yaml("dashboards/dashboards.yaml")
    assert set(content) == {"apiVersion", "providers"}
    (provider,) = content["providers"]
    # pkg/services/provisioning/dashboards/types.go, configs
    assert set(provider) <= {
        *("name", "orgId", "type", "folder", "folderUid", "allowUiUpdates", "disableDeletion"),
        *("updateIntervalSeconds", "options"),
    }
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["path"] == "$MLOPS_DASHBOARDS_DIR"


def test_alert_rules_lie_in_a_folder_of_another_title_than_dashboards() -> None:
    (provider,) = read_yaml("dashboards/dashboards.yaml")["providers"]
    folders = {
        group["folder"]
        for path in (GRAFANA / "provisioning" / "alerting").glob("*.yaml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).get("groups", [])
    }
    assert folders
    assert provider["folder"] not in folders


def ini() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.read_string((GRAFANA / "grafana.ini").read_text(encoding="utf-8"))
    return parser


def test_grafana_ini_says_only_what_grafana_knows() -> None:
    # conf/defaults.ini of Grafana 11 and 12; preinstall_disabled came with 11.5, before which
    # nothing was installed by itself.
    known = {
        "analytics": {
            *("reporting_enabled", "check_for_updates", "check_for_plugin_updates"),
            "feedback_links_enabled",
        },
        "news": {"news_feed_enabled"},
        "plugins": {"preinstall_disabled", "plugin_admin_enabled", "public_key_retrieval_disabled"},
        "snapshots": {"external_enabled"},
        "public_dashboards": {"enabled"},
        "security": {"admin_user", "disable_gravatar", "cookie_samesite", "allow_embedding"},
        "auth.anonymous": {"enabled"},
        "users": {"allow_sign_up", "allow_org_create", "home_page"},
        "unified_alerting": {"enabled", "min_interval"},
        "log": {"mode", "level"},
        "log.console": {"format"},
    }
    assert {section: set(ini()[section]) for section in ini().sections()} == known


def test_grafana_starts_offline_and_lets_nobody_in_without_a_login() -> None:
    settings = ini()
    for section, key in (
        *(("analytics", key) for key in settings["analytics"]),
        ("news", "news_feed_enabled"),
        ("plugins", "plugin_admin_enabled"),
        ("snapshots", "external_enabled"),
        ("public_dashboards", "enabled"),
        ("auth.anonymous", "enabled"),
        ("users", "allow_sign_up"),
    ):
        assert settings[section][key] == "false", f"[{section}] {key}"
    assert settings["plugins"]["preinstall_disabled"] == "true"
    assert settings["plugins"]["public_key_retrieval_disabled"] == "true"
    assert settings["security"]["disable_gravatar"] == "true"


def test_the_start_page_is_the_monitoring_dashboard() -> None:
    assert ini()["users"]["home_page"] == f"/d/{CONTENT['model_monitoring']['uid']}"


VARIABLE = re.compile(r"\$(?:__env)?\{?([A-Z][A-Z_]{3,})\}?")


def test_the_files_name_no_other_variable_than_the_architecture_does() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = architecture.partition("\n## Grafana\n")[2].partition("\n## ")[0]
    paragraph = section.partition("What\ndiffers stands in")[2].partition("\n\n")[0]
    documented = set(re.findall(r"`(MLOPS_[A-Z_]+)`", paragraph))
    paths = [*(GRAFANA / "provisioning").rglob("*.yaml"), GRAFANA / "grafana.ini"]
    used = {name for path in paths for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
    assert used == documented
    # Dashboards are not expanded by Grafana: a variable of the environment would stay as it is.
    assert not any(VARIABLE.search(path.read_text(encoding="utf-8")) for path in FILES)


def test_no_secret_stands_in_the_files() -> None:
    for path in sorted(each for each in GRAFANA.rglob("*") if each.is_file()):
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.search(
                r"(?i)^\s*[\w-]*(password|secret_key|token|credentials)\w*\"?\s*[:=]\s*(.+)$", line
            )
            if found:
                assert found[2].startswith("$"), f"{path}: {line}"
