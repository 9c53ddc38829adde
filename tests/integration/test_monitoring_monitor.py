"""The monitor on a real Postgres, with a reference that a real MLflow server keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import to_records
from mlops.monitoring.monitor import NothingToMonitorError, measure_performance, monitor
from mlops.settings import Settings
from mlops.training import tracking

THRESHOLD = 0.3
SILENT = {"progress": lambda text: None}


@pytest.fixture(scope="module")
def card() -> Card:
    # A name of its own: the MLflow server is shared with other tests.
    return load_card("bank_marketing").model_copy(update={"name": "monitored"})


def sample(card: Card, rows: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame()
    for feature in card.features:
        frame[feature.name] = (
            np.round(generator.normal(40, 10, rows)).astype("float32")
            if feature.kind == "number"
            else generator.choice(["", "a", "b"], rows)
        )
    frame["score"] = generator.beta(1, 10, rows)
    frame["target"] = (generator.random(rows) < frame["score"]).astype(int)
    frame["period"] = "2009-01"
    return frame


@pytest.fixture(scope="module")
def version(
    postgres: Settings, mlflow_server: str, card: Card, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A registered version whose run keeps a reference, as training leaves it."""
    client = tracking.client(postgres)
    run_id = client.create_run(tracking.experiment(client, card.name)).info.run_id
    path = tmp_path_factory.mktemp("reference") / Path(tracking.REFERENCE).name
    sample(card, 3000).to_parquet(path, index=False)
    client.log_metric(run_id, "validation_threshold", THRESHOLD)
    client.log_artifact(run_id, str(path), str(Path(tracking.REFERENCE).parent))
    client.create_registered_model(card.name)
    return str(client.create_model_version(card.name, f"runs:/{run_id}/model", run_id).version)


@pytest.fixture
def connection(database: Settings, card: Card, version: str) -> Iterator[Connection]:
    with connect(settings=database) as opened:
        opened.cursor().execute(
            "INSERT INTO ops.deployments (card, model_version, cause) VALUES (%s, %s, 'test')",
            (card.name, version),
        )
        yield opened


def answer(
    connection: Connection,
    card: Card,
    version: str,
    period: str,
    frame: pd.DataFrame,
    purpose: str = "simulation",
    labelled: int | None = None,
) -> None:
    """Log `frame` as answered requests of `period`; the first `labelled` rows have their label."""
    labelled = len(frame) if labelled is None else labelled
    rows = [
        (
            f"{purpose}-{version}-{period}-{i}",
            0,
            "now",
            f"{period}-01",
            purpose,
            version,
            json.dumps(record),
            float(score),
            int(target) if i < labelled else None,
        )
        for i, (record, score, target) in enumerate(
            zip(to_records(frame, card), frame["score"], frame["target"], strict=True)
        )
    ]
    execute_values(
        connection.cursor(),
        "INSERT INTO serving.predictions (request_id, row, made_at, period, purpose,"
        " model_version, features, probability, label) VALUES %s",
        rows,
    )


def stored(connection: Connection) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_jsonb(m) - 'update_time' FROM grafana.evidently_metrics m ORDER BY period"
        )
        return [row[0] for row in cursor.fetchall()]


