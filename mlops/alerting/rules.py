"""Read Grafana's alert files: the subset that the evaluator understands, and nothing beyond it.

Grafana ignores a key that it does not know; here such a key is refused, by file and place, because
an alert that is evaluated differently from what its file says is worse than none. This module reads
files; it never runs a query and never posts an alert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlops.settings import ROOT, Settings

RULES_FOLDER = ROOT / "grafana" / "provisioning" / "alerting"

DATA_SOURCE = "mlops"
"""uid of the data source that rules may query: the database `mlops`, as role `grafana`."""

_EXPRESSION = "__expr__"
_DURATION = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
_PLACEHOLDER = re.compile(r"\{\{\s*\$(?:labels\.(\w+)|values\.(\w+)\.Value)\s*\}\}")


class UnsupportedRuleError(ValueError):
    """An alert file says something that the evaluator would not do as Grafana does."""


@dataclass(frozen=True)
class Rule:
    """One alert rule: a query, its reduction to a number a label set, and a threshold."""

    uid: str
    title: str
    folder: str
    interval: timedelta
    lasting: timedelta
    """How long the threshold must be passed before the alert fires; the file's key `for`."""
    sql: str
    reducer: Literal["last", "min", "max"]
    comparison: Literal["gt", "lt"]
    threshold: float
    reduced: str
    """refId of the reduced value, and `compared` of the comparison: keys of an alert's `values`."""
    compared: str
    no_data_state: Literal["OK", "KeepLast", "Alerting"]
    error_state: Literal["OK", "KeepLast", "Alerting"]
    labels: dict[str, str]
    annotations: dict[str, str]
    receiver: str
    group_by: tuple[str, ...]
    group_wait: timedelta
    group_interval: timedelta
    repeat_interval: timedelta
    file: Path

    def reduce(self, values: list[float]) -> float:
        """Return the one number that stands for `values`, which are in order of time."""
        if self.reducer == "last":
            return values[-1]
        return min(values) if self.reducer == "min" else max(values)

    def breached_by(self, value: float) -> bool:
        """Return whether `value` lies beyond the threshold."""
        return value > self.threshold if self.comparison == "gt" else value < self.threshold


@dataclass(frozen=True)
class Webhook:
    """A contact point: where alerts are posted to, and with which bearer token."""

    name: str
    url: str
    token: str
    send_resolved: bool

    def __repr__(self) -> str:  # no token in a log
        return f"Webhook({self.name!r}, {self.url!r})"


@dataclass(frozen=True)
class Provisioning:
    """All rules of a folder, and the contact points by name."""

    rules: list[Rule]
    webhooks: dict[str, Webhook]


