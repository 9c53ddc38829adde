"""What stage each version of a model is in: MLflow's aliases are the truth; never fits or judges.

`production` (one), `staging-1` to `staging-3`, `archived` (the latest former champion). An alias
names one version at most, so there cannot be two in production. The tag `stage` repeats it for
MLflow's pages, and `ops.deployments` is the history.

Every function may run again, also after one that was interrupted: it then does what is left.
"""

from __future__ import annotations

from typing import Any, Literal

from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, RealDictCursor
from sklearn.pipeline import Pipeline

from mlops.dataset.card import Card
from mlops.settings import Settings, get_settings
from mlops.training import tracking

PRODUCTION = "production"
ARCHIVED = "archived"
STAGING = ("staging-1", "staging-2", "staging-3")
STAGE_TAG = "stage"

Began = Literal["first", "gate", "by hand", "rollback", "withdrawn", "healed"]
"""How a stay in production begins; `healed`: by what a crash left, see `heal_history`."""


class RegistryError(RuntimeError):
    """A version that is asked for is not in the registry."""


def production_version(card: Card, settings: Settings | None = None) -> str | None:
    """Return the champion's version, None if nothing is in production."""
    client = tracking.client(settings or get_settings())
    return _aliases(client, card).get(PRODUCTION)


def get_version(card: Card, version: str, settings: Settings | None = None) -> ModelVersion:
    """Return what the registry holds of a version. Raises RegistryError if there is none."""
    settings = settings or get_settings()
    try:
        return tracking.client(settings).get_model_version(card.name, version)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        raise RegistryError(
            f"{card.name} has no version {version} in the registry at {settings.mlflow_url}: "
            "run the pipeline train, or choose one of those on its page"
        ) from error


def load_pipeline(card: Card, version: str, settings: Settings | None = None) -> Pipeline:
    """Return the fitted sklearn pipeline of a version; no code of the artifact is run.

    Raises RegistryError if there is no such version, TrainingError if its model cannot be used.
    """
    settings = settings or get_settings()
    return tracking.load_pipeline(_run_id(card, version, settings), settings)


def _run_id(card: Card, version: str, settings: Settings) -> str:
    found = get_version(card, version, settings)
    if not found.run_id:
        raise RegistryError(f"version {version} of {card.name} was registered without its run")
    return str(found.run_id)


def stage_top(
    leaderboard: list[dict[str, Any]], card: Card, settings: Settings | None = None
) -> list[str]:
    """Put the three best of a leaderboard to staging; return their versions, the best first.

    Whatever else was in staging leaves it. One that is in production already stays just that; its
    place in staging is left free.
    """
    client = tracking.client(settings or get_settings())
    top = [entry["version"] for entry in leaderboard if entry["version"]][: len(STAGING)]
    aliases = _aliases(client, card)
    for place, alias in enumerate(STAGING):
        wanted = top[place] if place < len(top) else None
        if wanted is None or wanted == aliases.get(PRODUCTION):
            _drop_alias(client, card, alias)
        elif aliases.get(alias) != wanted:
            client.set_registered_model_alias(card.name, alias, wanted)
    _repeat_in_tags(client, card)
    return top


def promote(version: str, card: Card, settings: Settings | None = None) -> str | None:
    """Put a version in production; return the champion that it replaces, None if there was none.

    The former champion becomes `archived`, the new one leaves staging. For the version that is in
    production already nothing changes, and None is returned. Raises RegistryError if there is no
    such version.
    """
    settings = settings or get_settings()
    client = tracking.client(settings)
    get_version(card, version, settings)
    former = _aliases(client, card).get(PRODUCTION)
    if former == version:
        former = None
    if former is not None:
        # Before the champion is replaced: if we are interrupted between, who it was is not lost.
        client.set_registered_model_alias(card.name, ARCHIVED, former)
    client.set_registered_model_alias(card.name, PRODUCTION, version)
    aliases = _aliases(client, card)
    for alias in (*STAGING, ARCHIVED):
        if aliases.get(alias) == version:
            _drop_alias(client, card, alias)
    _repeat_in_tags(client, card)
    return former


def retire_production(
    connection: Connection, card: Card, settings: Settings | None = None
) -> str | None:
    """Take the champion out of production, with none to follow; return its version, None if none.

    Its row of `ops.deployments` is closed; the caller commits.
    """
    client = tracking.client(settings or get_settings())
    version = _aliases(client, card).get(PRODUCTION)
    recorded = _close_deployment(connection, card)
    if version is not None:
        client.set_registered_model_alias(card.name, ARCHIVED, version)
        _drop_alias(client, card, PRODUCTION)
        _repeat_in_tags(client, card)
    return version or recorded


