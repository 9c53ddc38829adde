"""`make bench-literature`: our ROC AUC beside the literature's, and how much of either is leakage.

The literature splits this data at random, most of it with `duration`, which is known only after the
call. Each row of the table here is one set of columns, one split and one model, from what is
published down to what can be had: the same models on months that they have not seen. Writes
benchmarks/results/literature.json, redraws the table of docs/results.md, and ends with one line of
JSON.

    python -m benchmarks.literature
    python -m benchmarks.literature --only "random, with duration: mean of the three"
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, StratifiedKFold

from benchmarks.serving import commit, draw, machine, say, write_results
from mlops.dataset.card import PERIOD, TARGET, Card, Feature, load_card
from mlops.dataset.left_out import read_with_left_out
from mlops.dataset.timeline import MONTHS
from mlops.settings import ROOT, Settings, get_settings
from mlops.training.bootstrap import bootstrap
from mlops.training.candidates import Candidate, get_candidate, load_candidates
from mlops.training.fit import fit_pipeline, score_window
from mlops.training.metrics import average_precision, roc_auc

RESULTS = ROOT / "benchmarks" / "results" / "literature.json"
CANDIDATES = ROOT / "benchmarks" / "literature.yaml"

AFTER_THE_CALL = "duration"
PLACE = "place"
"""A row's place in the file: what a random split gives away, made a column."""

DAY_OF_YEAR = "day_of_year"
"""Made of month and day, which hold no more: the day of a campaign in one cut of a tree."""

RESAMPLES = 1000
CONFIDENCE = 0.95

Columns = Literal["all", "before the call", "before the call, place", "card"]
Split = Literal["random", "months", "later"]
THREE = ("XGBoost", "HistGradientBoosting", "RandomForest")


@dataclass(frozen=True)
class Row:
    """One line of the table: which columns, how it is split, which models' mean score.

    `random` deals rows into folds; `months` deals whole months, so that no row has neighbours of
    its month among those fitted; `later` fits the card's history and scores all later months.
    `served` fits as a training does: the card's columns and the recency weights.
    """

    name: str
    columns: Columns
    split: Split
    models: tuple[str, ...]
    served: bool = False
    key: str | None = None

    @property
    def command(self) -> str:
        """What a person types."""
        return f'python -m benchmarks.literature --only "{self.name}"'


ROWS = (
    *(Row(f"random, with duration: {one}", "all", "random", (one,)) for one in THREE),
    Row("random, with duration: mean of the three", "all", "random", THREE, key="random_leak"),
    *(Row(f"random: {one}", "before the call", "random", (one,)) for one in THREE),
    Row("random: mean of the three", "before the call", "random", THREE, key="random"),
    Row("random: the card's columns", "card", "random", ("XGBoost",), key="random_card"),
    Row(
        "random, with the row's place in the file",
        "before the call, place",
        "random",
        ("XGBoost",),
        key="random_place",
    ),
    Row("whole months left out", "before the call", "months", ("XGBoost",), key="months"),
    Row("later months, with duration", "all", "later", THREE, key="later_leak"),
    Row("later months", "before the call", "later", THREE, key="later"),
    Row("later months: the card's columns", "card", "later", THREE, key="later_card"),
    Row(
        "later months: as served, never retrained",
        "card",
        "later",
        ("XGBClassifier",),
        served=True,
        key="later_served",
    ),
)


