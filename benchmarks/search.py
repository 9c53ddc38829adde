"""What a search of parameters is worth out of time: chosen in a window, scored in the months after.

    python -m benchmarks.search --trials 6,30 --candidate XGBClassifier --end 2009-02,2009-08

Each candidate is searched in the window that ends with each `--end`; what the best of the first
trials came to there, and in the three months after, stands beside the file's own parameters, with
the gain in standard errors by which `mlops.training.search` decides. One line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import optuna
import pandas as pd

from mlops.dataset.card import PERIOD, TARGET, Card, load_card
from mlops.dataset.sources import read_source
from mlops.dataset.timeline import add_months
from mlops.settings import Settings, get_settings
from mlops.training.candidates import Candidate, load_candidates
from mlops.training.fit import fit_pipeline, in_learning_order, score_out_of_fold, score_window
from mlops.training.metrics import roc_auc
from mlops.training.search import search_space, time_folds, tune, values_drawn

MONTHS_AFTER = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", default="6,30", help="budgets, the largest is searched once")
    parser.add_argument("--end", default="2009-02,2009-08,2010-04", help="last months of windows")
    parser.add_argument("--candidate", default="", help="names; default: all")
    asked = parser.parse_args()
    budgets = [int(each) for each in asked.trials.split(",")]
    settings = get_settings().model_copy(
        update={"search_trials": max(budgets), "search_seconds": 1e9}
    )
    card = load_card(settings.card)
    frame = read_source(card, settings).frame
    candidates = load_candidates(settings.candidates)
    for name in asked.candidate.split(",") if asked.candidate else candidates:
        for end in asked.end.split(","):
            start = add_months(end, 1 - settings.retrain_window_months)
            rows = in_learning_order(frame[frame[PERIOD].between(start, end)], card)
            last = add_months(end, MONTHS_AFTER)
            later = frame[(frame[PERIOD] > end) & (frame[PERIOD] <= last)]
            for line in compare(card, candidates[name], rows, later, settings, budgets):
                print(json.dumps({"candidate": name, "end": end, **line}), flush=True)


def compare(
    card: Card,
    candidate: Candidate,
    rows: pd.DataFrame,
    later: pd.DataFrame,
    settings: Settings,
    budgets: list[int],
) -> list[dict[str, Any]]:
    """Return a line for the file's own parameters (budget 0) and one for each budget."""
    study = optuna.create_study()
    begin = time.process_time()
    tune(card, candidate, rows, settings, lambda _: study)
    seconds = {trial.number: trial.duration.total_seconds() for trial in study.trials}
    cpu = time.process_time() - begin
    own = _errors(card, candidate, rows, settings)
    lines = [{"trials": 0, **_came_to(card, candidate, rows, later, settings)}]
    space = search_space(candidate, settings)
    for budget in budgets:
        tried = [each for each in study.trials[:budget] if each.value is not None]
        best = min((each for each in tried if each.state.name == "COMPLETE"), key=lambda t: t.value)
        chosen = candidate
        if best.number > 0:
            chosen = candidate.with_values(values_drawn(space, best.params))
        gains = own - _errors(card, chosen, rows, settings)
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        lines.append(
            {
                "trials": budget,
                "pruned": sum(t.state.name == "PRUNED" for t in study.trials[:budget]),
                "search_seconds": round(sum(seconds[n] for n in range(budget)), 1),
                "cpu_of_all": round(cpu, 1),
                "search_brier": [round(own.mean(), 4), round(best.value, 4)],
                "standard_errors": round(float(gains.mean() / error), 2) if error else 0.0,
                **_came_to(card, chosen, rows, later, settings),
                "values": best.params,
            }
        )
    return lines


def _came_to(
    card: Card, candidate: Candidate, rows: pd.DataFrame, later: pd.DataFrame, settings: Settings
) -> dict[str, Any]:
    from mlops.dataset.windows import split_window

    window = split_window(rows, card.time.validation_months, settings.validation_min_rows)
    inside = score_out_of_fold(card, candidate, window, settings)
    after = score_window(fit_pipeline(card, candidate, rows, settings).pipeline, card, later)
    return {
        "validation_brier": round(float(((inside - window.validation[TARGET]) ** 2).mean()), 4),
        "later_brier": round(float(((after - later[TARGET]) ** 2).mean()), 4),
        "later_auc": round(roc_auc(later[TARGET], after), 4),
        "later_rows": len(later),
    }


def _errors(card: Card, candidate: Candidate, rows: pd.DataFrame, settings: Settings) -> np.ndarray:
    errors = [
        (
            score_window(
                fit_pipeline(card, candidate, fold.earlier, settings).pipeline,
                card,
                fold.validation,
            )
            - fold.validation[TARGET].to_numpy()
        )
        ** 2
        for fold in time_folds(card, rows, settings)
    ]
    return np.concatenate(errors)


if __name__ == "__main__":
    main()
