"""Whether rows are fit to be learnt from; never reads a table, never changes or drops a row.

A file is checked when it is read (`parsing`), but a training also learns labelled predictions:
they hold whatever clients have sent, and the labels that have come so far. So each window is
checked once more, as a whole, before anything is fitted. What is found is *refused* or *warned* of;
limits are settings (`quality_*`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mlops.dataset.card import PERIOD, TARGET, Card, Feature
from mlops.dataset.timeline import add_months, month_start
from mlops.dataset.windows import validation_periods
from mlops.settings import Settings, get_settings

Severity = Literal["refuse", "warn"]

LABEL_COLUMNS = ("answered", "labelled", "labelled_score", "unlabelled_score", "score_std")

SUSPICIOUS_AUC = 0.925
"""ROC AUC of one feature from which a person should look: a normed Gini of 0.85, which DataRobot's
leakage check calls a moderate risk too (its high risk, 0.975, is a ROC AUC of 0.9875)."""

EVENTS_PER_FEATURE = 10
"""Rows of the rarer answer for each feature below which a fit is unstable (Peduzzi et al. 1996)."""

FEWEST_TO_COMPARE = 50
"""Rows of a month below which its shares are chance; as many end a window (`rows.FEWEST_ROWS`)."""

_SURE = 4.0  # standard errors: 6 of 100,000 by chance, so no false finding in years of retrains
_SMALL_EFFECT = 0.2  # standardised difference of means (Cohen 1988)
_FOLDS = 5
_BINS = 50
_ENCODED_ROWS_LEAST = 20  # of each answer, for a ROC AUC that means anything


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a window: `numbers` are what was found and what is accepted.

    `column` is None where it is not about one feature. Shares are 0..1.
    """

    check: str
    severity: Severity
    message: str
    column: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, for `ops.data_checks`."""
        return asdict(self)


def refused(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that stop a training."""
    return [finding for finding in findings if finding.severity == "refuse"]


def findings_text(findings: Sequence[Finding]) -> str:
    """Return the findings one a line, the worst first, for logs."""
    if not findings:
        return "data quality: nothing found"
    lines = [f"data quality: {len(refused(findings))} refused, {len(findings)} found"]
    lines += [f"  {finding.severity:<6} {finding.message}" for finding in findings]
    return "\n".join(lines)


def check_window(
    frame: pd.DataFrame,
    card: Card,
    settings: Settings | None = None,
    labels: pd.DataFrame | None = None,
) -> list[Finding]:
    """Return what is wrong with the rows of a training, the worst first; an empty list if nothing.

    `frame` is as `load_window` returns it: features, `target`, `period`. `labels` is what
    `label_arrivals` returns, one row a period (index) with LABEL_COLUMNS; without it the delay of
    labels is not checked. 30,000 rows of 11 features take about 0.3 s.

    Raises nothing for bad data, whatever it holds: all of it becomes findings.
    """
    settings = settings or get_settings()
    if frame.empty:
        return [Finding("too_few_rows", "refuse", "found no row, expected some")]
    findings, usable = _schema(frame, card)
    if not {TARGET, PERIOD} <= usable:
        return _sorted(findings)
    features = [feature for feature in card.features if feature.name in usable]
    frame = frame.reset_index(drop=True)
    findings += _amount(frame, card, settings)
    findings += _ranges(frame, features, settings)
    findings += _missing(frame, features, settings)
    findings += _duplicates(frame, card, features, settings)
    findings += _leakage(frame, card, features, settings)
    if labels is not None:
        findings += _label_delay(frame, labels, card, settings)
    return _sorted(findings)


def is_missing(series: pd.Series) -> pd.Series:
    """Return which values are missing: NaN in numbers, "" in categories."""
    if pd.api.types.is_numeric_dtype(series):
        return series.isna()
    return series.isna() | series.eq("")


# ---- Schema: columns and kinds, as the card says ------------------------------------------------


