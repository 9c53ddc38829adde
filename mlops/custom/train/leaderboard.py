"""Rank the candidates by Brier on the newest months and register each; fails only if all have."""

from mlops.database import connect
from mlops.training.trainings import finish_training, leaderboard_text

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def leaderboard(ensemble, *_upstream, **_variables):
    training_id = ensemble["training_id"]
    with connect() as connection:
        ranked = finish_training(connection, training_id)
    print(f"training {training_id}\n{leaderboard_text(ranked)}")
    best = ranked[0]
    ids = {key: ensemble[key] for key in ("training_id", "retrain_id") if key in ensemble}
    return {**ids, "best": best["candidate"], "version": best["version"]}