def provisioning_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that alert files may name; Grafana is started with the same ones.

    Raises MissingSecretError if the token has not been generated.
    """
    return {
        "MLOPS_LISTENER_URL": settings.listener_url,
        "MLOPS_WEBHOOK_TOKEN": settings.secret("webhook_token"),
    }


def load_provisioning(environment: Mapping[str, str], folder: Path = RULES_FOLDER) -> Provisioning:
    """Return the rules and contact points of all files of `folder`, with variables filled in.

    Raises UnsupportedRuleError, naming file and place, for anything that the evaluator does not
    know, for a rule without a contact point, and for a folder without a rule.
    """
    rules: list[Rule] = []
    webhooks: dict[str, Webhook] = {}
    for path in _files(folder):
        content = _read(path)
        rules += _rules(content, path, environment)
        for webhook in _webhooks(content, path, environment):
            if webhook.name in webhooks:
                raise UnsupportedRuleError(f"{path}: contact point {webhook.name!r} exists twice")
            webhooks[webhook.name] = webhook
    _check_unique(rules)
    if not rules:
        raise UnsupportedRuleError(f"{folder}: no alert rule found")
    for rule in rules:
        if rule.receiver not in webhooks:
            raise UnsupportedRuleError(
                f"{rule.file}: rule {rule.title!r} notifies {rule.receiver!r}, which is no contact "
                f"point of {folder}: there are {', '.join(sorted(webhooks)) or 'none'}"
            )
    return Provisioning(rules, webhooks)


def load_titles(
    folder: Path = RULES_FOLDER, environment: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Return the titles of all rules of `folder` at work: the alerts that may start something.

    Reads also what only Grafana would evaluate. A title has its variables filled in, as alerts do.
    Raises UnsupportedRuleError, naming the file, if titles cannot be read.
    """
    titles: set[str] = set()
    for path in _files(folder):
        file = _validate(_TitledFile, _parse(path) or {}, path, "")
        rules = [rule for group in file.groups or () for rule in group.rules]
        try:
            titles |= {expand(rule.title, environment or {}) for rule in rules if not rule.isPaused}
        except ValueError as error:
            raise UnsupportedRuleError(f"{path}: the title {error}") from None
    return frozenset(titles)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` with `$NAME` and `${NAME}` filled in and `$$` as one dollar, as Grafana does.

    Raises ValueError for a variable that is not in `environment`.
    """
    try:
        return Template(text).substitute(environment)
    except KeyError as error:
        known = ", ".join(sorted(environment))
        raise ValueError(f"{text!r} names ${error.args[0]}; known here: {known}") from None
    except ValueError:
        raise ValueError(f"{text!r}: write a literal $ as $$") from None


def render(template: str, labels: Mapping[str, str], values: Mapping[str, float]) -> str:
    """Return an annotation with `{{ $labels.x }}` and `{{ $values.B.Value }}` filled in."""

    def fill(match: re.Match[str]) -> str:
        label, value = match.groups()
        if label is not None:
            return labels.get(label, "[no value]")
        return f"{values[value]:g}" if value in values else "[no value]"

    return _PLACEHOLDER.sub(fill, template)


# What the files may hold. Names are Grafana's.


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"found {value!r}, expected a duration, as in 10s, 1m or 4h")
    match = _DURATION.fullmatch(value)
    if not value or match is None:
        raise ValueError(f"found {value!r}, expected a duration, as in 10s, 1m or 4h")
    amounts = {
        unit: int(n) for unit, n in zip(_UNITS, match.groups(), strict=True) if n is not None
    }
    return timedelta(**amounts)


def _interval(value: Any) -> Any:
    interval = _duration(value)
    if not interval or interval % timedelta(seconds=10):
        raise ValueError(f"found {value!r}, expected a multiple of 10s")
    return interval


def _plain(value: Any) -> Any:
    if isinstance(value, str) and "{{" in value:
        raise ValueError(f"found the template {value!r}: templates are known in annotations only")
    return value


def _annotation(value: Any) -> Any:
    if isinstance(value, str) and "{{" in _PLACEHOLDER.sub("", value):
        raise ValueError(
            f"found {value!r}: only {{{{ $labels.x }}}} and {{{{ $values.B.Value }}}} are known"
        )
    return value


def _query(value: Any) -> Any:
    if isinstance(value, str) and "$__" in value:
        raise ValueError("Grafana's macros ($__timeFilter and the like) are not known")
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
PlainText = Annotated[str, BeforeValidator(_plain)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Model(_Part):
    """Keys that Grafana's own export adds to every query and that change nothing."""

    refId: str
    datasource: dict[str, Any] | None = None
    intervalMs: int | None = None
    maxDataPoints: int | None = None
    hide: Literal[False] = False


class _QueryModel(_Model):
    format: Literal["time_series"]
    rawQuery: Literal[True]
    editorMode: Literal["code"] = "code"
    rawSql: Annotated[str, BeforeValidator(_query)]


class _ReduceSettings(_Part):
    mode: Literal["dropNN"]


class _ReduceModel(_Model):
    type: Literal["reduce"]
    expression: str
    reducer: Literal["last", "min", "max"]
    settings: _ReduceSettings


class _Evaluator(_Part):
    type: Literal["gt", "lt"]
    params: Annotated[list[float], Field(min_length=1, max_length=1, strict=False)]


class _Condition(_Part):
    evaluator: _Evaluator


class _ThresholdModel(_Model):
    type: Literal["threshold"]
    expression: str
    conditions: Annotated[list[_Condition], Field(min_length=1, max_length=1)]


class _TimeRange(_Part):
    """Only queries with a macro look at it, and these are refused."""

    from_: int = Field(alias="from")
    to: int


class _Step(_Part):
    refId: str
    datasourceUid: str
    relativeTimeRange: _TimeRange | None = None
    model: dict[str, Any]


class _NotificationSettings(_Part):
    receiver: str
    group_by: list[str] = ["grafana_folder", "alertname"]
    group_wait: Duration = timedelta(seconds=30)
    group_interval: Duration = timedelta(minutes=5)
    repeat_interval: Duration = timedelta(hours=4)


class _RulePart(_Part):
    uid: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,40}$")
    title: PlainText
    condition: str
    data: list[_Step]
    for_: Annotated[Duration, Field(alias="for")] = timedelta(0)
    # Grafana's own defaults, NoData and Error or Alerting, send further alerts: say what is meant.
    noDataState: Literal["OK", "KeepLast", "Alerting"]
    execErrState: Literal["OK", "KeepLast", "Alerting"]
    labels: dict[str, PlainText] = {}
    annotations: dict[str, Annotated[str, BeforeValidator(_annotation)]] = {}
    isPaused: bool = False
    notification_settings: _NotificationSettings


class _Group(_Part):
    orgId: Literal[1] = 1
    name: str
    folder: str
    interval: Annotated[timedelta, BeforeValidator(_interval)]
    rules: list[_RulePart]


class _WebhookSettings(_Part):
    url: str
    httpMethod: Literal["POST"] = "POST"
    authorization_scheme: Literal["Bearer"]
    authorization_credentials: str
    maxAlerts: Literal["0"] = "0"


class _Receiver(_Part):
    uid: str
    type: Literal["webhook"]
    disableResolveMessage: bool = False
    settings: _WebhookSettings


class _ContactPoint(_Part):
    orgId: Literal[1] = 1
    name: str
    receivers: Annotated[list[_Receiver], Field(min_length=1, max_length=1)]


class _File(_Part):
    apiVersion: Literal[1]
    groups: list[_Group] = []
    contactPoints: list[_ContactPoint] = []
    deleteRules: list[Any] = []  # what Grafana is to forget, the evaluator never knew
    deleteContactPoints: list[Any] = []


class _TitledRule(BaseModel):
    """As much of a rule as tells its alerts, whatever else the file says."""

    title: str
    isPaused: bool = False


class _TitledGroup(BaseModel):
    rules: list[_TitledRule]


class _TitledFile(BaseModel):
    groups: list[_TitledGroup] | None = None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UnsupportedRuleError(f"{folder}: no such folder, so there are no alert rules")
    return sorted(path for path in folder.iterdir() if path.suffix in {".yaml", ".yml"})


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UnsupportedRuleError(f"{path}: cannot be read: {error}") from error


def _read(path: Path) -> _File:
    file: _File = _validate(_File, _parse(path), path, "")
    return file


def _validate(model: type[Any], content: Any, path: Path, place: str) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [f"{path}: says what the alert evaluator does not know"]
        for each in error.errors():
            where = ".".join(str(step) for step in (*filter(None, [place]), *each["loc"])) or "file"
            if each["type"] == "extra_forbidden":
                lines.append(f"  {where}: this key")
            elif each["type"] == "missing":
                lines.append(f"  {where}: missing")
            else:
                message = each["msg"].removeprefix("Value error, ")
                found = repr(each["input"])
                lines.append(
                    f"  {where}: {message}"
                    + ("" if found in message or len(found) > 80 else f" (found {found})")
                )
        raise UnsupportedRuleError("\n".join(lines)) from None


def _rules(content: _File, path: Path, environment: Mapping[str, str]) -> list[Rule]:
    rules = []
    for group in content.groups:
        for part in group.rules:
            if part.isPaused:
                continue
            try:
                rules.append(_rule(group, part, path, environment))
            except UnsupportedRuleError:
                raise
            except ValueError as error:
                raise UnsupportedRuleError(f"{path}: rule {part.title!r}: {error}") from None
    return rules


def _rule(group: _Group, part: _RulePart, path: Path, environment: Mapping[str, str]) -> Rule:
    place = f"rule {part.title!r}"
    steps = {step.refId: step for step in part.data}
    if len(part.data) != 3 or len(steps) != 3:
        raise ValueError(
            f"{len(part.data)} steps; known are three: a query, its reduction and a threshold"
        )
    last = _step(steps, part.condition)
    threshold = _expression(_ThresholdModel, last, path, place)
    middle = _step(steps, threshold.expression)
    reduction = _expression(_ReduceModel, middle, path, place)
    first = _step(steps, reduction.expression)
    if first.datasourceUid != DATA_SOURCE:
        raise ValueError(
            f"step {first.refId}: data source {first.datasourceUid!r}; known is {DATA_SOURCE!r}"
        )
    query = _validate(_QueryModel, first.model, path, f"{place}.{first.refId}")
    notify = part.notification_settings
    if "..." in notify.group_by:
        raise ValueError("notification_settings.group_by: '...' is not known")
    return Rule(
        uid=part.uid,
        title=expand(part.title, environment),
        folder=expand(group.folder, environment),
        interval=group.interval,
        lasting=part.for_,
        sql=query.rawSql,
        reducer=reduction.reducer,
        comparison=threshold.conditions[0].evaluator.type,
        threshold=threshold.conditions[0].evaluator.params[0],
        reduced=middle.refId,
        compared=last.refId,
        no_data_state=part.noDataState,
        error_state=part.execErrState,
        labels={name: expand(text, environment) for name, text in part.labels.items()},
        annotations=dict(part.annotations),  # Grafana fills in no variables here
        receiver=expand(notify.receiver, environment),
        group_by=tuple(sorted({*notify.group_by, "alertname", "grafana_folder"})),
        group_wait=notify.group_wait,
        group_interval=notify.group_interval,
        repeat_interval=notify.repeat_interval,
        file=path,
    )


def _step(steps: Mapping[str, _Step], ref_id: str) -> _Step:
    if ref_id not in steps:
        raise ValueError(f"step {ref_id!r} is named, and there are {', '.join(sorted(steps))}")
    return steps[ref_id]


def _expression(model: type[Any], step: _Step, path: Path, place: str) -> Any:
    if step.datasourceUid != _EXPRESSION:
        raise ValueError(f"step {step.refId}: expected an expression ({_EXPRESSION})")
    return _validate(model, step.model, path, f"{place}.{step.refId}")


def _webhooks(content: _File, path: Path, environment: Mapping[str, str]) -> list[Webhook]:
    try:
        return [
            Webhook(
                name=expand(point.name, environment),
                url=expand(point.receivers[0].settings.url, environment),
                token=expand(point.receivers[0].settings.authorization_credentials, environment),
                send_resolved=not point.receivers[0].disableResolveMessage,
            )
            for point in content.contactPoints
        ]
    except ValueError as error:
        raise UnsupportedRuleError(f"{path}: contact points: {error}") from None


def _check_unique(rules: list[Rule]) -> None:
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.uid in seen:
            raise UnsupportedRuleError(
                f"{rule.file}: rule uid {rule.uid!r} stands in {seen[rule.uid].file} already"
            )
        seen[rule.uid] = rule
