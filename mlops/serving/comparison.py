"""What a shadow's scores say beside the champion's, month by month; measures and never decides.

Both are measured on the same rows: those of the log that the champion has answered and the shadow
has scored, by month and by who answered. A month is measured anew when rows or labels have come.

A month that one of the two has learnt from says nothing of which is better: its labels are left
out, so that it has neither a ROC AUC nor an interval, and it says who knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor
from scipy.stats import wasserstein_distance

from mlops.database import connect
from mlops.dataset.card import Card, Costs
from mlops.dataset.timeline import month_start, period_of
from mlops.serving.shadow import score_shadow
from mlops.settings import Settings, get_settings
from mlops.training.bootstrap import bootstrap
from mlops.training.metrics import PROFIT_ROWS, brier, expected_profit, roc_auc

INTERVAL_ROWS = 10_000
"""Labelled rows, drawn by chance, that a month is judged on: value and interval of the same rows.
Of a larger month the interval is wider than it need be."""

RESAMPLES = 500
"""A second for INTERVAL_ROWS rows; the gate, which decides once, takes more."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ShadowMonth:
    """A shadow beside who answered, on the same rows of a month: `grafana.shadow_comparison`.

    What has no prefix is the shadow's. `_low` and `_high` bound the shadow's measure less the
    champion's: the quantiles 1 - `gate_confidence` and `gate_confidence` of paired resamples, as at
    the gate. None where there is nothing to measure.
    """

    model_version: str
    champion: str
    period: str
    row_count: int
    refused_count: int
    labelled_count: int
    labels_until: datetime | None
    threshold: float | None
    champion_threshold: float | None
    known_to_shadow: bool = False
    """It was fitted on labels of this month: nothing is measured of them."""
    known_to_champion: bool = False
    mean_score: float | None = None
    champion_mean_score: float | None = None
    correlation: float | None = None
    """Pearson's, of the scores."""
    score_distance: float | None = None
    """Wasserstein distance of the scores, in standard deviations of the champion's."""
    changed_share: float | None = None
    """Share (0..1) of rows that are decided otherwise, each version at its own threshold."""
    positive_rate: float | None = None
    roc_auc: float | None = None
    champion_roc_auc: float | None = None
    roc_auc_low: float | None = None
    roc_auc_high: float | None = None
    brier: float | None = None
    champion_brier: float | None = None
    brier_low: float | None = None
    brier_high: float | None = None
    profit: float | None = None
    """In the card's unit per 1,000 labelled rows; None without costs or a threshold."""
    champion_profit: float | None = None
    profit_low: float | None = None
    profit_high: float | None = None


def follow_shadow(
    card: Card,
    progress: Callable[[str], object] = print,
    settings: Settings | None = None,
) -> list[ShadowMonth]:
    """Have whoever is in shadow score what waits, and return the comparison; empty if nobody is.

    In transactions of its own, and what goes wrong is said, never raised: whoever measures the
    champion needs no shadow for it.
    """
    settings = settings or get_settings()
    try:
        with connect(settings=settings) as connection:
            scored = score_shadow(connection, card, settings, progress)
            if scored.version is None:
                return []
            months = compare_shadow(connection, card, scored.version, settings)
    except Exception as fault:
        progress(f"note: the shadow does not follow: {fault}")
        return []
    for month in months:
        progress(in_words(month))
    return months


def in_words(month: ShadowMonth) -> str:
    """Return a month's comparison as a line, for logs."""
    knows = [
        version
        for version, knows in (
            (month.model_version, month.known_to_shadow),
            (month.champion, month.known_to_champion),
        )
        if knows
    ]
    text = (
        f"{month.period}, version {month.model_version} in the shadow of {month.champion}: "
        f"{month.row_count:,} rows"
    )
    if month.changed_share is not None:
        text += f", {month.changed_share:.1%} decided otherwise"
    if knows:
        text += f"; not judged: fitted on by version {' and '.join(knows)}"
    if month.roc_auc is not None and month.champion_roc_auc is not None:
        text += f", ROC AUC {month.roc_auc:.3f} against {month.champion_roc_auc:.3f}"
    if month.roc_auc_low is not None:
        text += f" ({month.roc_auc_low:+.3f} to {month.roc_auc_high:+.3f})"
    return text


def compare_shadow(
    connection: Connection, card: Card, version: str, settings: Settings | None = None
) -> list[ShadowMonth]:
    """Return what a version scored in shadow beside who answered, oldest month first.

    Months whose rows, labels or thresholds have changed are measured anew and stored; what the log
    has forgotten is forgotten. The caller commits.
    """
    settings = settings or get_settings()
    known = {(each.champion, each.period): each for each in _stored(connection, version)}
    months = []
    for now in _present(connection, card, version, settings):
        before = known.pop((now.champion, now.period), None)
        if before is None or not _same_rows(before, now):
            before = _measure(connection, now, card, settings)
            _store(connection, before)
        months.append(before)
    for champion, period in known:
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM grafana.shadow_comparison"
                " WHERE model_version = %s AND champion = %s AND period = %s",
                (version, champion, month_start(period)),
            )
    return sorted(months, key=lambda month: (month.period, int(month.champion)))


