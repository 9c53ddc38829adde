"""Log the mean of the best candidates as one more; nothing is fitted anew."""

from mlops.database import connect
from mlops.training.ensemble import fit_ensemble
from mlops.training.errors import CandidateError

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def ensemble(fitted, *_upstream, **_variables):
    ids = {key: fitted[0][key] for key in ("training_id", "retrain_id") if key in fitted[0]}
    try:
        with connect() as connection:
            blended = fit_ensemble(ids["training_id"], connection)
    except CandidateError as error:
        # One that fails is named in the leaderboard; the candidates go on without it.
        print(f"FAILED: {error}")
        return {**ids, "failed": str(error)}
    if blended is None:
        print("no ensemble: it takes two finished candidates or more, and as many in ensemble_size")
        return ids
    rows = [f"{name:<32}{value:>12.4f}" for name, value in sorted(blended["metrics"].items())]
    print(f"Ensemble, MLflow run {blended['run_id']}\n" + "\n".join(rows))
    return {**ids, "run_id": blended["run_id"]}
