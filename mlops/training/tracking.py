"""What a training keeps in MLflow, and how it is read back: by run id, never by "the latest".

Everything goes through a client and names its run: MLflow's global active run would be shared by
whatever else a process does. Models are stored with skops and not as pickles: loading one builds
objects of an allowed list of types, and runs no code that came with the file.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.artifacts
import mlflow.data
import mlflow.sklearn
import pandas as pd
import skops.io
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sklearn.pipeline import Pipeline

from mlops.dataset.card import TARGET, Card, Costs
from mlops.settings import ROOT, Settings
from mlops.training.candidates import ALLOWED_PACKAGES, ENSEMBLE, Candidate
from mlops.training.errors import TrainingError
from mlops.training.records import Training

if TYPE_CHECKING:
    from mlops.training.search import Trial

logger = logging.getLogger(__name__)

MODEL = "model"
REFERENCE = "reference/reference.parquet"
TRAINING_TAG, CANDIDATE_TAG, FAILURE_TAG = "training_id", "candidate", "failure"
LEARNT_TAG = "learnt_at"
"""When the learning was over, ISO 8601 in UTC; it took `fit_seconds`. What follows is logging."""
TRIAL_TAG = "trial"
"""On runs of a search's trials only: complete, pruned or failed."""
RECIPE_TAG = "recipe"
"""The candidate as it was learnt with, so that it can be fitted again on other rows."""

TAG_LENGTH = 5000
"""MLflow's limit of a tag."""

_EXAMPLE_ROWS = 5
_SOURCE_COMMIT = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Logged:
    """What a run holds. `reference` is validation: rows by features, target, period, score."""

    card: Card
    candidate: Candidate
    pipeline: Pipeline
    reference: pd.DataFrame
    metrics: dict[str, float]
    params: dict[str, Any]
    digest: str
    search: str = ""
    """What the search of its parameters came to, for a log; empty without one."""


def client(settings: Settings) -> MlflowClient:
    """Return a client of the stack's tracking server and registry."""
    return MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)