def _schema(frame: pd.DataFrame, card: Card) -> tuple[list[Finding], set[str]]:
    """Return findings, and the columns that are of the kind that the other checks rely on."""
    findings: list[Finding] = []
    usable: set[str] = set()

    def refuse(message: str, column: str, **numbers: Any) -> None:
        findings.append(Finding("schema", "refuse", message, column, numbers))

    for feature in card.features:
        name = feature.name
        if name not in frame.columns:
            refuse(f"{name}: the column is not there, and the card names it", name)
            continue
        series = frame[name]
        if feature.kind == "number":
            if not pd.api.types.is_numeric_dtype(series) or series.dtype == bool:
                refuse(f"{name}: found {series.dtype}, expected numbers", name)
                continue
            infinite = int(np.isinf(series.to_numpy(dtype=np.float64, na_value=np.nan)).sum())
            if infinite:
                refuse(
                    f"{name}: {infinite:,} value(s) are infinite, expected finite numbers",
                    name,
                    rows=infinite,
                )
                continue
        else:
            texts = pd.api.types.infer_dtype(series, skipna=False) in ("string", "empty")
            others = series[[]] if texts else series[[not isinstance(v, str) for v in series]]
            if len(others):
                refuse(
                    f"{name}: {len(others):,} value(s) are no text, such as {others.iloc[0]!r}",
                    name,
                    rows=len(others),
                )
                continue
        usable.add(name)
    for name in frame.columns:
        if name not in (*card.feature_names, TARGET, PERIOD):
            refuse(f"{name}: no column of the card, which names all that may be learnt", str(name))
    if TARGET not in frame.columns or not frame[TARGET].isin([0, 1]).all():
        refuse(f"{TARGET}: expected 0 and 1 in every row", TARGET)
    else:
        usable.add(TARGET)
    wrong = [p for p in frame[PERIOD].unique() if not _is_period(p)] if PERIOD in frame else [""]
    if wrong:
        refuse(f"{PERIOD}: found {wrong[0]!r}, expected year and month, like 2009-03", PERIOD)
    else:
        usable.add(PERIOD)
    return findings, usable


