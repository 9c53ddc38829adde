"""Render what the predict API runs from: `payloads/<version>/` and the link `payloads/current`.

A payload appears complete or not at all, and the link names the old one or the new one at any
moment. Nothing here starts or asks the API.
"""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from mlops.dataset.card import SCORE, TARGET, Card, Costs, Feature
from mlops.serving.export import OUTPUT, OnnxModel
from mlops.training.metrics import PROFIT_ROWS, expected_profit, profit_curve

TEMPLATES = Path(__file__).resolve().parent / "templates"
CURRENT = "current"


def describe_model(
    card: Card,
    version: str,
    onnx: OnnxModel,
    fitting: pd.DataFrame,
    *,
    run_id: str,
    candidate: str,
    training_id: str,
    threshold: float,
    metrics: dict[str, float],
    window: tuple[str, str],
    costs: Costs | None = None,
    validation: pd.DataFrame | None = None,
    created_at: datetime | None = None,
) -> dict[str, Any]:
    """Return the content of `model.json`.

    `fitting` are the rows that the model was fitted on (features and `target`): their ranges and
    values are what the API does not warn about. `window` is the training's first and last period.
    With `costs`, those that the threshold was chosen by, and the `validation` rows (`target` and
    `score`) it says what profit to expect.
    """
    inputs = [_describe(feature, fitting[feature.name]) for feature in card.features]
    created = (created_at or datetime.now(timezone.utc)).astimezone(timezone.utc)
    return {
        "model": card.name,
        "version": version,
        "run_id": run_id,
        "candidate": candidate,
        "training_id": training_id,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "title": card.title,
        "description": card.description,
        "target": {
            "name": card.target.column,
            "positive": card.target.positive,
            "negative": card.target.negative,
            "question": card.question,
        },
        "threshold": threshold,
        "missing": list(card.missing),
        **_describe_profit(threshold, costs, validation),
        "inputs": inputs,
        "metrics": metrics,
        "reference": reference_customer(card, fitting),
        "training": {
            "window_start": window[0],
            "window_end": window[1],
            "rows": len(fitting),
            "positive_rate": float(fitting["target"].mean()),
        },
        "onnx": {
            "inputs": onnx.inputs,
            "output": OUTPUT,
            "max_difference": onnx.max_difference,
        },
    }


def reference_customer(card: Card, rows: pd.DataFrame) -> dict[str, float | int | str | None]:
    """Return the typical record of `rows`: of each feature the lower median or the mode.

    None where most are missing.
    """
    described = [_describe(feature, rows[feature.name]) for feature in card.features]
    return {
        entry["name"]: None
        if _mostly_missing(rows[entry["name"]])
        else entry["median" if entry["kind"] == "number" else "mode"]
        for entry in described
    }


def _describe_profit(
    threshold: float, costs: Costs | None, validation: pd.DataFrame | None
) -> dict[str, Any]:
    """Return `costs` and `profit`: per 1,000 validation rows, by threshold and share contacted."""
    if costs is None or validation is None:
        return {}
    target, score = validation[TARGET], validation[SCORE]
    curve = profit_curve(target, score, costs)
    return {
        "costs": dict(costs),
        "profit": {
            "per_rows": PROFIT_ROWS,
            "rows": len(validation),
            "chosen": {
                "threshold": threshold,
                "share": float((score >= threshold).mean()),
                "profit": expected_profit(target, score, threshold, costs),
            },
            "all": curve[-1].profit,
            "curve": [point._asdict() for point in curve],
        },
    }


