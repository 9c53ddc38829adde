"""Ranking of runs, and the table of it."""

from types import SimpleNamespace

from mlops.training.trainings import leaderboard_text, rank


def run(candidate, auc=0.6, precision=0.1, status="FINISHED", run_id="r", **tags):
    return SimpleNamespace(
        info=SimpleNamespace(status=status, run_id=run_id),
        data=SimpleNamespace(
            tags={"candidate": candidate, **tags},
            metrics={"validation_roc_auc": auc, "validation_average_precision": precision},
        ),
    )


def test_roc_auc_ranks_then_average_precision_then_the_name():
    runs = [run("d", 0.6, 0.1), run("c", 0.6, 0.1), run("b", 0.6, 0.2), run("a", 0.7, 0.0)]
    board = rank(runs, ["a", "b", "c", "d"])
    assert [(each["rank"], each["candidate"]) for each in board] == [
        *((1, "a"), (2, "b"), (3, "c"), (4, "d"))
    ]


def test_failed_candidates_stand_last_with_their_reason():
    runs = [run("a", 0.9, status="FAILED", failure="ValueError: no"), run("b", 0.4)]
    board = rank(runs, ["a", "b", "c"])
    assert [each["candidate"] for each in board] == ["b", "a", "c"]
    assert board[1] | {"run_id": None} == {
        **{"rank": None, "candidate": "a", "status": "failed", "reason": "ValueError: no"},
        **{"run_id": None, "version": None, "metrics": {}},
    }
    assert "no run" in board[2]["reason"]


def test_a_finished_run_counts_and_not_its_interrupted_or_later_twin():
    killed, first, second = (
        run("a", status="KILLED", run_id="killed"),
        run("a", 0.6, run_id="first"),
        run("a", 0.9, run_id="second"),
    )
    assert [each["run_id"] for each in rank([killed, first, second], ["a"])] == ["first"]


def test_the_table_has_a_line_for_each_candidate():
    board = rank([run("a", 0.61239), run("b", status="FAILED", failure="broken\nlong")], ["a", "b"])
    board[0]["version"] = "7"
    lines = leaderboard_text(board).splitlines()
    assert len(lines) == 3
    assert "ROC AUC" in lines[0]
    assert lines[1].split()[:4] == ["1", "a", "7", "0.612"]
    assert lines[2].endswith("b          failed: broken")