def experiment(mlflow_client: MlflowClient, name: str) -> str:
    """Return the id of the experiment `name`, made (or brought back from the bin) if need be."""
    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(mlflow_client.create_experiment(name))
        except MlflowException:
            # Another candidate's process was quicker.
            found = mlflow_client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        mlflow_client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def runs(
    mlflow_client: MlflowClient, experiment_id: str, training_id: str, candidate: str | None = None
) -> list[Run]:
    """Return the runs of a training (of one candidate, if given), the earliest first."""
    wanted = {TRAINING_TAG: training_id}
    if candidate is not None:
        wanted[CANDIDATE_TAG] = candidate
    for value in wanted.values():
        if "'" in value:  # the filter language has no way to write one
            raise TrainingError(f"found {value!r}, expected an id or a name without quotes")
    found, token = [], None
    while True:
        page = mlflow_client.search_runs(
            [experiment_id],
            " and ".join(f"tags.{key} = '{value}'" for key, value in wanted.items()),
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += list(page)
        token = page.token
        if not token:
            return found


def tags(training: Training, candidate: str) -> dict[str, str]:
    """Return the tags of a new run: what it belongs to, and the code's commit where it has one."""
    commit = git_commit(ROOT)
    return {
        TRAINING_TAG: training.id,
        CANDIDATE_TAG: candidate,
        "cause": training.cause,
        "window_start": training.window_start,
        "window_end": training.window_end,
        "mlflow.source.name": "mlops.training",
        **({_SOURCE_COMMIT: commit} if commit else {}),
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out in `folder`; None if it is no git repository itself.

    A folder inside of another project's repository has no commit of its own.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    top, _, commit = done.stdout.strip().rpartition("\n")
    return commit if top and Path(top).resolve() == folder.resolve() else None


def log(run_id: str, logged: Logged, settings: Settings) -> None:
    """Write parameters, data set, reference, model and metrics of a run."""
    learnt_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    mlflow_client = client(settings)
    mlflow_client.log_batch(
        run_id,
        params=[Param(key, str(value)) for key, value in logged.params.items()],
        tags=[
            RunTag("data_digest", logged.digest),
            RunTag(LEARNT_TAG, learnt_at),
            *_recipe_tags(logged.candidate),
        ],
    )
    with tempfile.TemporaryDirectory(prefix="mlops-run-") as folder:
        path = Path(folder) / Path(REFERENCE).name
        logged.reference.to_parquet(path, index=False)
        mlflow_client.log_artifact(run_id, str(path), str(Path(REFERENCE).parent))
    _log_dataset(mlflow_client, run_id, logged)
    model_id = _log_model(run_id, logged, settings)
    # After the model, whose metrics they are too: else MLflow copies them there one by one.
    now = int(time.time() * 1000)
    mlflow_client.log_batch(
        run_id,
        metrics=[
            Metric(key, float(value), now, 0, model_id=model_id, run_id=run_id)
            for key, value in logged.metrics.items()
        ],
    )


def log_trial(run_id: str, trial: Trial, settings: Settings) -> None:
    """Write a trial of a search as a run below the candidate's, which has id `run_id`.

    It is written when the trial is over, so none is left running. It has none of the tags by which
    a training's runs are found. Its status: FINISHED, FAILED, or KILLED if it was pruned.
    """
    mlflow_client = client(settings)
    end = int(time.time() * 1000)
    begin = end - int(trial.seconds * 1000)
    run = mlflow_client.create_run(
        mlflow_client.get_run(run_id).info.experiment_id,
        start_time=begin,
        run_name=f"{trial.candidate} trial {trial.number}",
        tags={
            MLFLOW_PARENT_RUN_ID: run_id,
            TRIAL_TAG: trial.state,
            **({FAILURE_TAG: trial.reason[:TAG_LENGTH]} if trial.reason else {}),
        },
    )
    mlflow_client.log_batch(
        run.info.run_id,
        params=[Param(key, str(value)) for key, value in trial.values.items()],
        metrics=[
            *(
                Metric("brier_so_far", value, end, step)
                for step, value in enumerate(trial.briers, start=1)
            ),
            *([] if trial.brier is None else [Metric("brier", trial.brier, end, 0)]),
            Metric("seconds", trial.seconds, end, 0),
        ],
    )
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[trial.state]
    mlflow_client.set_terminated(run.info.run_id, status, end_time=end)


def _recipe_tags(candidate: Candidate) -> list[RunTag]:
    """An ensemble has none: it is not fitted, its members are."""
    if candidate.name == ENSEMBLE:
        return []
    return [RunTag(RECIPE_TAG, recipe_text(candidate))]


def recipe_text(candidate: Candidate) -> str:
    """Return a candidate as JSON, as it was learnt with: without what was searched for it."""
    return candidate.model_dump_json(by_alias=True, exclude={"search"})


def recipe_of(run: Run) -> Candidate | None:
    """Return the candidate that a run was learnt with; None where the run does not say.

    It names a class, which is imported when it is fitted: `Candidate` allows a few packages only.
    """
    text = run.data.tags.get(RECIPE_TAG)
    return None if text is None else Candidate.model_validate_json(text)


def _log_dataset(mlflow_client: MlflowClient, run_id: str, logged: Logged) -> None:
    dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
        logged.reference[[*logged.card.feature_names, TARGET]].astype({TARGET: "float32"}),
        targets=TARGET,
        name=f"{logged.card.name}.validation",
        digest=logged.digest[:36],  # MLflow's limit
    )
    inputs = [
        DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "validation")])
    ]
    try:
        mlflow_client.log_inputs(run_id, inputs)
    except MlflowException:
        # MLflow looks and then writes: where another candidate wrote the same data in between, it
        # fails, and finds it the second time.
        mlflow_client.log_inputs(run_id, inputs)