def measure_pair(
    shadow: _Array,
    champion: _Array,
    label: _Array,
    *,
    threshold: float | None,
    champion_threshold: float | None,
    costs: Costs | None,
    confidence: float,
    resamples: int,
) -> dict[str, Any]:
    """Return the measures of `ShadowMonth` for two versions' scores of the same n rows.

    `label` is 0, 1 or NaN where none has come. Of more than INTERVAL_ROWS rows with a label as many
    are drawn by chance, and what needs labels is measured of them: value and interval are of the
    same rows. The same rows in the same order give the same.
    """
    measured: dict[str, Any] = {
        "mean_score": float(shadow.mean()),
        "champion_mean_score": float(champion.mean()),
    }
    # Not by the standard deviation, which rounds to more than 0 where all scores are alike.
    if np.ptp(champion) > 0:
        distance = wasserstein_distance(champion, shadow) / champion.std()
        measured["score_distance"] = float(distance)
        if np.ptp(shadow) > 0:
            measured["correlation"] = float(np.corrcoef(shadow, champion)[0, 1])
    more = None
    if threshold is not None and champion_threshold is not None:
        # 1 where only the shadow says yes, -1 where only the champion does.
        more = (shadow >= threshold).astype(np.int8) - (champion >= champion_threshold)
        measured["changed_share"] = float(np.mean(more != 0))
    known = np.flatnonzero(~np.isnan(label))
    if not len(known):
        return measured
    if len(known) > INTERVAL_ROWS:
        known = np.random.default_rng(0).choice(known, INTERVAL_ROWS, replace=False)
    target = label[known].astype(np.int8)
    ours, theirs = shadow[known], champion[known]
    measured |= {
        "positive_rate": float(target.mean()),
        "brier": brier(target, ours),
        "champion_brier": brier(target, theirs),
    }
    if target.min() != target.max():
        measured |= {"roc_auc": roc_auc(target, ours), "champion_roc_auc": roc_auc(target, theirs)}
        drawn = bootstrap(target, (ours, theirs), resamples)
        for name, values in (("roc_auc", drawn.roc_auc), ("brier", drawn.brier)):
            measured |= _bounds(name, values[0] - values[1], confidence)
    if more is not None and costs is not None:
        assert threshold is not None
        assert champion_threshold is not None
        measured |= {
            "profit": expected_profit(target, ours, threshold, costs),
            "champion_profit": expected_profit(target, theirs, champion_threshold, costs),
        }
        drawn_profit = _profit_differences(target, more[known], costs, resamples)
        measured |= _bounds("profit", drawn_profit, confidence)
    return measured


def _bounds(name: str, differences: _Array, confidence: float) -> dict[str, float]:
    low, high = np.quantile(differences, (1 - confidence, confidence))
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def _profit_differences(
    target: NDArray[Any], more: NDArray[Any], costs: Costs, resamples: int
) -> _Array:
    """Return the difference of profit in each stratified resample of the rows.

    `more` is 1 where only the shadow contacts, -1 where only the champion does, else 0. How often
    each of the three is drawn is all that counts, so the counts are drawn.
    """
    random = np.random.default_rng(0)
    gained = np.zeros(resamples)
    for answer, worth in ((1, costs.success - costs.contact), (0, -costs.contact)):
        here = more[target == answer]
        if len(here):
            shares = np.array([np.mean(here == kind) for kind in (1, -1, 0)])
            counts = random.multinomial(len(here), shares / shares.sum(), resamples)
            gained += worth * (counts[:, 0] - counts[:, 1])
    return PROFIT_ROWS * gained / len(target)


