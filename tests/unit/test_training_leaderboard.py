"""Ranking of runs, and the table of it."""

from types import SimpleNamespace

import numpy as np

from mlops.training.trainings import leaderboard_text, rank

SAME = np.array([0.1, 0.2, 0.3, 0.2])


def run(candidate, brier=0.1, auc=0.6, status="FINISHED", run_id="r", **tags):
    return SimpleNamespace(
        info=SimpleNamespace(status=status, run_id=run_id),
        data=SimpleNamespace(
            tags={"candidate": candidate, **tags},
            metrics={"validation_brier": brier, "validation_roc_auc": auc},
        ),
    )


def names(board):
    return [(each["rank"], each["candidate"]) for each in board]


def test_the_brier_score_ranks_then_roc_auc_then_the_name():
    runs = [run("d"), run("c"), run("b", auc=0.7), run("a", 0.05)]
    board = rank(runs, ["a", "b", "c", "d"], lambda run_id: SAME)
    assert names(board) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


def test_the_files_first_candidate_stays_first_unless_another_is_better_beyond_chance():
    runs = [run("first", 0.12, run_id="first"), run("other", 0.1, run_id="other")]
    noise = np.random.default_rng(1).normal(0, 0.2, 400)
    noise -= noise.mean()
    for gain, ahead in ((0.005, "first"), (0.05, "other")):
        errors = {"first": np.full(400, 0.12), "other": 0.12 - gain + noise}
        board = rank(runs, ["first", "other"], errors.__getitem__)
        assert names(board)[0] == (1, ahead)


def test_failed_candidates_stand_last_with_their_reason():
    runs = [run("a", status="FAILED", failure="ValueError: no"), run("b", 0.4)]
    board = rank(runs, ["a", "b", "c"], lambda run_id: SAME)
    assert [each["candidate"] for each in board] == ["b", "a", "c"]
    assert board[1] | {"run_id": None} == {
        **{"rank": None, "candidate": "a", "status": "failed", "reason": "ValueError: no"},
        **{"run_id": None, "version": None, "metrics": {}},
    }
    assert "no run" in board[2]["reason"]


def test_a_finished_run_counts_and_not_its_interrupted_or_later_twin():
    killed, first, second = (
        run("a", status="KILLED", run_id="killed"),
        run("a", 0.3, run_id="first"),
        run("a", 0.1, run_id="second"),
    )
    board = rank([killed, first, second], ["a"], lambda run_id: SAME)
    assert [each["run_id"] for each in board] == ["first"]


def test_the_table_has_a_line_for_each_candidate():
    runs = [run("a", 0.61239), run("b", status="FAILED", failure="broken\nlong")]
    board = rank(runs, ["a", "b"], lambda run_id: SAME)
    board[0]["version"] = "7"
    lines = leaderboard_text(board).splitlines()
    assert len(lines) == 3
    assert "ROC AUC" in lines[0]
    assert lines[1].split()[:4] == ["1", "a", "7", "0.6124"]
    assert lines[2].endswith("b          failed: broken")


def test_the_table_says_who_was_fitted_on_a_part_of_the_rows():
    board = rank([run("all"), run("part", 0.2)], ["all", "part"], lambda run_id: SAME)
    board[0]["metrics"] |= {"fitting_rows": 31_201.0, "sampled_rows": 31_201.0}
    board[1]["metrics"] |= {"fitting_rows": 31_201.0, "sampled_rows": 1_997.0}
    _, whole, part = leaderboard_text(board).splitlines()
    assert whole.endswith(" 31,201")
    assert part.endswith(" 1,997 of 31,201 (max_rows)")
