"""Every setting of the project, typed, read once from the environment and `.env`.

No other module looks at the environment. Secrets have no default: `make setup` generates them
into `.env` (mode 600), and code that needs one gets it through `Settings.secret`, which says how
to make it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


class MissingSecretError(RuntimeError):
    """A secret is needed and not set."""


def _path_or_none(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return ROOT / Path(value).expanduser() if value else None


class Settings(BaseSettings):
    """Settings, each readable as `MLOPS_<NAME>` from the environment, else from `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="MLOPS_",
        env_file=ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    # What is learnt, and from what
    card: str = Field("bank_marketing", description="Name of a card, or path of a card file.")
    data: str | None = Field(None, description="Local zip or CSV, or an address of one.")
    candidates: Path = Field(ROOT / "mlops" / "training" / "candidates.yaml")
    seed: int = 42
    recency_half_life_months: float = Field(
        1.0, ge=0, description="Age at which a row counts half in a training; 0: all count alike."
    )
    validation_min_rows: int = Field(
        200, ge=1, description="If a training's newest months have fewer, the one before joins."
    )
    validation_folds: int = Field(
        3, ge=1, description="In which the newest months are scored; 1: by the earlier rows alone."
    )
    training_threads: int = Field(
        1, ge=1, description="Of one candidate; the candidates run beside one another."
    )

    search_trials: int = Field(
        4, ge=0, description="Of each candidate, the file's own parameters first; 0: no search."
    )
    search_seconds: float = Field(
        120.0, gt=0, description="After which a candidate's search begins no further trial."
    )
    search_folds: int = Field(
        3, ge=1, description="Blocks of latest months by which trials are judged, each by the past."
    )
    ensemble_size: int = Field(
        3, ge=0, description="Best candidates whose mean is one more; below 2: none."
    )

    evidence_seconds: float = Field(
        10.0,
        ge=0,
        description="After which deploy and retrain leave further versions' evidence to the"
        " pipeline evidence; 0: none is written.",
    )

    in_containers: bool = Field(False, description="Set by the images; names other commands.")

    # Where state lies
    state_dir: Path = Field(ROOT / ".stack", description="All state of the embedded stack.")
    payloads_dir: Path = Field(ROOT / "payloads", description="Written by deploy, read by predict.")
    reports_dir: Path = Field(ROOT / "reports", description="HTML drift reports.")
    mlflow_artifacts: str | None = Field(
        None, description="Where models are kept, if not in the state folder: s3://bucket/path …"
    )
    cache_dir: Path = Field(
        Path("~/.cache/mlops").expanduser(), description="Downloads, shared between clones."
    )

    # Servers; all on loopback unless asked
    host: str = Field("127.0.0.1", description="Where servers listen.")
    # Under which name the others reach a server, if not where it listens (in compose).
    mage_host: str | None = None
    listener_host: str | None = None
    mlflow_host: str | None = None
    grafana_host: str | None = None
    streamlit_host: str | None = None
    predict_host: str | None = None
    prometheus_host: str | None = None
    mage_port: int = 6789
    listener_port: int = 6790
    mlflow_port: int = 5000
    grafana_port: int = 3000
    streamlit_port: int = 8501
    predict_port: int = 9696
    predict_workers: int = 2
    prometheus_port: int = 9090
    postgres_host: str = "127.0.0.1"
    postgres_port: int = Field(15432, description="Not 5432: many laptops run a Postgres there.")

    postgres_sslmode: Literal["disable", "require"] = Field(
        "disable", description="Of every connection; on loopback there is nothing to encrypt."
    )

    # Grafana of the embedded stack
    grafana: Literal["auto", "off"] = Field(
        "auto", description="off: the evaluator watches the rules, and nothing is downloaded."
    )
    grafana_home: Path | None = Field(
        default_factory=lambda: _path_or_none("GRAFANA_HOME"),
        description="Folder of an unpacked Grafana; without the prefix it is Grafana's own name.",
    )

    # Prometheus of the embedded stack
    prometheus: Literal["auto", "off"] = Field(
        "auto", description="auto: if one is there; none is ever downloaded."
    )
    prometheus_home: Path | None = Field(
        None, description="Folder of an unpacked Prometheus; default: the one on PATH."
    )

    # Secrets; see MissingSecretError
    postgres_password: SecretStr | None = Field(None, description="Role mlops, the owner.")
    grafana_db_password: SecretStr | None = Field(None, description="Role grafana, reads.")
    mlflow_db_password: SecretStr | None = Field(None, description="Role mlflow, its database.")
    predict_db_password: SecretStr | None = Field(None, description="Role predict, inserts.")
    grafana_admin_password: SecretStr | None = Field(None, description="Login admin of Grafana.")
    grafana_secret_key: SecretStr | None = Field(
        None, description="Encrypts what Grafana keeps; its own default is known to everybody."
    )
    mage_owner_email: str = "owner@localhost.localdomain"
    mage_owner_password: SecretStr | None = None
    mage_trigger_token: SecretStr | None = Field(None, description="Token of Mage's API triggers.")
    webhook_token: SecretStr | None = Field(None, description="Bearer token of the listener.")
    notify_url: SecretStr | None = Field(
        None, description="Webhook (Slack's form) that is told what a retrain came to; empty: none."
    )

    # The predict API
    predict_api_key: SecretStr | None = Field(
        None, description="Clients must then send it as a bearer token; empty: nobody is asked."
    )
    predict_rate_limit: float = Field(
        0.0, ge=0, description="Requests a second of one client address; 0: as many as it likes."
    )
    predict_rate_burst: int = Field(
        20, ge=1, description="Requests that a client may send at once before the rate counts."
    )
    predict_max_records: int = Field(10_000, ge=1, description="Records of one request.")
    predict_max_body_mb: int = Field(10, ge=1, description="JSON of one request.")
    predict_batch_max_mb: int = Field(4096, ge=1, description="A file of rows, once unpacked.")
    predict_body_timeout_s: float = Field(
        30.0, gt=0, description="How long a client may take to send a request."
    )
    predict_access_log: Literal["off", "errors", "all"] = Field(
        "errors", description="Requests that get a log line; errors: refused, failed or over 1 s."
    )
    exchange_dir: Path = Field(
        ROOT / "data", description="Holds inbox, outbox, rejected, done: files to be scored."
    )

    # The app
    app_actions: Literal["on", "off"] = Field(
        "on", description="Whether page Models may roll back, promote and release, by Mage."
    )

    # When the model is good enough, and when the world has moved
    prediction_drift_threshold: float = Field(0.1, gt=0)
    column_drift_threshold: float = Field(0.1, gt=0)
    drifted_columns_threshold: float = Field(
        0.5, description="Share of drifted columns that is still accepted (drawn in the panel)."
    )
    drift_min_rows: int = Field(
        200, ge=1, description="Smaller months are measured, never alarmed on."
    )
    signal_confidence: float = Field(
        0.99, gt=0.5, lt=1, description="Of what is called beyond chance: its quantile or interval."
    )
    performance_confidence: float = Field(
        0.999, gt=0.5, lt=1, description="Of the intervals of ROC AUC and calibration."
    )
    missing_margin: float = Field(
        0.05, ge=0, description="Share of missing values above the reference's that is accepted."
    )
    auc_loss_margin: float = Field(
        0.15, ge=0, description="ROC AUC below validation's that is accepted."
    )
    calibration_margin: float = Field(
        0.03, ge=0, description="Mean score beside the share of positives that is accepted."
    )
    gate_margin: float = Field(
        0.0, ge=0, lt=1, description="ROC AUC by which a challenger must be better."
    )
    gate_confidence: float = Field(
        0.8, gt=0.5, lt=1, description="Share of resamples in which it must be, for the gate."
    )
    gate_equal: float = Field(
        0.02, ge=0, description="ROC AUC that a challenger may lack if it is better calibrated."
    )
    gate_resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the gate.")
    gate_min_rows: int = Field(
        100, ge=1, description="Fewer rows that neither saw do not replace a champion."
    )
    gate_slice_share: float = Field(
        0.1, gt=0, le=1, description="Share of the gate's rows from which a slice can hold."
    )
    gate_slice_rows: int = Field(100, ge=1, description="Rows from which a slice can hold.")
    gate_slice_margin: float = Field(
        0.05, ge=0, description="ROC AUC or Brier by which a challenger may be worse on a slice."
    )
    shadow_held: bool = Field(
        True, description="A challenger that the gate holds scores live traffic in shadow."
    )
    parity_tolerance: float = Field(1e-5, description="Largest ONNX against sklearn difference.")
    retrain_window_months: int = Field(12, ge=2, description="Labelled months of a retrain.")
    retrain_cool_down_s: int = Field(60, ge=0, description="Rest between two retrains.")
    retrain_tries: int = Field(
        3, ge=1, description="Retrains for one alert, as long as they fail and it is not over."
    )
    retrain_limit_s: int = Field(
        3600, ge=1, description="A retrain that runs longer counts as failed."
    )
    mage_block_limit_s: int = Field(
        1800, ge=1, description="A run in Mage in which nothing moves for so long is failed."
    )
    test_months: int = Field(3, ge=1, description="Months after the window that test scores.")

    notify_app_url: str | None = Field(
        None, description="Address of the app in notices, where people read them elsewhere."
    )

    # Reports: what is older, or more, is deleted after each monitoring (mlops/reporting/library.py)
    reports_keep_months: int = Field(
        24, ge=1, description="Latest months of each version, and of retrains."
    )
    reports_max_mb: int = Field(
        200, ge=10, description="Of all; a month is about 0.3 MB. The oldest retired go first."
    )

    # Which rows may be learnt from (mlops/dataset/quality.py); beyond, a training is refused
    quality_min_rows: int = Field(
        200, ge=2, description="Of a window. As many as a month that may alarm (drift_min_rows)."
    )
    quality_min_class_rows: int = Field(
        20,
        ge=1,
        description="Of the rarer answer. The interval of a ROC AUC is 0.3 wide with so few"
        " (Hanley and McNeil 1982).",
    )
    quality_out_of_range_share: float = Field(
        0.01, ge=0, le=1, description="Of a column's values outside the card's bounds."
    )
    quality_missing_share: float = Field(
        0.99, ge=0, le=1, description="Of a column in the window: with less it teaches nothing."
    )
    quality_missing_rise: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Of a month's missing share over the months before it; real months rise by"
        " 0.2 at most, one of 80 rows by 0.3.",
    )
    quality_unlabelled_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Of answered rows without a label, in a month of validation or in the window;"
        " labels come selectively, and most of a month bias least (Chapelle 2014).",
    )
    quality_duplicate_share: float = Field(
        0.2, ge=0, le=1, description="Of a month's rows beyond coincidence; real months: 0.006."
    )
    quality_repeated_share: float = Field(
        0.5, ge=0, le=1, description="Of a month's rows that are another month's; real months: 0."
    )
    quality_leakage_auc: float = Field(
        0.98, gt=0.5, le=1, description="ROC AUC that no feature has alone unless it knows."
    )

    @field_validator(
        "candidates",
        "state_dir",
        "payloads_dir",
        "reports_dir",
        "cache_dir",
        "grafana_home",
        "prometheus_home",
        "exchange_dir",
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Take a relative path from the repository's root, whatever folder a process runs in."""
        return None if value is None else ROOT / value.expanduser()

    @field_validator("card")
    @classmethod
    def _absolute_card(cls, value: str) -> str:
        """Take a card's file from the repository's root too; a name stays as it is."""
        if "/" not in value and not value.endswith((".yaml", ".yml")):
            return value
        return str(ROOT / Path(value).expanduser())

    @field_validator("data")
    @classmethod
    def _absolute_file(cls, value: str | None) -> str | None:
        """Take a relative file from the repository's root too; an address stays as it is."""
        if not value or not value.strip() or "://" in value:
            return value
        return str(ROOT / Path(value.strip()).expanduser())

    @property
    def start_command(self) -> str:
        """What a person runs to have this stack running."""
        return "make compose-up" if self.in_containers else "make up"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.mlflow_host or self.host}:{self.mlflow_port}"

    @property
    def mage_url(self) -> str:
        return f"http://{self.mage_host or self.host}:{self.mage_port}"

    @property
    def predict_url(self) -> str:
        return f"http://{self.predict_host or self.host}:{self.predict_port}"

    @property
    def listener_url(self) -> str:
        return f"http://{self.listener_host or self.host}:{self.listener_port}"

    @property
    def grafana_url(self) -> str:
        return f"http://{self.grafana_host or self.host}:{self.grafana_port}"

    @property
    def prometheus_url(self) -> str:
        return f"http://{self.prometheus_host or self.host}:{self.prometheus_port}"

    @property
    def streamlit_url(self) -> str:
        return f"http://{self.streamlit_host or self.host}:{self.streamlit_port}"

    def secret(self, name: str) -> str:
        """Return the secret `name` in the clear.

        Raises MissingSecretError, naming the variable and the command that makes it, if it is not
        set, or empty: an empty token would let everybody in.
        """
        value: SecretStr | None = getattr(self, name)
        if value is None or not value.get_secret_value():
            raise MissingSecretError(
                f"MLOPS_{name.upper()} is not set: run `make setup`, which generates it into .env"
            )
        return value.get_secret_value()

    def environment(self) -> dict[str, str]:
        """Return these settings as variables, for a child process: secrets in the clear.

        What is None is left out, since the child's own default is None as well.
        """
        variables = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if value is not None:
                variables[f"MLOPS_{name.upper()}"] = str(value)
        return variables


OPTIONAL_SECRETS = frozenset({"predict_api_key", "notify_url"})
"""Never generated: they are there if a person has chosen one."""


def secret_names(optional: bool = True) -> list[str]:
    """Return the names of the settings that are secrets, as they stand in `Settings`."""
    return [
        name
        for name, field in Settings.model_fields.items()
        if field.annotation in (SecretStr, SecretStr | None)
        and (optional or name not in OPTIONAL_SECRETS)
    ]


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process; read once."""
    return Settings()
