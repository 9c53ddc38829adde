"""What only looks at the data: EDA.ipynb and the comparison with the literature, run whole.

Both read a file with the columns that the card leaves out, as the published one has them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from mlops.dataset.card import load_card
from mlops.dataset.generate import generate_csv
from mlops.dataset.left_out import read_with_left_out
from mlops.settings import ROOT, Settings

CARD = load_card("bank_marketing")
EVERY = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An eighth of the generated sample, with columns made up for those that are left out."""
    reader = csv.reader(io.StringIO(generate_csv(CARD, 0).decode()), delimiter=";")
    header, *rows = reader
    answer = header.index(CARD.target.column)
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("eda") / "whole.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow([*header, *CARD.left_out])
        for row in rows[::EVERY]:
            longer = 2 if row[answer] == CARD.target.positive else 1
            made_up = {"duration": str(int(random.gamma(2, 100) * longer))}
            writer.writerow(
                [*row, *(made_up.get(n) or random.choice(["a", "b", "c"]) for n in CARD.left_out)]
            )
    return path


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**os.environ, "MLOPS_DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_columns_that_are_left_out_are_read_by_what_they_hold(data):
    card, raw = read_with_left_out(CARD, Settings(_env_file=None, data=str(data)))
    assert set(card.feature_names) == {*CARD.feature_names, *CARD.left_out}
    assert card.left_out == {}
    assert "duration" in card.numbers
    assert raw.frame["duration"].dtype == np.float32
    assert {"marital", "education", "default", "loan"} <= set(card.categories)
    assert all(feature.learn for feature in card.features)


@pytest.mark.timeout(240)
def test_notebook_runs_top_to_bottom_and_leaves_a_page_and_its_pictures(data, tmp_path):
    run(data, "scripts/eda.py", "--to", str(tmp_path), "--pictures", str(tmp_path / "images"))
    drawn = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert drawn == [f"eda-{name}.png" for name in ("duration", "judging", "signal", "time")]
    executed = nbformat.read(tmp_path / "EDA.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 10
    assert [output.text for output in outputs if output.output_type == "stream"] == []
    page = (tmp_path / "EDA.html").read_text(encoding="utf-8")
    assert "This is not the published file" in page
    assert "import numpy" not in page  # for reading: no code
    assert "<script" not in page  # nothing is fetched


@pytest.mark.timeout(240)
def test_comparison_with_the_literature_fits_each_split_and_tells_its_figures(data, tmp_path):
    results = tmp_path / "literature.json"
    wanted = (
        "random, with duration: XGBoost",
        "whole months left out",
        "later months: as served, never retrained",
    )
    only = [part for name in wanted for part in ("--only", name)]
    done = run(
        *(data, "-m", "benchmarks.literature", "--folds", "2", "--processes", "1"),
        *("--results", str(results), *only),
    )
    (line,) = done.stdout.splitlines()
    rows = {row["name"]: row["figures"] for row in json.loads(results.read_text())["rows"]}
    assert list(rows) == list(wanted)
    assert json.loads(line)["auc_later_served"] == round(rows[wanted[2]]["roc_auc"], 4)
    for figures in rows.values():
        assert 0.4 < figures["low"] < figures["pooled"] < figures["high"] < 1
    # All months' rows are scored once each; of the later ones there are fewer than half as many.
    assert rows[wanted[1]]["rows"] == rows[wanted[0]]["rows"] > 2 * rows[wanted[2]]["rows"] > 0
    assert (rows[wanted[0]]["columns"], rows[wanted[1]]["columns"]) == (16, 15)
    assert rows[wanted[2]]["columns"] == 9
