"""Fit one candidate, score it on the validation months, and log its MLflow run."""

from mlops.database import connect
from mlops.training.errors import CandidateError
from mlops.training.fit import fit_candidate

if "transformer" not in globals():
    from mage_ai.data_preparation.decorators import transformer


@transformer
def fit(child, *_upstream, **_variables):
    try:
        with connect() as connection:
            fitted = fit_candidate(
                child["candidate"], child["training_id"], connection, progress=print
            )
    except CandidateError as error:
        # One that fails is named in the leaderboard; the others go on.
        print(f"FAILED: {error}")
        return {**child, "failed": str(error)}
    rows = [f"{name:<32}{value:>12.4f}" for name, value in sorted(fitted["metrics"].items())]
    print(f"{child['candidate']}, MLflow run {fitted['run_id']}\n" + "\n".join(rows))
    return {**child, "run_id": fitted["run_id"]}
