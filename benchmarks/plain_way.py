"""The plain way to train, as in most tutorials: `python -m benchmarks.plain_way FOLDER`.

get_dummies, StandardScaler, five classifiers with their defaults, fitted one after the other on all
rows, judged by ROC AUC on the months held out. It uses nothing of this project but the rows that it
is given, and nobody chose its values to make it slow. What `FOLDER` has to hold, and what is
written into it, stands in `benchmarks/training.py`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

TARGET = "target"


def main(folder: Path) -> None:
    """Fit, judge, score the months that come after, and write `plain.json`."""
    asked = json.loads((folder / "asked.json").read_text())
    features, seed = asked["features"], asked["seed"]
    rows = {
        part: pd.read_parquet(folder / f"{part}.parquet")
        for part in ("earlier", "validation", "later")
    }
    models = {
        "XGBClassifier": XGBClassifier(random_state=seed),
        "LogisticRegression": LogisticRegression(max_iter=1000, random_state=seed),
        "RandomForest": RandomForestClassifier(random_state=seed),
        "SVC": SVC(probability=True, random_state=seed),
        "MLPClassifier": MLPClassifier(random_state=seed),
    }
    began, used = time.perf_counter(), _cpu_s()
    train = rows["earlier"][features]
    train = train.fillna(train.median(numeric_only=True))
    columns = pd.get_dummies(train).columns
    scaler = StandardScaler().fit(pd.get_dummies(train))

    def prepared(part: pd.DataFrame) -> pd.DataFrame:
        filled = part[features].fillna(rows["earlier"][features].median(numeric_only=True))
        dummies = pd.get_dummies(filled).reindex(columns=columns, fill_value=0)
        return pd.DataFrame(scaler.transform(dummies), columns=columns)

    inputs = {name: prepared(part) for name, part in rows.items()}
    aucs, seconds = {}, {}
    for name, model in models.items():
        begin = time.perf_counter()
        model.fit(inputs["earlier"], rows["earlier"][TARGET])
        scores = model.predict_proba(inputs["validation"])[:, 1]
        aucs[name] = float(roc_auc_score(rows["validation"][TARGET], scores))
        seconds[name] = time.perf_counter() - begin
    wall_s, cpu_s = time.perf_counter() - began, _cpu_s() - used
    best = max(aucs, key=aucs.__getitem__)
    later = {name: model.predict_proba(inputs["later"])[:, 1] for name, model in models.items()}
    target = rows["later"][TARGET]
    told = {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "best": best,
        "seconds": seconds,
        "validation_auc": aucs,
        "later_auc": {name: float(roc_auc_score(target, scores)) for name, scores in later.items()},
    }
    (folder / "plain.json").write_text(json.dumps(told))


def _cpu_s() -> float:
    both = (resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