def _log_model(run_id: str, logged: Logged, settings: Settings) -> str:
    example = logged.reference[logged.card.feature_names].head(_EXAMPLE_ROWS)
    mlflow_client = client(settings)
    types = trusted_types(skops.io.dumps(logged.pipeline))
    # Made here, or it would belong to the global active experiment, and not be found by its run.
    model = mlflow_client.create_logged_model(
        mlflow_client.get_run(run_id).info.experiment_id, name=MODEL, source_run_id=run_id
    )
    mlflow.set_tracking_uri(settings.mlflow_url)  # Model.log takes no address
    mlflow.set_registry_uri(settings.mlflow_url)
    Model.log(
        artifact_path=None,
        name=MODEL,
        flavor=mlflow.sklearn,
        run_id=run_id,
        model_id=model.model_id,
        sk_model=logged.pipeline,
        # Numbers are float32, never nullable integers: those drop the signature in silence.
        signature=infer_signature(example, logged.pipeline.predict_proba(example)),
        input_example=example,
        pyfunc_predict_fn="predict_proba",
        serialization_format="skops",
        skops_trusted_types=types,
        # Named here, or MLflow imports the model in a process of its own to find them: seconds.
        pip_requirements=_requirements(types),
    )
    return str(model.model_id)


def load_pipeline(run_id: str, settings: Settings) -> Pipeline:
    """Return the fitted pipeline of a run.

    What types may be built is decided here: the list in the artifact could come from anybody who
    reaches the tracking server. Raises TrainingError if the model is gone, or holds other types.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-model-") as folder:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=model_uri(run_id, settings),
                dst_path=folder,
                tracking_uri=settings.mlflow_url,
            )
            content = (Path(path) / "model.skops").read_bytes()
        except (MlflowException, OSError) as error:
            raise TrainingError(
                f"run {run_id} has no model at {settings.mlflow_url}: {error}"
            ) from error
    return skops.io.loads(content, trusted=trusted_types(content))


def model_uri(run_id: str, settings: Settings) -> str:
    """Return the address (`models:/<id>`) of the model that a run logged."""
    outputs = client(settings).get_run(run_id).outputs
    if outputs is None or not outputs.model_outputs:
        raise TrainingError(f"run {run_id} at {settings.mlflow_url} has logged no model")
    return f"models:/{outputs.model_outputs[-1].model_id}"


def cost_params(costs: Costs | None) -> dict[str, Any]:
    """Return the params that keep the costs that a run's threshold was chosen by."""
    return {} if costs is None else {f"cost_{name}": value for name, value in dict(costs).items()}


def costs_of(run: Run) -> Costs | None:
    """Return the costs that the run's threshold was chosen by, None if it has the best F1.

    Those of the card may have changed since.
    """
    params = run.data.params
    if "cost_contact" not in params:
        return None
    return Costs(
        contact=float(params["cost_contact"]),
        success=float(params["cost_success"]),
        unit=params["cost_unit"],
    )


def load_reference(run_id: str, settings: Settings) -> pd.DataFrame:
    """Return the validation rows of a run (rows by features, target, period, score).

    Raises TrainingError if they are gone.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-reference-") as folder:
        try:
            path = client(settings).download_artifacts(run_id, REFERENCE, folder)
            return pd.read_parquet(path)
        except (MlflowException, OSError) as error:
            raise TrainingError(
                f"run {run_id} has no {REFERENCE} at {settings.mlflow_url}: {error}"
            ) from error


def trusted_types(content: bytes) -> list[str]:
    """Return the types of a stored pipeline that skops does not know, all of allowed packages.

    Raises TrainingError, naming the types that are of none.
    """
    unknown = skops.io.get_untrusted_types(data=content)
    refused = [
        name
        for name in unknown
        if name != "numpy.dtype" and name.partition(".")[0] not in ALLOWED_PACKAGES
    ]
    if refused:
        raise TrainingError(
            f"the model holds {', '.join(refused)}, expected types of "
            f"{', '.join(ALLOWED_PACKAGES)} only: it is neither stored nor loaded"
        )
    return list(unknown)


def _requirements(types: list[str]) -> list[str]:
    """Return what loading a pipeline needs; `types` are those in it that skops does not know."""
    names = ["scikit-learn", "numpy", "pandas", "skops"]
    packages = {name.partition(".")[0] for name in types} & set(ALLOWED_PACKAGES) - {"sklearn"}
    names += [_distribution(package) for package in sorted(packages)]
    return [f"{name}=={metadata.version(name)}" for name in names]


def _distribution(package: str) -> str:
    """Return the name by which a package is installed: xgboost may be xgboost-cpu."""
    for name in (package, f"{package}-cpu"):
        try:
            return str(metadata.distribution(name).name)
        except metadata.PackageNotFoundError:
            continue
    return metadata.packages_distributions()[package][0]  # reads every file list: a second