def _is_period(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(month_start(value))
    except ValueError:
        return False


# ---- Amount: enough rows of both answers --------------------------------------------------------


def _amount(frame: pd.DataFrame, card: Card, settings: Settings) -> list[Finding]:
    rows, positives = len(frame), int(frame[TARGET].sum())
    rarer = min(positives, rows - positives)
    numbers = {"rows": rows, "positives": positives}
    if rows < settings.quality_min_rows:
        return [
            Finding(
                "too_few_rows",
                "refuse",
                f"found {rows:,} rows, expected {settings.quality_min_rows:,} or more: bring "
                "more rows, widen the window (MLOPS_RETRAIN_WINDOW_MONTHS), or wait for labels",
                numbers={**numbers, "limit": settings.quality_min_rows},
            )
        ]
    if rarer == 0:
        answer = card.target.positive if positives else card.target.negative
        return [
            Finding(
                "one_class",
                "refuse",
                f"all {rows:,} rows have the answer {answer!r}: there is nothing to tell apart",
                numbers=numbers,
            )
        ]
    least = settings.quality_min_class_rows
    stable = EVENTS_PER_FEATURE * len(card.features)
    if rarer >= stable:
        return []
    refuse = rarer < least
    return [
        Finding(
            "too_few_rows",
            "refuse" if refuse else "warn",
            f"the rarer answer has {rarer:,} rows, expected {least if refuse else stable:,} or more"
            + ("" if refuse else f" ({EVENTS_PER_FEATURE} for each feature): the fit is unstable"),
            numbers={**numbers, "limit": least if refuse else stable},
        )
    ]


# ---- Ranges: what can be true at all ------------------------------------------------------------


def _ranges(frame: pd.DataFrame, features: Sequence[Feature], settings: Settings) -> list[Finding]:
    findings = []
    for feature in features:
        if feature.kind != "number":
            continue
        values = frame[feature.name].to_numpy(dtype=np.float64)
        known = values[~np.isnan(values)]
        low = -np.inf if feature.minimum is None else feature.minimum
        high = np.inf if feature.maximum is None else feature.maximum
        for wrong, expected in (
            (known[(known < low) | (known > high)], f"{low:g} to {high:g}"),
            (known[known != np.rint(known)] if feature.integer else known[:0], "whole numbers"),
        ):
            if not len(wrong):
                continue
            share = len(wrong) / len(values)
            limit = settings.quality_out_of_range_share
            findings.append(
                Finding(
                    "range",
                    "refuse" if share > limit else "warn",
                    f"{feature.name}: {len(wrong):,} of {len(values):,} rows ({share:.2%}) hold "
                    f"what cannot be, such as {wrong[0]:g}; the card expects {expected}"
                    + (f" (accepted: {limit:.2%})" if share > limit else ""),
                    feature.name,
                    {"rows": len(wrong), "share": share, "limit": limit, "example": wrong[0]},
                )
            )
    return findings


# ---- Missing values -----------------------------------------------------------------------------


def _missing(frame: pd.DataFrame, features: Sequence[Feature], settings: Settings) -> list[Finding]:
    findings = []
    limit = settings.quality_missing_share
    periods = sorted(frame[PERIOD].unique())
    of_period = frame[PERIOD].to_numpy()
    for feature in features:
        missing = is_missing(frame[feature.name]).to_numpy()
        known_from = feature.empty_until and add_months(feature.empty_until, 1)
        counted = of_period >= known_from if known_from else np.ones(len(frame), bool)
        if counted.any() and (share := float(missing[counted].mean())) > limit:
            findings.append(
                Finding(
                    "missing",
                    "refuse",
                    f"{feature.name}: {share:.1%} of {int(counted.sum()):,} rows hold no value, "
                    f"accepted are {limit:.1%}: leave it out of the card, or mend its source",
                    feature.name,
                    {"share": share, "rows": int(counted.sum()), "limit": limit},
                )
            )
            continue
        worst = _worst_rise(missing, of_period, periods)
        if worst is None:
            continue
        period, share, before, rows = worst
        refuse = share - before > settings.quality_missing_rise
        if not refuse and share - before <= settings.quality_missing_rise / 2:
            continue
        findings.append(
            Finding(
                "missing_rise",
                "refuse" if refuse else "warn",
                f"{feature.name}: {share:.1%} of the {rows:,} rows of {period} hold no value, "
                f"{before:.1%} of the months before it"
                + (
                    f"; a rise above {settings.quality_missing_rise:.0%} is a fault of a source, "
                    "not a habit of customers"
                    if refuse
                    else ""
                ),
                feature.name,
                {
                    "period": period,
                    "rows": rows,
                    "share": share,
                    "share_before": before,
                    "limit": settings.quality_missing_rise,
                },
            )
        )
    return findings


def _worst_rise(
    missing: np.ndarray, of_period: np.ndarray, periods: Sequence[str]
) -> tuple[str, float, float, int] | None:
    """Return (period, its share, share of all months before, its rows) of the largest rise.

    Only of months large enough, and of rises that chance does not explain.
    """
    worst: tuple[str, float, float, int] | None = None
    seen_rows = seen_missing = 0
    for period in periods:
        here = missing[of_period == period]
        rows, count = len(here), int(here.sum())
        if min(rows, seen_rows) >= FEWEST_TO_COMPARE:
            share, before = count / rows, seen_missing / seen_rows
            pooled = (count + seen_missing) / (rows + seen_rows)
            error = np.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / seen_rows))
            rise = share - before
            if rise > _SURE * error and (worst is None or rise > worst[1] - worst[2]):
                worst = period, share, before, rows
        seen_rows, seen_missing = seen_rows + rows, seen_missing + count
    return worst


# ---- Duplicate rows -----------------------------------------------------------------------------