def record_deployment(
    connection: Connection,
    card: Card,
    version: str,
    *,
    cause: str,
    training_id: str | None = None,
    candidate: str | None = None,
    gate: dict[str, Any] | None = None,
    began: Began = "gate",
) -> int:
    """Close the champion's row of `ops.deployments`, open one for `version`, and return its id.

    `began` says how the stay begins, and is what `stays.former_stays` goes by.
    To be called after `promote`: the alias is the truth, and a crash between the two is healed by
    `heal_history`. For the version that is recorded already nothing changes. Both writes
    are in the caller's transaction.
    """
    current = current_deployment(connection, card)
    if current is not None and current["model_version"] == version:
        return int(current["id"])
    _close_deployment(connection, card, version)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.deployments (card, model_version, training_id, candidate, cause, gate,"
            " began, deployed_at) VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp())"
            " RETURNING id",
            (card.name, version, training_id, candidate, cause, gate and Json(gate), began),
        )
        row = cursor.fetchone()
        # Whatever brought it there: who answers is in nobody's shadow.
        cursor.execute(
            "UPDATE ops.shadows SET ended_at = clock_timestamp(), ended_by = %s"
            " WHERE card = %s AND model_version = %s AND ended_at IS NULL",
            ("it went to production", card.name, version),
        )
    assert row is not None
    return int(row[0])


def heal_history(
    connection: Connection, card: Card, settings: Settings | None = None
) -> str | None:
    """Have `ops.deployments` say what the alias says; return the champion, None if there is none.

    The two differ after a crash between the alias and the commit of its row. The row that is made
    for the alias's version names the one that it replaced, as a gate's numbers do.
    """
    champion = production_version(card, settings)
    current = current_deployment(connection, card)
    recorded = None if current is None else str(current["model_version"])
    if champion == recorded:
        return champion
    if champion is None:
        _close_deployment(connection, card)
        return None
    tags = get_version(card, champion, settings).tags
    reason = "its deployment was interrupted before this row was written"
    record_deployment(
        connection,
        card,
        champion,
        cause=reason,
        training_id=tags.get(tracking.TRAINING_TAG),
        candidate=tags.get(tracking.CANDIDATE_TAG),
        gate={"promote": True, "reason": reason, "numbers": {"champion": recorded}},
        began="healed",
    )
    return champion


def current_deployment(connection: Connection, card: Card) -> dict[str, Any] | None:
    """Return the row of `ops.deployments` that is in production, None if there is none."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT * FROM ops.deployments WHERE card = %s AND retired_at IS NULL", (card.name,)
        )
        row = cursor.fetchone()
    return None if row is None else dict(row)


def _close_deployment(connection: Connection, card: Card, by: str | None = None) -> str | None:
    """Close the champion's row; `by` is the version that takes its place."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.deployments SET retired_at = clock_timestamp(), retired_by = %s"
            " WHERE card = %s AND retired_at IS NULL RETURNING model_version",
            (by, card.name),
        )
        row = cursor.fetchone()
    return None if row is None else str(row[0])


def _registered(client: MlflowClient, card: Card) -> RegisteredModel | None:
    try:
        return client.get_registered_model(card.name)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


def _aliases(client: MlflowClient, card: Card) -> dict[str, str]:
    model = _registered(client, card)
    return {} if model is None else {alias: str(v) for alias, v in model.aliases.items()}


def _drop_alias(client: MlflowClient, card: Card, alias: str) -> None:
    if alias in _aliases(client, card):
        client.delete_registered_model_alias(card.name, alias)


def _repeat_in_tags(client: MlflowClient, card: Card) -> None:
    """Set the tag `stage` of every version to what the aliases say, whatever it said before."""
    aliases = _aliases(client, card)
    stages = {aliases[alias]: "staging" for alias in STAGING if alias in aliases}
    if PRODUCTION in aliases:
        stages[aliases[PRODUCTION]] = PRODUCTION
    for version in client.search_model_versions(f"name = '{card.name}'"):
        number, before = str(version.version), version.tags.get(STAGE_TAG)
        # Whoever was champion once is archived, and stays so when a later one is.
        once = before in (PRODUCTION, ARCHIVED) or aliases.get(ARCHIVED) == number
        stage = stages.get(number, ARCHIVED if once else "none")
        if stage != before:
            client.set_model_version_tag(card.name, number, STAGE_TAG, stage)
