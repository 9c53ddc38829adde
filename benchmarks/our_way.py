"""Train as *train* does, without Mage and MLflow: `python -m benchmarks.our_way FOLDER`.

Each candidate is learnt (`mlops.training.fit.learn`: scored out of fold, then fitted on all rows)
in a process forked from one that has the libraries, as Mage forks one for each block, and all are
ranked as a training ranks them. What `FOLDER` has to hold, and what is written into it, stands in
`benchmarks/training.py`.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
from sklearn.metrics import roc_auc_score

from mlops.dataset.card import TARGET, Card, load_card
from mlops.settings import Settings, get_settings
from mlops.training.candidates import Candidate, load_candidates, make_classifier
from mlops.training.fit import learn, score_window
from mlops.training.ranking import in_order, squared_errors
from mlops.training.tracking import Logged

CANDIDATES = ("XGBClassifier", "LogisticRegression", "RandomForest", "SVC", "MLPClassifier")
"""Of the file, those that the plain way has too."""

_rows: dict[str, pd.DataFrame] = {}  # shared with the forked processes


def main(folder: Path) -> None:
    """Learn, rank, score the months that come after, and write `ours.json`."""
    asked = json.loads((folder / "asked.json").read_text())
    card = load_card(asked["card"])
    settings = get_settings().model_copy(update={"search_trials": 0, "seed": asked["seed"]})
    candidates = [load_candidates(settings.candidates)[name] for name in CANDIDATES]
    for candidate in candidates:
        make_classifier(candidate, settings.seed)  # imports its library before the fork, as Mage's
    parts = ("earlier", "validation", "later")
    rows = {part: pd.read_parquet(folder / f"{part}.parquet") for part in parts}
    _rows["window"] = pd.concat([rows["earlier"], rows["validation"]], ignore_index=True)

    began, used = time.perf_counter(), _cpu_s()
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(asked["at_once"], mp_context=fork) as pool:
        futures = {each.name: pool.submit(_learn, card, each, settings) for each in candidates}
        learnt = {name: future.result() for name, future in futures.items()}
    order = in_order(
        {name: each.metrics for name, each in learnt.items()},
        lambda name: squared_errors(learnt[name].reference),
    )
    wall_s, cpu_s = time.perf_counter() - began, _cpu_s() - used
    target = rows["later"][TARGET]
    told = {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "best": order[0],
        "seconds": {name: each.metrics["fit_seconds"] for name, each in learnt.items()},
        "validation_auc": {
            name: each.metrics["validation_roc_auc"] for name, each in learnt.items()
        },
        "later_auc": {
            name: float(roc_auc_score(target, score_window(each.pipeline, card, rows["later"])))
            for name, each in learnt.items()
        },
    }
    (folder / "ours.json").write_text(json.dumps(told))


def _learn(card: Card, candidate: Candidate, settings: Settings) -> Logged:
    return learn(card, candidate, _rows["window"], settings)


def _cpu_s() -> float:
    both = (resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
