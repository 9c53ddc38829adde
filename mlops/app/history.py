"""What the page *Models* shows, read from Postgres: trainings, versions, retrains, alerts, months.

It only reads (role `grafana`), asks in one transaction, so that the tables agree with one another,
and never draws. Row counts are bounded: a page is not an archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.registry.holds import Hold, active_hold

#: Rows of each history that are read, the latest first.
LIMIT = 200

#: Decisions of the gate that are read: as many as a picture can hold.
DECISIONS = 20


@dataclass(frozen=True)
class History:
    """One look at the life of a card's models; every frame may be empty (0 rows, all columns).

    `training` is the latest finished training (a row of `ops.trainings` with its leaderboard),
    `under_way` the ids of trainings that have started since and not finished. Times are UTC,
    `period` is the first day of its month. `deployments` and `months` run from old to new,
    `retrains`, `alerts`, `states`, `lives` (rows of `ops.version_history`, without the gate's JSON)
    and `decisions` (of the gate, `numbers` a dict) from new to old. `hold` stands now, or is None.
    """

    training: dict[str, Any] | None
    under_way: list[str]
    deployments: pd.DataFrame
    retrains: pd.DataFrame
    alerts: pd.DataFrame
    states: pd.DataFrame
    months: pd.DataFrame
    lives: pd.DataFrame
    decisions: pd.DataFrame
    hold: Hold | None

    @property
    def champion(self) -> dict[str, Any] | None:
        """Return the deployment that is in production, None before the first."""
        current = self.deployments[self.deployments["retired_at"].isna()]
        return _last(current)

    def leaderboard(self) -> pd.DataFrame:
        """Return the latest leaderboard, best first: candidate, version, and a column a metric.

        `reason` says why a candidate could not be fitted, None for the others; it stands last,
        without version and metrics.
        """
        entries = (self.training or {}).get("leaderboard") or []
        rows = [
            {
                "candidate": entry.get("candidate"),
                "version": entry.get("version"),
                "reason": entry.get("reason") if entry.get("status") == "failed" else None,
                **(entry.get("metrics") or {}),
            }
            for entry in entries
        ]
        return pd.DataFrame(rows, columns=None if rows else ["candidate", "version", "reason"])


def read_history(connection: Connection, card: str) -> History:
    """Return the history of the card named `card`.

    Months and alert states carry no card: a stack serves one card at a time.
    """

    def read(sql: str, *values: Any) -> pd.DataFrame:
        with connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(sql, values)
            names = [column.name for column in cursor.description or []]
            return pd.DataFrame([dict(row) for row in cursor.fetchall()], columns=names)

    trainings = read(
        "SELECT id, cause, window_start, window_end, started_at, finished_at, leaderboard"
        " FROM ops.trainings WHERE card = %s AND finished_at IS NOT NULL"
        " ORDER BY finished_at DESC LIMIT 1",
        card,
    )
    training = _last(trainings)
    under_way = read(
        "SELECT id FROM ops.trainings WHERE card = %s AND finished_at IS NULL"
        " AND started_at > coalesce(%s, '-infinity'::timestamptz) ORDER BY started_at",
        card,
        training["started_at"] if training else None,
    )
    deployments = read(
        "SELECT model_version, candidate, cause, training_id, deployed_at, retired_at, began"
        " FROM ops.deployments WHERE card = %s ORDER BY deployed_at DESC LIMIT %s",
        card,
        LIMIT,
    )
    retrains = read(
        "SELECT id, started_at, finished_at, cause, outcome, champion, challenger, champion_score,"
        " challenger_score, reason, gate ->> 'reason' AS gate_reason"
        " FROM ops.retrains WHERE card = %s ORDER BY started_at DESC LIMIT %s",
        card,
        LIMIT,
    )
    alerts = read(
        "SELECT received_at, starts_at, rule, status, body -> 'labels' AS labels, decision,"
        " handled_at, retrain, repeats FROM ops.alerts ORDER BY received_at DESC LIMIT %s",
        LIMIT,
    )
    states = read(
        "SELECT rule_uid, labels, state, value, active_at, fired_at, resolved_at, evaluated_at"
        " FROM ops.alert_states ORDER BY state = 'normal', evaluated_at DESC, rule_uid LIMIT %s",
        LIMIT,
    )
    months = read(
        "SELECT model_version, period, row_count, prediction_drift, num_drifted_columns,"
        " share_drifted_columns, share_missing_values, roc_auc, brier, positive_rate, update_time"
        " FROM grafana.evidently_metrics ORDER BY period DESC, model_version LIMIT %s",
        LIMIT,
    )
    lives = read(
        "SELECT model_version, candidate, rank, training_cause, retrain, alert, retrain_cause,"
        " window_start, window_end, fitted_rows, fitted_positives, trained_at, validation_roc_auc,"
        " stay, began, began_because, production_from, production_until, retired_by, gate_promote,"
        " gate_rule, gate_reason, gate_roc_auc, gate_champion, gate_champion_roc_auc,"
        " roc_auc_difference, roc_auc_low, roc_auc_high, brier_difference"
        " FROM ops.version_history WHERE card = %s"
        " ORDER BY coalesce(production_from, trained_at) DESC, rank DESC NULLS LAST LIMIT %s",
        card,
        LIMIT,
    )
    decisions = read(
        "SELECT id, challenger, champion, cause, promote, reason, numbers, decided_at"
        " FROM ops.gate_decisions WHERE card = %s ORDER BY id DESC LIMIT %s",
        card,
        DECISIONS,
    )
    months["period"] = pd.to_datetime(months["period"])
    return History(
        training=training,
        under_way=list(under_way["id"]),
        deployments=deployments.iloc[::-1].reset_index(drop=True),
        retrains=retrains,
        alerts=alerts,
        states=states,
        months=months.iloc[::-1].reset_index(drop=True),
        lives=lives,
        decisions=decisions,
        hold=active_hold(connection, card),
    )


def labels_in_words(labels: Any) -> str:
    """Return an alert's labels on one line, without the ones that every alert carries."""
    if not isinstance(labels, dict):
        return ""
    usual = {"alertname", "grafana_folder", "rule_uid"}
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in labels.items()
        if name not in usual and not name.startswith("__")
    )


def _last(frame: pd.DataFrame) -> dict[str, Any] | None:
    return None if frame.empty else {str(key): value for key, value in frame.iloc[-1].items()}
