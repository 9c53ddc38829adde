"""What the training benchmarks compute from what they have measured; nothing is timed here."""

import json
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from benchmarks import report
from benchmarks.growth import grown
from benchmarks.mage_runs import covered, phases
from benchmarks.training import headline, window_ends
from benchmarks.watched import run_watched
from mlops.dataset.card import load_card
from mlops.settings import Settings

SETTINGS = Settings(_env_file=None)
BANK = load_card("bank_marketing")


def side(wall, cpu, mb, auc, best="SVC"):
    return {
        **{"wall_s": wall, "cpu_s": cpu, "peak_mb": mb, "auc": auc, "best": best},
        "seconds": {"SVC": wall / 2},
    }


def pair(ours, plain, window="2008-05..2009-02"):
    return {
        **{"window": window, "later": "2009-03..2009-05", "rows": 30_000, "later_rows": 9_000},
        **{"ours": ours, "plain": plain},
    }


TIMED = [
    pair(side(10, 18, 900, 0.7), side(50, 60, 600, 0.6)),
    pair(side(30, 20, 900, 0.7), side(60, 60, 600, 0.6)),  # the machine was busy
    pair(side(10, 18, 900, 0.7), side(40, 60, 600, 0.6)),
]
OTHER = pair(side(5, 9, 900, 0.5), side(9, 9, 600, 0.6), window="2009-01..2009-12")


def test_a_ratio_is_the_median_of_the_pairs_ratios_and_each_windows_auc_counts_once():
    told = headline(TIMED, [TIMED[0], OTHER], None)
    assert told["wall_ratio"] == 0.25
    assert told["cpu_ratio"] == 0.3
    assert told["memory_ratio"] == 1.5
    assert (told["auc_ours"], told["auc_plain"]) == (0.6, 0.6)
    assert told["auc_better_windows"] == 1
    assert told["pipeline_overhead_s"] is None


def test_every_window_has_the_months_after_it_that_judge():
    periods = [str(month) for month in np.arange("2008-05", "2010-12", dtype="datetime64[M]")]
    frame = pd.DataFrame({"period": periods})
    ends = window_ends(BANK, frame, 6, SETTINGS)
    assert ends[0] == BANK.time.history_until
    assert len(ends) == len(set(ends)) == 6
    assert ends == sorted(ends)
    assert max(ends) <= "2010-08"


def test_seconds_in_which_several_learn_count_once_and_gaps_do_not():
    assert covered([(0, 4), (1, 3), (2, 5), (7, 8)]) == 6


def test_the_parts_of_a_pipeline_run_sum_up_to_it():
    blocks = {
        "train/start": (101.0, 102.0),
        "train/fit_candidate": (102.5, 102.6),
        "train/fit_candidate:SVC": (103.0, 110.0),
        "train/fit_candidate:MLP": (103.5, 112.0),
        "train/leaderboard": (113.0, 114.5),
    }
    found = phases(100.0, 115.0, blocks, [(104.0, 108.0), (105.0, 111.0)])
    assert found.total == 15.0
    assert found.learning == 7.0
    assert found.overhead == 8.0
    assert found.before_learning == found.logging == 1.0
    assert found.between_learning == 0.0


def test_a_grown_table_has_its_rows_moved_and_what_is_missing_stays_missing():
    frame = pd.DataFrame(
        {
            **{name: np.arange(50, dtype=np.float32) for name in BANK.learnt_numbers},
            **dict.fromkeys(BANK.learnt_categories, "a"),
            "target": np.int8(1),
            "period": "2008-05",
        }
    )
    frame.loc[::2, "pdays"] = np.nan
    rows = grown(frame, BANK, 5_000, seed=1)
    assert len(rows) == 5_000
    assert rows["age"].nunique() > 4_000
    assert rows["age"].dtype == np.float32
    assert rows["pdays"].isna().mean() == pytest.approx(0.5, abs=0.05)
    assert list(rows.columns) == list(frame.columns)


def test_a_command_is_ended_with_its_children_when_its_time_is_over():
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    watched = run_watched([sys.executable, "-c", parent], limit_s=1.0)
    assert watched.returncode is None
    assert time.monotonic() - began < 30
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if child in (each.info["cmdline"] or [])
    ]


def test_a_commands_processor_time_and_memory_are_those_of_its_children_too():
    child = "held = bytearray(80_000_000); sum(range(5_000_000)); import time; time.sleep(0.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print(7)"
    watched = run_watched([sys.executable, "-c", parent])
    assert (watched.returncode, watched.output) == (0, "7\n")
    assert watched.peak_mb > 80
    assert watched.cpu_s > 0.05


def test_the_page_shows_training_and_growth(tmp_path):
    for folder in ("benchmarks/results", "docs", "images"):
        (tmp_path / folder).mkdir(parents=True)
    page = tmp_path / "docs" / "performance.md"
    page.write_text(
        "".join(
            f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in ("training", "growth")
        )
    )
    about = {
        **{"commit": "abc", "source": "file", "seconds": 9.0},
        "machine": {"cores": 2, "cpu": "some", "load_at_start": 0.1},
    }
    part = dict.fromkeys(report.PHASES, 0.5) | {"overhead": 4.5, "total": 5.0}
    training = {
        **headline(TIMED, [TIMED[0], OTHER], {"rounds": [part]}),
        **{"pairs": [*TIMED, OTHER], "pipeline": {"rounds": [part]}, "conditions": {"rounds": 3}},
    }
    fits = [
        {
            **{"rows": rows, "candidate": name, "seconds": rows / 1e5, "peak_mb": 500.0},
            **{"fitted_rows": min(rows, 2_000), "ended": ended},
        }
        for rows in (45_000, 450_000)
        for name, ended in (("SVC", None), ("Slow", "time" if rows > 45_000 else None))
    ]
    results = tmp_path / "benchmarks" / "results"
    (results / "training.json").write_text(json.dumps(training | about))
    (results / "growth.json").write_text(json.dumps({"fits": fits} | about))
    for name, tell in (("training", report.tell_training), ("growth", report.tell_growth)):
        figures = json.loads((results / f"{name}.json").read_text())
        report._replace(page, name, tell(figures, tmp_path / "images" / f"{name}.png"))
        assert (tmp_path / "images" / f"{name}.png").stat().st_size > 10_000
    text = page.read_text()
    assert "| wall s | **10.0** (10.0 … 30.0) | **50.0** (40.0 … 60.0) | **0.25** |" in text
    assert "| asked for → completed | **5.0** |" in text
    assert "ended after 4 s (time)" in text
    assert "](../images/training.png)" in text
    assert "](../images/growth.png)" in text
    assert "| SVC | 0.5 s · 0.5 GB | 4.5 s · 0.5 GB | 2,000 |" in text