def _duplicates(
    frame: pd.DataFrame, card: Card, features: Sequence[Feature], settings: Settings
) -> list[Finding]:
    """Rows that are alike within a month, and months that repeat others, beyond coincidence.

    Rows of few values are often alike, and that is no fault. So what counts is what exceeds the
    larger of two coincidences: that of the same values shuffled, each column by itself, within
    their month; and, as values hang together, that of the other kind. Rows that were delivered
    twice do not stand in other months, and customers who resemble one another do so in all.
    """
    columns = [*(feature.name for feature in features), TARGET]
    codes = {name: pd.factorize(frame[name], use_na_sentinel=False)[0] for name in columns}
    rows = pd.DataFrame(codes)
    of_period = frame[PERIOD].to_numpy()
    places = [np.flatnonzero(of_period == period) for period in sorted(set(of_period))]
    lasting = rows[[*(feature.name for feature in features if feature.drift), TARGET]]
    found, any_day = _alike(rows, places), _alike(lasting, places)
    by_chance = [
        {
            "duplicates": max(chance["duplicates"], same["repeated"]),
            "repeated": max(chance["repeated"], here["twins"]),
        }
        for chance, same, here in zip(
            _alike(_shuffled(rows, places, settings.seed), places), any_day, found, strict=True
        )
    ]
    findings = []
    for check, what, limit, setting in (
        ("duplicates", "stand there twice", settings.quality_duplicate_share, "DUPLICATE"),
        ("repeated", "stand in another month, too", settings.quality_repeated_share, "REPEATED"),
    ):
        for place, shares, chance in zip(places, found, by_chance, strict=True):
            share, expected = shares[check], chance[check]
            excess = share - expected
            if len(place) < FEWEST_TO_COMPARE or excess <= limit / 4:
                continue
            period, refuse = str(of_period[place[0]]), excess > limit
            until = card.time.history_until
            origin = " (labelled predictions)" if until is not None and period > until else ""
            findings.append(
                Finding(
                    check,
                    "refuse" if refuse else "warn",
                    f"{share:.1%} of the {len(place):,} rows of {period}{origin} {what}, features "
                    f"and answer alike; by coincidence {expected:.1%}"
                    + (
                        f", accepted are {limit:.0%} more: were they delivered twice? If not, "
                        f"raise MLOPS_QUALITY_{setting}_SHARE"
                        if refuse
                        else ""
                    ),
                    numbers={
                        "period": period,
                        "rows": len(place),
                        "share": share,
                        "by_coincidence": expected,
                        "limit": limit,
                    },
                )
            )
    return findings