def _describe(feature: Feature, column: pd.Series) -> dict[str, Any]:
    common = {
        "name": feature.name,
        "kind": feature.kind,
        "description": feature.description,
        "missing": list(feature.missing),
        "required": True,
        # The calendar moves by itself: next month is no news in a window of the last six.
        "warn": feature.drift,
    }
    if feature.kind == "number":
        known = column.dropna()
        cast = int if feature.integer else float
        # The lower of two middle values: the median of whole numbers stays one that occurs.
        low, middle, high = (
            (cast(known.min()), cast(known.quantile(0.5, "lower")), cast(known.max()))
            if len(known)
            else (None, None, None)
        )
        return common | {
            "unit": feature.unit,
            "min": low,
            "max": high,
            "median": middle,
            "integer": feature.integer,
        }
    counts = column.value_counts()
    return common | {
        "values": sorted(value for value in counts.index if value != ""),
        # None where "missing" is the most frequent.
        "mode": (counts.index[0] or None) if len(counts) else None,
    }


def _mostly_missing(column: pd.Series) -> bool:
    return bool((column.isna() | (column == "")).mean() > 0.5)


def render_payload(
    version: str, onnx: bytes, model_json: dict[str, Any], payloads_dir: Path
) -> Path:
    """Write the payload of `version` and return its folder; one of that version is replaced.

    The folder is made under another name and renamed when it is complete, so nobody ever sees half
    of one. Replacing takes two renames: in between, for microseconds, the version has no folder,
    and the API, which looks again, keeps what it has loaded.
    """
    if not version.isdigit():
        raise ValueError(f"found version {version!r}, expected a number as MLflow gives it")
    payloads_dir.mkdir(parents=True, exist_ok=True)
    _sweep(payloads_dir)
    final = payloads_dir / version
    draft = payloads_dir / f".{version}.{uuid.uuid4().hex[:8]}.new"
    draft.mkdir()
    try:
        # copyfile: a payload is written with the rights of today's umask, not the clone's.
        shutil.copytree(
            TEMPLATES,
            draft,
            dirs_exist_ok=True,
            copy_function=shutil.copyfile,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (draft / "model.onnx").write_bytes(onnx)
        (draft / "model.json").write_bytes(
            orjson.dumps(model_json, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
        for path in draft.rglob("*"):
            _to_disk(path)
        if final.exists():
            old = payloads_dir / f".{version}.{uuid.uuid4().hex[:8]}.old"
            final.rename(old)
            draft.rename(final)
            shutil.rmtree(old)
        else:
            draft.rename(final)
        _to_disk(payloads_dir)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return final


def switch_current(payloads_dir: Path, version: str) -> str | None:
    """Point `payloads/current` at `version` in one step; return the version it named before.

    Raises FileNotFoundError if there is no such payload.
    """
    if not is_payload(payloads_dir / version):
        raise FileNotFoundError(f"{payloads_dir / version} is no payload: deploy renders it")
    before = current_version(payloads_dir)
    link = payloads_dir / CURRENT
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is a folder, expected a link: move it away")
    draft = payloads_dir / f".{CURRENT}.{uuid.uuid4().hex[:8]}.new"
    draft.symlink_to(version)
    draft.replace(link)
    _to_disk(payloads_dir)
    return before


def remove_current(payloads_dir: Path) -> None:
    """Take the link away, as before the first deployment."""
    (payloads_dir / CURRENT).unlink(missing_ok=True)


def current_version(payloads_dir: Path) -> str | None:
    """Return the version that `payloads/current` names.

    None before the first deployment, and where the link names a folder that is no payload (any
    more): the API could not start on it.
    """
    try:
        version = (payloads_dir / CURRENT).readlink().name
    except OSError:
        return None
    return version if is_payload(payloads_dir / version) else None


def is_payload(folder: Path) -> bool:
    """Return whether a folder holds what the API needs to answer."""
    return all((folder / name).is_file() for name in ("predict.py", "model.onnx", "model.json"))


def _sweep(payloads_dir: Path) -> None:
    """Remove what an interrupted rendering left behind; only one deployment runs at a time."""
    for leftover in payloads_dir.glob(".*"):
        if leftover.suffix in (".new", ".old") and leftover.name.count(".") >= 3:
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Have the kernel write a file or a folder out before a link names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
