"""The model that every server of a benchmark answers with: `python -m benchmarks.model FOLDER`.

A pipeline with an XGBoost of 400 trees, fitted on the card's data as training does it, and written
in the forms that the servers take: payloads for ours, a pickled pipeline for those with sklearn.
Made anew for each run, in the run's own folder; nothing of it is kept or deployed.

Writes `payloads/{1,2}` (2 is another model: other seed, half the trees), `pipeline.joblib`,
`records.json` (real rows as a caller would write them) and `facts.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from mlops.dataset.card import Card, load_card
from mlops.dataset.sources import read_source
from mlops.serving.export import export_onnx, score_onnx
from mlops.serving.payload import describe_model, render_payload
from mlops.settings import Settings, get_settings
from mlops.training.candidates import Candidate
from mlops.training.fit import fit_pipeline, score_window

CARD = "bank_marketing"
"""The peers' code names its columns."""
RECORDS = 10_000
"""Rows that the servers are asked about; a request takes as many of them as it needs."""

_VALIDATION_MONTHS = 2


def make(folder: Path, trees: int, settings: Settings) -> dict[str, Any]:
    """Fit, export and write all that the servers need; return what `facts.json` says."""
    card = load_card(CARD)
    raw = read_source(card, settings)
    frame = raw.frame
    periods = sorted(frame["period"].unique())
    history = frame[frame["period"] <= (card.time.history_until or periods[-1])]
    months = sorted(history["period"].unique())
    recent = history["period"].isin(months[-_VALIDATION_MONTHS:])
    fitting, validation = history[~recent], history[recent]
    asked = frame.sample(n=min(RECORDS, len(frame)), random_state=settings.seed)

    scores, differences = {}, {}
    for version, seed, count in (("1", settings.seed, trees), ("2", settings.seed + 1, trees // 2)):
        candidate = Candidate.model_validate(
            {
                "name": "XGBClassifier",
                "class": "xgboost.XGBClassifier",
                "params": {"n_estimators": count},
            }
        )
        # One thread: the servers have two workers on two cores.
        own = settings.model_copy(
            update={"seed": seed, "training_threads": 1, "recency_half_life_months": 0}
        )
        pipeline = fit_pipeline(card, candidate, fitting, own).pipeline
        onnx = export_onnx(pipeline, card, validation, settings.parity_tolerance)
        described = describe_model(
            card,
            version,
            onnx,
            fitting,
            run_id="0" * 32,
            candidate=candidate.name,
            training_id="benchmark",
            threshold=0.3,
            metrics={},
            window=(months[0], months[-1]),
        )
        render_payload(version, onnx.content, described, folder / "payloads")
        scores[version] = score_window(pipeline, card, asked).round(7).tolist()
        differences[version] = float(
            abs(score_onnx(onnx.content, card, asked) - scores[version]).max()
        )
        if version == "1":
            joblib.dump(pipeline, folder / "pipeline.joblib")
    (folder / "records.json").write_text(
        json.dumps({"records": _records(card, asked), "scores": scores})
    )
    facts = {
        "card": card.name,
        "data": {"file": "real", "download": "real", "generated": "generated sample"}[raw.origin],
        "rows": raw.rows,
        "features": len(card.feature_names),
        "trees": trees,
        "onnx_max_difference": max(differences.values()),
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    return facts


def _records(card: Card, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON takes them: null is missing, whole numbers are written as such."""
    integers = {feature.name for feature in card.features if getattr(feature, "integer", False)}
    records = []
    for row in frame[card.feature_names].to_dict("records"):
        record: dict[str, Any] = {}
        for name, value in row.items():
            if value == "" or (isinstance(value, float) and math.isnan(value)):
                record[str(name)] = None
            else:
                record[str(name)] = int(value) if name in integers else value
        records.append(record)
    return records


def main() -> None:
    """Write everything into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trees", type=int, default=400)
    parser.add_argument("--sample", action="store_true", help="the generated data, whatever is set")
    arguments = parser.parse_args()
    settings = get_settings()
    if arguments.sample:
        settings = _with_sample(settings, arguments.folder)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(make(arguments.folder, arguments.trees, settings)))


def _with_sample(settings: Settings, folder: Path) -> Settings:
    from mlops.dataset.generate import generate_csv

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sample.csv"
    file.write_bytes(generate_csv(load_card(CARD), settings.seed))
    return settings.model_copy(update={"data": str(file)})


if __name__ == "__main__":
    main()