def _present(
    connection: Connection, card: Card, version: str, settings: Settings
) -> list[ShadowMonth]:
    """Return each month as far as counting tells it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT made.model_version, made.period, count(scored.probability),"
            " count(scored.refused),"
            " count(made.label) FILTER (WHERE scored.probability IS NOT NULL),"
            " max(made.labelled_at) FILTER (WHERE scored.probability IS NOT NULL)"
            " FROM serving.shadow_predictions AS scored"
            " JOIN serving.predictions AS made USING (request_id, row)"
            " WHERE scored.model_version = %s GROUP BY made.model_version, made.period",
            (version,),
        )
        rows = cursor.fetchall()
    learnt = {
        each: fitted_on(connection, card, each, settings)
        for each in {version, *(champion for champion, *_ in rows)}
    }
    months = [
        ShadowMonth(
            version,
            champion,
            period_of(period),
            row_count,
            refused_count,
            labelled_count,
            labels_until,
            threshold_of(version, settings),
            threshold_of(champion, settings),
        )
        for champion, period, row_count, refused_count, labelled_count, labels_until in rows
    ]
    return [
        replace(
            month,
            known_to_shadow=_is_known(month.period, learnt[version]),
            known_to_champion=_is_known(month.period, learnt[month.champion]),
        )
        for month in months
    ]


def fitted_on(
    connection: Connection, card: Card, version: str, settings: Settings
) -> tuple[str, str] | None:
    """Return first and last period of the window that a version was trained on.

    That is `fitting_periods` of its run, as the training's row has it; of a training that was
    killed before its leaderboard was written, as its payload has it. None if neither is there.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT window_start, window_end FROM ops.trainings WHERE card = %s"
            " AND leaderboard @> jsonb_build_array(jsonb_build_object('version', %s::text))",
            (card.name, version),
        )
        row = cursor.fetchone()
    if row is not None:
        return period_of(row[0]), period_of(row[1])
    described = _described(version, settings)
    if described is None:
        return None
    training = described["training"]
    return str(training["window_start"]), str(training["window_end"])


def _is_known(period: str, window: tuple[str, str] | None) -> bool:
    return window is not None and window[0] <= period <= window[1]


def _same_rows(before: ShadowMonth, now: ShadowMonth) -> bool:
    """Return whether nothing has come since that could change what was measured."""
    counted = ("row_count", "refused_count", "labelled_count", "labels_until")
    thresholds = ("threshold", "champion_threshold")
    learnt = ("known_to_shadow", "known_to_champion")
    names = (*counted, *thresholds, *learnt)
    return all(getattr(before, name) == getattr(now, name) for name in names)


def threshold_of(version: str, settings: Settings) -> float | None:
    """Return the score at which a version decides positively; None if its payload is gone."""
    described = _described(version, settings)
    return None if described is None else float(described["threshold"])


def _described(version: str, settings: Settings) -> dict[str, Any] | None:
    """Return `model.json` of a version's payload, None if it is gone."""
    try:
        content = (settings.payloads_dir / version / "model.json").read_bytes()
    except FileNotFoundError:
        return None
    described: dict[str, Any] = orjson.loads(content)
    return described


def _measure(
    connection: Connection, month: ShadowMonth, card: Card, settings: Settings
) -> ShadowMonth:
    shadow, champion, label = _load(connection, month)
    if not len(shadow):
        return month
    if month.known_to_shadow or month.known_to_champion:
        label = np.full(len(label), np.nan)
    measured = measure_pair(
        shadow,
        champion,
        label,
        threshold=month.threshold,
        champion_threshold=month.champion_threshold,
        costs=card.costs,
        confidence=settings.gate_confidence,
        resamples=RESAMPLES,
    )
    return ShadowMonth(**{**asdict(month), **measured})


def _load(connection: Connection, month: ShadowMonth) -> tuple[_Array, _Array, _Array]:
    """Return shadow's scores, champion's scores and labels (NaN: none yet), in the log's order."""
    with connection.cursor(name="shadow_pairs") as cursor:
        cursor.itersize = 10_000
        cursor.execute(
            "SELECT scored.probability, made.probability,"
            " coalesce(made.label::float8, 'NaN'::float8)"
            " FROM serving.shadow_predictions AS scored"
            " JOIN serving.predictions AS made USING (request_id, row)"
            " WHERE scored.model_version = %s AND made.model_version = %s AND made.period = %s"
            " AND scored.probability IS NOT NULL ORDER BY request_id, row",
            (month.model_version, month.champion, month_start(month.period)),
        )
        values: _Array = np.fromiter(cursor, dtype=np.dtype((np.float64, 3)))
    return values[:, 0], values[:, 1], values[:, 2]


def _stored(connection: Connection, version: str) -> list[ShadowMonth]:
    names = [each.name for each in fields(ShadowMonth)]
    statement = sql.SQL("SELECT {} FROM grafana.shadow_comparison WHERE model_version = %s").format(
        sql.SQL(", ").join(map(sql.Identifier, names))
    )
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(statement, (version,))
        rows = cursor.fetchall()
    return [ShadowMonth(**{**row, "period": period_of(row["period"])}) for row in rows]


def _store(connection: Connection, month: ShadowMonth) -> None:
    values = {**asdict(month), "period": month_start(month.period)}
    names: Sequence[str] = list(values)
    statement = sql.SQL(
        "INSERT INTO grafana.shadow_comparison ({columns}, update_time)"
        " VALUES ({values}, clock_timestamp())"
        " ON CONFLICT (model_version, champion, period) DO UPDATE"
        " SET ({columns}, update_time) = ({excluded}, excluded.update_time)"
    ).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(map(sql.Placeholder, names)),
        excluded=sql.SQL(", ").join(sql.Identifier("excluded", name) for name in names),
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
