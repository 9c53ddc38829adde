"""What the page *Batch* shows of a scored file: counts, scores, first rows, bad rows.

It reads the files that `PredictClient.score_file` has written, block by block, so that a large one
needs no more memory than a small one. It never draws, and calls nobody.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

#: What the API adds to the columns of a row, behind them; `row`, its line, stands before them.
PROBABILITY, DECISION, WARNINGS = "probability", "decision", "warnings"

#: MB of an upload, which Streamlit holds in memory; larger files have the inbox. The server refuses
#: what is above its own limit, in .streamlit/config.toml.
LARGEST_MB = 100

#: Rows of a preview, bad rows that are listed, and files of the inbox, at most.
PREVIEW, LISTED, FILES = 200, 500, 20

BINS = 50
_BLOCK = 50_000


@dataclass(frozen=True)
class Scored:
    """A scored file in numbers.

    `negative_counts` and `positive_counts` are rows by score, in `BINS` bins of equal width from 0
    to 1, decided so. `positives` are rows decided positively, `unusual` those with a warning.
    `preview` holds the first rows.
    """

    rows: int
    positives: int
    unusual: int
    negative_counts: list[int]
    positive_counts: list[int]
    preview: pd.DataFrame


def read_scored(path: Path, positive: str) -> Scored:
    """Return the numbers of a scored file; `positive` is the decision that counts as such.

    Raises ValueError if the file lacks what the API adds to each row.
    """
    rows = positives = unusual = 0
    counts = np.zeros((2, BINS), dtype=np.int64)  # decided negatively, positively
    first: list[pd.DataFrame] = []
    for block in _blocks(path):
        own, added = _parts(block, path)
        scores = pd.to_numeric(added[PROBABILITY]).to_numpy(np.float64)
        decided = (added[DECISION].astype(str) == positive).to_numpy()
        for which in (0, 1):
            chosen = scores[decided == which]
            counts[which] += np.histogram(chosen, bins=BINS, range=(0.0, 1.0))[0]
        rows += len(block)
        positives += int(decided.sum())
        unusual += int((pd.to_numeric(added[WARNINGS]) > 0).sum())
        if rows - len(block) < PREVIEW:
            first.append(pd.concat([added, own], axis=1))
    preview = pd.concat(first, ignore_index=True).head(PREVIEW) if first else pd.DataFrame()
    return Scored(rows, positives, unusual, *counts.tolist(), preview)


def read_bad_rows(path: Path) -> pd.DataFrame:
    """Return the first `LISTED` bad rows: line, field, code, message."""
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in islice(lines, LISTED)]
    return pd.DataFrame(found, columns=["line", "field", "code", "message"])


def example(model: Mapping[str, Any]) -> bytes:
    """Return a CSV of five made-up rows that `model` (the content of `model.json`) can score.

    The first is its reference; the others run through each field's values and range.
    """
    reference = model.get("reference") or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([entry["name"] for entry in model["inputs"]])
    for number in range(5):
        row = [
            reference.get(entry["name"]) if number == 0 else _sample(entry, number)
            for entry in model["inputs"]
        ]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue().encode()


def read_files(connection: Connection) -> list[dict[str, Any]]:
    """Return the latest files of the inbox, as `ops.scored_files` has them; times are UTC."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT name, status, version, rows, scored, rejected, predictions, reason,"
            " started_at, finished_at FROM ops.scored_files"
            " ORDER BY coalesce(finished_at, started_at) DESC LIMIT %s",
            (FILES,),
        )
        return [dict(row) for row in cursor.fetchall()]


def _sample(entry: Mapping[str, Any], number: int) -> Any:
    if entry["kind"] == "category":
        values = entry["values"] or [None]
        return values[number % len(values)]
    low, high = entry.get("min"), entry.get("max")
    if low is None or high is None:
        return entry.get("median")
    value = low + (high - low) * (number - 1) / 4
    return round(value) if entry.get("integer") else round(value, 3)


def _parts(block: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the row's own columns (its line first), and what the API has added, by its names.

    That are the last three columns, whatever a file calls its own; NDJSON has no order, and in it
    no name twice.
    """
    names = [PROBABILITY, DECISION, WARNINGS]
    if ".ndjson" in path.suffixes:
        if not set(names) <= set(block.columns):
            raise ValueError(f"{path.name}: it holds no {PROBABILITY}, {DECISION} and {WARNINGS}")
        return block.drop(columns=names), block[names]
    added = block.iloc[:, -3:]
    if [str(name).partition(".")[0] for name in added.columns] != names:
        raise ValueError(f"{path.name}: the last columns are not {', '.join(names)}")
    return block.iloc[:, :-3], added.set_axis(names, axis=1)


def _blocks(path: Path) -> Iterator[pd.DataFrame]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BLOCK):
                yield batch.to_pandas()
    elif ".ndjson" in path.suffixes:
        yield from pd.read_json(
            path, lines=True, chunksize=_BLOCK, dtype=False, convert_dates=False
        )
    else:
        yield from pd.read_csv(
            path, sep=_separator(path), chunksize=_BLOCK, dtype=str, keep_default_na=False
        )


def _separator(path: Path) -> str:
    """Return what separates the columns: it stands behind the first name, which is `row`."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        head = lines.readline().decode("utf-8-sig").replace('"', "")
    return head.removeprefix("row")[:1].strip("\r\n") or ","
