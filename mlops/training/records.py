"""The row of `ops.trainings`: what a training is about; never fits and never asks MLflow."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from mlops.dataset.card import Card, load_card
from mlops.dataset.timeline import period_of
from mlops.settings import Settings
from mlops.training.errors import TrainingError


@dataclass(frozen=True)
class Training:
    """A training: the card's name, why it was started, and the periods and digest of its window."""

    id: str
    card: str
    cause: str
    window_start: str
    window_end: str
    data_digest: str

    def load_card(self, settings: Settings) -> Card:
        """Return the card of this training: that of the settings, else the one of its name."""
        card = load_card(settings.card)
        return card if card.name == self.card else load_card(self.card)


def find_training(connection: Connection, training_id: str) -> Training | None:
    """Return the training, None if there is none of that id."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, card, cause, window_start, window_end, data_digest"
            " FROM ops.trainings WHERE id = %s",
            (training_id,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    return Training(row[0], row[1], row[2], period_of(row[3]), period_of(row[4]), row[5])


def read_training(connection: Connection, training_id: str) -> Training:
    """Return the training. Raises TrainingError if it was never started."""
    training = find_training(connection, training_id)
    if training is None:
        raise TrainingError(
            f"no training {training_id!r} in ops.trainings: start_training writes it, and its "
            "transaction must be committed before the candidates are fitted"
        )
    return training


def lock(connection: Connection, name: str) -> None:
    """Wait until nobody else holds `name`; held until the caller's transaction ends or dies."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))
