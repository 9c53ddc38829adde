"""What the page *Batch* says of a scored file, whatever its format and columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlops.app import charts
from mlops.app.scored_rows import (
    BINS,
    LARGEST_MB,
    LISTED,
    PREVIEW,
    example,
    read_bad_rows,
    read_scored,
)
from mlops.settings import ROOT

SCORED = pd.DataFrame(
    {
        "row": [2, 3, 5, 6],
        "age": [40, 41, 43, 44],
        "decision": ["mine"] * 4,  # the file's own column, which is called as the API's
        "probability": [0.005, 0.31, 0.999, 1.0],
        "decision_": ["no", "yes", "yes", "yes"],
        "warnings": [0, 2, 0, 1],
    }
)


def write(folder: Path, ending: str) -> Path:
    path = folder / f"predictions{ending}"
    named = SCORED.set_axis(
        ["row", "age", "decision", "probability", "decision", "warnings"], axis=1
    )
    if ending == ".parquet":  # which knows no two columns of one name
        SCORED.rename(columns={"decision": "own"}).rename(
            columns={"decision_": "decision"}
        ).to_parquet(path)
    elif ".ndjson" in ending:
        named.iloc[:, [0, 1, 3, 4, 5]].to_json(path, orient="records", lines=True)
    else:
        named.to_csv(path, index=False, sep=";" if ending == ".csv" else ",")
    return path


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".ndjson", ".ndjson.gz", ".parquet"])
def test_a_scored_file_is_counted_in_every_format(tmp_path: Path, ending: str) -> None:
    scored = read_scored(write(tmp_path, ending), "yes")
    assert (scored.rows, scored.positives, scored.unusual) == (4, 3, 2)
    counts = [
        sum(both) for both in zip(scored.negative_counts, scored.positive_counts, strict=True)
    ]
    assert len(counts) == BINS
    assert sum(scored.positive_counts) == 3
    assert [(n, count) for n, count in enumerate(counts) if count] == [
        (0, 1),
        (15, 1),
        (49, 2),
    ]
    assert list(scored.preview.columns[:3]) == ["probability", "decision", "warnings"]
    assert [float(each) for each in scored.preview.iloc[:, 0]] == SCORED["probability"].tolist()
    assert [int(each) for each in scored.preview["age"]] == SCORED["age"].tolist()


def test_a_large_file_is_counted_whole_and_shown_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops.app.scored_rows._BLOCK", 100)
    path = tmp_path / "predictions.csv"
    rows = "".join(f"{n},x,0.5,no,0\n" for n in range(1001))
    path.write_text(f"row,name,probability,decision,warnings\n{rows}")
    scored = read_scored(path, "yes")
    assert (scored.rows, sum(scored.negative_counts), len(scored.preview)) == (1001, 1001, PREVIEW)


def test_a_file_without_a_scored_row_has_no_preview(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("row,age,probability,decision,warnings\n")
    scored = read_scored(path, "yes")
    assert (scored.rows, scored.positives, sum(scored.positive_counts)) == (0, 0, 0)


def test_a_file_that_was_not_scored_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("age,job,balance\n40,clerk,3\n")
    with pytest.raises(ValueError, match=r"rows\.csv: the last columns are not probability"):
        read_scored(path, "yes")


def test_bad_rows_are_listed_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "rejected.ndjson"
    line = {"line": 2, "field": None, "code": "malformed", "message": "3 columns, expected 4"}
    path.write_text("".join(json.dumps(line) + "\n" for _ in range(LISTED + 1)))
    bad = read_bad_rows(path)
    assert len(bad) == LISTED
    assert bad.iloc[0].to_dict() == line
    path.write_text("")
    assert list(read_bad_rows(path).columns) == ["line", "field", "code", "message"]


def test_the_example_has_the_models_columns_and_starts_with_its_reference() -> None:
    model: dict[str, Any] = {
        "inputs": [
            {"name": "age", "kind": "number", "min": 18, "max": 98, "integer": True},
            {"name": "job", "kind": "category", "values": ["clerk", 'the "boss", once']},
            {"name": "plan", "kind": "category", "values": []},
        ],
        "reference": {"age": 39, "job": "clerk", "plan": None},
    }
    rows = list(csv.DictReader(io.StringIO(example(model).decode())))
    assert rows[0] == {"age": "39", "job": "clerk", "plan": ""}
    assert [row["age"] for row in rows[1:]] == ["18", "38", "58", "78"]
    assert rows[1]["job"] == 'the "boss", once'


def test_the_server_takes_uploads_as_large_as_the_page_says() -> None:
    config = (ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    assert f"\nmaxUploadSize = {LARGEST_MB}\n" in config


def test_the_histogram_tells_decisions_apart_within_the_bin_that_the_threshold_cuts() -> None:
    negative, positive = [0] * BINS, [0] * BINS
    negative[0], negative[10], positive[10], positive[20] = 500, 30, 20, 5
    figure = charts.score_histogram(negative, positive, 0.21, charts.LIGHT)
    below, above = figure.data
    assert (list(below.y), list(above.y)) == (negative, positive)
    assert above.marker.color == charts.LIGHT.accent != below.marker.color
    assert figure.layout.barmode == "stack"
    assert figure.layout.shapes[0].x0 == 0.21
    assert "21.0%" in figure.layout.annotations[0].text
    low, high = figure.layout.xaxis.range
    assert low <= 0 < 0.42 < high < 0.6