class Comparison:
    """The data, and the scores of every fit that a row asked for: none is fitted twice."""

    def __init__(self, card: Card, settings: Settings, folds: int, processes: int) -> None:
        self.given, self.settings = card, settings
        self.folds, self.processes = folds, processes
        self.card, raw = read_with_left_out(card, settings)
        if AFTER_THE_CALL not in self.card.feature_names:
            raise SystemExit(f"{card.name} has no column {AFTER_THE_CALL!r}: nothing to compare")
        self.source = raw.origin
        months = raw.frame[card.time.column].map({name: n for n, name in enumerate(MONTHS)})
        days = (31 * months + raw.frame["day"]).astype(np.float32)
        places = np.arange(raw.rows, dtype=np.float32)
        self.frame = raw.frame.assign(**{DAY_OF_YEAR: days, PLACE: places})
        self.score = lru_cache(maxsize=None)(self._score)

    def columns(self, wanted: Columns) -> Card:
        """Return a card that learns those columns, and what is made of them; `card` as served."""
        if wanted == "card":
            return self.given
        features = [
            feature
            for feature in self.card.features
            if wanted == "all" or feature.name != AFTER_THE_CALL
        ]
        made = [DAY_OF_YEAR, *([PLACE] if wanted.endswith(PLACE) else [])]
        features += [Feature(name=name, kind="number", description="Made here") for name in made]
        return self.card.model_copy(update={"features": tuple(features)})

    def card_columns(self, wanted: Columns) -> set[str]:
        """Return the columns of the file that are learnt from."""
        card = self.columns(wanted)
        return {*card.learnt_numbers, *card.learnt_categories} & set(self.card.feature_names)

    def splits(self, split: Split) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return (rows to fit, rows to score) of each fold."""
        target, periods = self.frame[TARGET], self.frame[PERIOD].to_numpy(dtype=str)
        if split == "random":
            folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.settings.seed)
            return list(folds.split(target, target))
        if split == "months":
            return list(GroupKFold(self.folds).split(target, target, groups=periods))
        past = periods <= self._history_until()
        return [(np.flatnonzero(past), np.flatnonzero(~past))]

    def _history_until(self) -> str:
        if self.given.time.history_until is None:
            raise SystemExit(f"{self.given.path.name} has no time.history_until: nothing is later")
        return self.given.time.history_until

    def _score(
        self, columns: Columns, split: Split, model: str, served: bool
    ) -> tuple[NDArray[np.float64], list[float]]:
        """Return a score for each row of the file, NaN where none was asked, and folds' ROC AUC."""
        card = self.columns(columns)
        candidate = get_candidate(model, self.settings.candidates if served else CANDIDATES)
        settings = self.settings
        if not served:
            settings = settings.model_copy(update={"recency_half_life_months": 0.0})
        rows = self.frame[[*card.feature_names, TARGET, PERIOD]]
        splits = self.splits(split)
        found = Parallel(n_jobs=min(self.processes, len(splits)))(
            delayed(fit_and_score)(card, candidate, rows.iloc[fitted], rows.iloc[scored], settings)
            for fitted, scored in splits
        )
        scores = np.full(len(rows), np.nan)
        for (_, places), values in zip(splits, found, strict=True):
            scores[places] = values
        target = self.frame[TARGET].to_numpy()
        return scores, [roc_auc(target[places], scores[places]) for _, places in splits]

    def measure(self, row: Row) -> dict[str, Any]:
        """Return the figures of one row of the table.

        `roc_auc` is the mean of the folds where they are dealt at random, as it is published, and
        of all scored rows together otherwise; the interval is of the latter, by bootstrap.
        """
        fits = [self.score(row.columns, row.split, model, row.served) for model in row.models]
        mean = np.mean([scores for scores, _ in fits], axis=0)
        scored = ~np.isnan(mean)
        target = self.frame[TARGET].to_numpy()[scored]
        score = np.clip(mean[scored], 0.0, 1.0)
        by_fold = [
            roc_auc(self.frame[TARGET].to_numpy()[places], mean[places])
            for _, places in self.splits(row.split)
        ]
        drawn = bootstrap(target, [score], RESAMPLES, self.settings.seed).roc_auc[0]
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        pooled = roc_auc(target, score)
        return {
            "roc_auc": float(np.mean(by_fold)) if row.split == "random" else pooled,
            "pooled": pooled,
            "low": float(low),
            "high": float(high),
            "folds": by_fold,
            "average_precision": average_precision(target, score),
            "rows": len(target),
            "columns": len(self.card_columns(row.columns)),
        }


def fit_and_score(
    card: Card,
    candidate: Candidate,
    fitted: pd.DataFrame,
    scored: pd.DataFrame,
    settings: Settings,
) -> NDArray[np.float64]:
    """Return the scores of rows by a pipeline, as a training builds it, of other rows."""
    return score_window(fit_pipeline(card, candidate, fitted, settings).pipeline, card, scored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows, write the file, redraw the table, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, help="rows; default: all")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    settings = get_settings()
    load_candidates(CANDIDATES)  # a mistake in it is told before minutes are gone
    began, played = time.monotonic(), commit()
    comparison = Comparison(load_card("bank_marketing"), settings, options.folds, options.processes)
    known: dict[str, Any] = {}
    result: dict[str, Any] = {}
    if options.only and options.results.exists():
        known = {row["name"]: row for row in json.loads(options.results.read_text())["rows"]}
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        figures = comparison.measure(row)
        known[row.name] = {
            "name": row.name,
            "key": row.key,
            "split": row.split,
            "command": row.command,
            "figures": figures,
        }
        result = {
            "commit": played,
            "machine": machine(),
            "source": comparison.source,
            "folds": options.folds,
            "seconds": round(time.monotonic() - began, 1),
            "rows": [known[name] for name in names if name in known],
        }
        # After each row: what is measured is kept, whatever becomes of the next.
        write_results(result, options.results)
        say(
            f"{row.name:<48} ROC AUC {figures['roc_auc']:.4f} "
            f"({figures['low']:.4f} to {figures['high']:.4f})"
        )
    if options.results == RESULTS:
        draw()
    print(json.dumps(line_of(result)), flush=True)
    return 0


def line_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the line: the ROC AUC of each row that has a key."""
    rows = {row["key"]: row["figures"] for row in result["rows"] if row["key"]}
    return {
        **{f"auc_{key}": round(figures["roc_auc"], 4) for key, figures in rows.items()},
        "folds": result["folds"],
        "source": result["source"],
        "seconds": result["seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