def _shuffled(rows: pd.DataFrame, places: Sequence[np.ndarray], seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    shuffled = rows.to_numpy().copy()
    for place in places:
        for column in range(shuffled.shape[1]):
            shuffled[place, column] = shuffled[random.permutation(place), column]
    return pd.DataFrame(shuffled, columns=rows.columns)


def _alike(rows: pd.DataFrame, places: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Return for each month the shares of its rows that are alike, of several kinds.

    `duplicates`: met before in the month; `twins`: there is another one in the month; `repeated`:
    there is one in another month.
    """
    keys = pd.factorize(pd.util.hash_pandas_object(rows, index=False))[0]
    distinct = [np.unique(keys[place]) for place in places]
    months_with = np.bincount(np.concatenate(distinct)) if distinct else np.zeros(0, int)
    return [
        {
            "duplicates": 1 - len(those) / len(place),
            "twins": float((np.bincount(keys[place])[keys[place]] > 1).mean()),
            "repeated": float((months_with[keys[place]] > 1).mean()),
        }
        for place, those in zip(places, distinct, strict=True)
    ]


# ---- Leakage: a feature that knows the answer ---------------------------------------------------


def _leakage(
    frame: pd.DataFrame, card: Card, features: Sequence[Feature], settings: Settings
) -> list[Finding]:
    """Each feature alone: its order, its values and whether it is missing, against the answer.

    In all rows, and in those of validation: a field that began to be filled in after the answer may
    have done so lately.
    """
    late = frame[PERIOD].to_numpy() >= _judged(frame, card, settings)[0]
    parts: list[tuple[str, np.ndarray]] = [("all rows", np.ones(len(frame), bool))]
    if not late.all():
        parts.append((f"the rows since {frame[PERIOD].to_numpy()[late].min()}", late))
    target = frame[TARGET].to_numpy().astype(bool)
    folds = _folds(target, settings.seed)
    limit = settings.quality_leakage_auc
    findings = []
    for feature in features:
        worst: tuple[float, str, str] | None = None
        values = frame[feature.name]
        for part, rows in parts:
            answers = target[rows]
            if min(int(answers.sum()), int((~answers).sum())) < _ENCODED_ROWS_LEAST:
                continue
            for how, measure in _ways(values[rows], answers, folds[rows], feature):
                area = measure()
                if worst is None or area > worst[0]:
                    worst = area, how, part
        if worst is None or worst[0] < SUSPICIOUS_AUC:
            continue
        area, how, part = worst
        refuse = area >= limit
        findings.append(
            Finding(
                "leakage",
                "refuse" if refuse else "warn",
                f"{feature.name}: alone it tells the answer, ROC AUC {area:.3f} by {how} in {part}"
                + (
                    f" (refused from {limit:g}): is it known before the answer is? If not, name it "
                    "in the card's `left_out`"
                    if refuse
                    else ", which is suspiciously well"
                ),
                feature.name,
                {"roc_auc": area, "by": how, "in": part, "limit": limit},
            )
        )
    return findings


def _ways(
    values: pd.Series, target: np.ndarray, folds: np.ndarray, feature: Feature
) -> list[tuple[str, Callable[[], float]]]:
    """Return the ways in which one feature may tell the answer, each with its ROC AUC (0.5..1)."""
    missing = is_missing(values).to_numpy()
    if feature.kind == "number":
        numbers = values.to_numpy(dtype=np.float64)
        low = np.where(missing, -np.inf, numbers)
        codes = _bins(numbers, missing)
        ways = [("its size", lambda: _auc_either_way(low, target))]
    else:
        codes, _ = pd.factorize(values)
        ways = []
    # Beside the order: a number may tell the answer by single values, or by a hump.
    ways.append(("its values", lambda: _auc(_encoded(codes, target, folds), target)))
    if missing.any() and not missing.all():
        ways.append(("whether it is missing", lambda: _auc_either_way(missing, target)))
    return ways


def _bins(numbers: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return a code for each number: its value where there are few, else its quantile."""
    codes = np.full(len(numbers), -1)
    known = numbers[~missing]
    if len(known):
        distinct, exact = np.unique(known, return_inverse=True)
        if len(distinct) > _BINS:
            edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
            exact = np.searchsorted(edges, known, side="right")
        codes[~missing] = exact
    return codes + 1


def _folds(target: np.ndarray, seed: int) -> np.ndarray:
    """Return a fold of each row, with the same share of both answers in each."""
    random = np.random.default_rng(seed)
    folds = np.empty(len(target), dtype=int)
    for answer in (False, True):
        place = random.permutation(np.flatnonzero(target == answer))
        folds[place] = np.arange(len(place)) % _FOLDS
    return folds


def _encoded(codes: np.ndarray, target: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return for each row the share of positives among rows of its code in the other folds.

    Out of fold, or a code of one row each would tell every answer (Micci-Barreca 2001). Codes that
    the other folds do not have count as the average.
    """
    size = int(codes.max()) + 1
    base = float(target.mean())
    rows = np.bincount(codes, minlength=size)
    positives = np.bincount(codes, weights=target, minlength=size)
    encoded = np.empty(len(codes))
    for fold in range(_FOLDS):
        here = folds == fold
        others = rows - np.bincount(codes[here], minlength=size)
        of_them = positives - np.bincount(codes[here], weights=target[here], minlength=size)
        rate = (of_them + base) / (others + 1.0)  # one row's weight for the average
        encoded[here] = rate[codes[here]]
    return encoded


def _auc(scores: np.ndarray, target: np.ndarray) -> float:
    """Return the ROC AUC by ranks (Mann-Whitney), ties counted half."""
    positives = int(target.sum())
    ranks = float(rankdata(scores)[target].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(target) - positives))


def _auc_either_way(scores: np.ndarray, target: np.ndarray) -> float:
    area = _auc(scores, target)
    return max(area, 1 - area)


# ---- Labels that have yet to come ---------------------------------------------------------------


def _label_delay(
    frame: pd.DataFrame, labels: pd.DataFrame, card: Card, settings: Settings
) -> list[Finding]:
    """Months whose answers have no label yet, and labels that come to some rather than others.

    Refused is what the model would be judged on (the months of validation) and a window that lacks
    most labels; an older month whose labels are lost is told, or it would stop every retrain until
    it has left the window.
    """
    findings = []
    limit = settings.quality_unlabelled_share
    judged = _judged(frame, card, settings)
    learnt = set(frame[PERIOD])
    for period, month in labels.sort_index().iterrows():
        answered, labelled = int(month["answered"]), int(month["labelled"])
        if answered < FEWEST_TO_COMPARE:
            continue
        share = 1 - labelled / answered
        numbers = {"period": str(period), "answered": answered, "labelled": labelled}
        if share > limit / 4:
            refuse = share > limit and period in judged
            findings.append(
                Finding(
                    "label_delay",
                    "refuse" if refuse else "warn",
                    f"{period}: {answered - labelled:,} of {answered:,} answered rows ({share:.1%})"
                    " have no label yet"
                    + ("" if period in learnt else ", so nothing of this month is learnt")
                    + (f"; accepted are {limit:.0%}: wait for them" if refuse else ""),
                    numbers={**numbers, "share": share, "limit": limit},
                )
            )
        finding = _selective(str(period), month, numbers) if 0 < share < 1 else None
        if finding is not None:
            findings.append(finding)
    answered, labelled = int(labels["answered"].sum()), int(labels["labelled"].sum())
    unseen = answered - labelled
    if unseen and unseen / (len(frame) + unseen) > limit and not refused(findings):
        findings.append(
            Finding(
                "label_delay",
                "refuse",
                f"{unseen:,} rows of the window have no label yet, {len(frame):,} have one; "
                f"accepted are {limit:.0%} without: wait for them",
                numbers={"unlabelled": unseen, "rows": len(frame), "limit": limit},
            )
        )
    return findings


def _selective(period: str, month: pd.Series, numbers: dict[str, Any]) -> Finding | None:
    """Return a finding if rows with and without a label differ in the score that they were given.

    Labels that come early for one answer teach the wrong share of it (Chapelle 2014).
    """
    spread = float(month["score_std"] or 0.0)
    if not spread > 0:
        return None
    labelled, missing = numbers["labelled"], numbers["answered"] - numbers["labelled"]
    with_label, without = float(month["labelled_score"]), float(month["unlabelled_score"])
    effect = (with_label - without) / spread
    if abs(effect) < _SMALL_EFFECT or abs(effect) < _SURE * np.sqrt(1 / labelled + 1 / missing):
        return None
    return Finding(
        "selective_labels",
        "warn",
        f"{period}: the rows that have a label were scored {with_label:.3f} in the mean, those that"
        f" have none {without:.3f}: labels come selectively, which biases what is learnt",
        numbers={**numbers, "labelled_score": with_label, "unlabelled_score": without},
    )


def _judged(frame: pd.DataFrame, card: Card, settings: Settings) -> list[str]:
    """Return the periods that a training of these rows is judged on, the oldest first."""
    return validation_periods(frame, card.time.validation_months, settings.validation_min_rows)


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.severity != "refuse")