def test_a_quiet_month_and_a_moved_one_are_told_apart(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    answer(connection, card, version, "2009-03", sample(card, 400, seed=1))
    moved = sample(card, 400, seed=2)
    moved["score"] += 0.1
    moved["age"] += 8
    answer(connection, card, version, "2009-04", moved)
    lines: list[str] = []
    quiet, drifted = monitor(connection, card, progress=lines.append, settings=database)
    assert quiet.prediction_drift is not None
    assert quiet.prediction_drift_noise is not None
    assert quiet.prediction_drift <= quiet.prediction_drift_noise
    assert drifted.prediction_drift is not None
    assert drifted.prediction_drift > 0.5
    assert (quiet.num_drifted_columns, drifted.num_drifted_columns) == (0, 1)
    assert (drifted.model_version, drifted.period, drifted.row_count) == (version, "2009-04", 400)
    assert drifted.share_missing_values == pytest.approx(
        (moved[card.categories] == "").to_numpy().sum() / (400 * len(card.features))
    )
    assert [row["prediction_drift"] for row in stored(connection)] == [
        quiet.prediction_drift,
        drifted.prediction_drift,
    ]
    assert lines[1].startswith(f"2009-04, version {version}: 400 rows, prediction drift")


def test_running_it_again_gives_the_same_rows_and_reports(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    answer(connection, card, version, "2009-03", sample(card, 100, seed=1))
    monitor(connection, card, settings=database, **SILENT)
    first = stored(connection)
    monitor(connection, card, settings=database, **SILENT)
    assert stored(connection) == first
    folder = database.reports_dir / version
    assert sorted(each.name for each in folder.iterdir()) == [
        "2009-03.evidently.html",
        "2009-03.html",
    ]
    assert "Wasserstein distance (normed)" in (folder / "2009-03.evidently.html").read_text()


def test_performance_comes_with_the_labels(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    frame = sample(card, 200, seed=1)
    answer(connection, card, version, "2009-03", frame, labelled=0)
    (month,) = monitor(connection, card, settings=database, **SILENT)
    assert (month.roc_auc, month.brier, month.accuracy, month.positive_rate) == (None,) * 4
    connection.cursor().execute("UPDATE serving.predictions SET label = 0")
    (month,) = monitor(connection, card, settings=database, **SILENT)
    assert month.roc_auc is None  # one class only
    assert month.brier == pytest.approx((frame["score"] ** 2).mean())
    assert month.positive_rate == 0


def test_only_labelled_rows_count_for_performance(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    frame = sample(card, 200, seed=1)
    answer(connection, card, version, "2009-03", frame, labelled=150)
    (month,) = monitor(connection, card, settings=database, **SILENT)
    # Decided as the version decides, by whatever its threshold was chosen.
    expected = measure_performance(frame.head(150), THRESHOLD)
    assert month.accuracy == expected["accuracy"]
    assert month.accuracy != measure_performance(frame.head(150), 0.0)["accuracy"]
    assert month.row_count == 200
    assert month.roc_auc == pytest.approx(expected["roc_auc"])
    assert month.positive_rate == pytest.approx(frame["target"].head(150).mean())


def test_test_traffic_and_other_versions_are_not_measured(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    answer(connection, card, version, "2009-03", sample(card, 50, 1), purpose="live")
    answer(connection, card, version, "2009-03", sample(card, 50, 2), purpose="simulation")
    answer(connection, card, version, "2009-03", sample(card, 50, 3), purpose="test")
    answer(connection, card, version, "2009-05", sample(card, 50, 4), purpose="test")
    answer(connection, card, "99", "2009-03", sample(card, 50, 5))
    months = monitor(connection, card, settings=database, **SILENT)
    assert [(month.period, month.row_count) for month in months] == [("2009-03", 100)]


def test_a_month_of_a_few_rows_is_counted_and_not_compared(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    answer(connection, card, version, "2009-03", sample(card, 19, 1))
    (month,) = monitor(connection, card, settings=database, **SILENT)
    assert (month.row_count, month.prediction_drift, month.num_drifted_columns) == (19, None, None)
    folder = database.reports_dir / version
    assert [each.name for each in folder.iterdir()] == ["2009-03.html"], "only our summary"


def test_requests_without_some_fields_are_measured(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    frame = sample(card, 60, 1).assign(age=np.nan, job="")
    answer(connection, card, version, "2009-03", frame)
    connection.cursor().execute("UPDATE serving.predictions SET features = features - 'housing'")
    (month,) = monitor(connection, card, settings=database, **SILENT)
    assert month.num_drifted_columns is not None
    assert month.num_drifted_columns >= 3


def test_without_traffic_there_is_nothing_and_no_error(
    connection: Connection, card: Card, database: Settings
) -> None:
    lines: list[str] = []
    assert monitor(connection, card, progress=lines.append, settings=database) == []
    assert "no live or simulated request" in lines[0]


def test_without_a_champion_it_says_what_to_run(
    connection: Connection, card: Card, database: Settings
) -> None:
    connection.cursor().execute("UPDATE ops.deployments SET retired_at = now()")
    with pytest.raises(NothingToMonitorError, match="pipelines train and deploy"):
        monitor(connection, card, settings=database, **SILENT)


def test_a_version_without_a_reference_is_named(
    connection: Connection, card: Card, database: Settings
) -> None:
    answer(connection, card, "99", "2009-03", sample(card, 30, 1))
    with pytest.raises(NothingToMonitorError, match="99"):
        monitor(connection, card, "99", settings=database, **SILENT)


def columns_of(connection: Connection) -> pd.DataFrame:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_char(period, 'YYYY-MM'), column_name, drifted, missing_more, missing_share,"
            " to_char(drifted_since, 'YYYY-MM'), to_char(missing_since, 'YYYY-MM')"
            " FROM grafana.column_history ORDER BY period, column_name"
        )
        names = [*("period", "column", "drifted", "missing_more", "missing_share")]
        names += ["drifted_since", "missing_since"]
        return pd.DataFrame(cursor.fetchall(), columns=names)


def test_every_column_of_a_month_is_kept_and_says_since_when(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    for seed, (period, older) in enumerate(
        [("2009-03", 8), ("2009-04", 0), ("2009-05", 8), ("2009-06", 8)], start=1
    ):
        frame = sample(card, 400, seed=seed)
        frame["age"] += older
        answer(connection, card, version, period, frame)
    monitor(connection, card, settings=database, **SILENT)
    kept = columns_of(connection)
    assert set(kept["column"]) == set(card.feature_names)
    assert len(kept) == 4 * len(card.features)
    off = kept[kept["drifted"].eq(True)]
    assert off[["period", "column", "drifted_since"]].to_numpy().tolist() == [
        ["2009-03", "age", "2009-03"],
        ["2009-05", "age", "2009-05"],
        ["2009-06", "age", "2009-05"],
    ]
    undecided = set(kept[kept["drifted"].isna()]["column"])
    assert undecided == {feature.name for feature in card.features if not feature.drift}
    monitor(connection, card, settings=database, **SILENT)
    pd.testing.assert_frame_equal(columns_of(connection), kept)


def test_a_column_that_fails_to_come_is_named(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    frame = sample(card, 300, seed=1)
    frame.loc[frame.index % 5 == 0, "age"] = np.nan
    answer(connection, card, version, "2009-03", frame)
    monitor(connection, card, settings=database, **SILENT)
    kept = columns_of(connection)
    assert list(kept[kept["missing_more"]]["column"]) == ["age"]
    assert kept.set_index("column").loc["age", "missing_share"] == pytest.approx(0.2)


def test_labels_of_small_months_count_together_until_they_are_enough(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    for seed, period in enumerate(["2009-03", "2009-04", "2009-05"], start=1):
        answer(connection, card, version, period, sample(card, 120, seed=seed))
    answer(connection, card, version, "2009-06", sample(card, 250, seed=4))
    answer(connection, card, version, "2009-07", sample(card, 120, seed=5), labelled=0)
    months = monitor(connection, card, settings=database, **SILENT)
    assert [(month.labelled_count, month.labelled_since) for month in months] == [
        (120, "2009-03"),
        (240, "2009-03"),
        (240, "2009-04"),
        (250, "2009-06"),
        (0, None),
    ]
    # What stands for the month itself is the month's alone.
    alone = measure_performance(sample(card, 120, seed=2).assign(period="2009-04"), THRESHOLD)
    assert months[1].roc_auc == pytest.approx(alone["roc_auc"])
    assert months[4].calibration_gap is None
    assert stored(connection)[1]["labelled_since"] == "2009-03-01"


def test_a_label_that_comes_late_has_its_month_measured_anew(
    connection: Connection, card: Card, version: str, database: Settings
) -> None:
    frame = sample(card, 400, seed=1)
    answer(connection, card, version, "2009-03", frame, labelled=0)
    (before,) = monitor(connection, card, settings=database, **SILENT)
    assert (before.labelled_count, before.calibration_gap) == (0, None)
    connection.cursor().execute("UPDATE serving.predictions SET label = 1")
    (after,) = monitor(connection, card, settings=database, **SILENT)
    assert after.labelled_count == 400
    assert after.calibration_gap == pytest.approx(frame["score"].mean() - 1)
    assert after.calibration_gap_high is not None
    assert after.calibration_gap_high < -0.5
    assert after.prediction_drift == before.prediction_drift
    assert stored(connection)[0]["calibration_gap"] == pytest.approx(after.calibration_gap)
