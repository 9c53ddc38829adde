"""What the stack consists of: each server's command, environment, secrets and sign of health.

It starts nothing itself: the process manager runs `mlops.stack.launch <name>`, which looks up here
what to become. So a service sees only the secrets that it needs, and no file but `.env` holds any.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from mlops.alerting.heartbeat import heartbeat_complaint
from mlops.alerting.rules import provisioning_environment
from mlops.database import database_url
from mlops.orchestration.server import mage_command, mage_environment, tokens_set_path
from mlops.settings import ROOT, Settings, get_settings, secret_names
from mlops.stack import postgres, prometheus
from mlops.stack.grafana import Grafana, remembered
from mlops.stack.proxies import bypass

SERVICES_PYTHON = ROOT / ".venv-services" / "bin" / "python"
_GRAFANA_FILES = ROOT / "grafana"
_PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Service:
    """One server of the stack.

    `secrets` are names in `Settings`; `environment` is computed when the service is launched, since
    it may hold them too. `waits_for` is a file without which there is nothing to run yet.
    """

    name: str
    command: Callable[[], list[str]]
    port: int | None = None
    port_setting: str | None = None
    health: Callable[[], str | None] | None = None
    environment: Callable[[], dict[str, str]] = dict
    secrets: tuple[str, ...] = ()
    user: Callable[[], str | None] = lambda: None
    waits_for: Path | None = None
    stop_signal: str = "TERM"
    stop_seconds: int = 15
    start_seconds: float = 90.0
    address: str | None = None


def services(settings: Settings | None = None) -> list[Service]:
    """Return the servers of this stack, Postgres first, the others in no order.

    Which one watches the alert rules, and whether a Prometheus runs, was decided at the last start.
    """
    settings = settings or get_settings()
    python = str(SERVICES_PYTHON)
    payload = settings.payloads_dir / "current"
    found = [
        Service(
            "postgres",
            lambda: postgres.server_command(settings),
            settings.postgres_port,
            "MLOPS_POSTGRES_PORT",
            lambda: None if postgres.is_ready(settings) else "does not answer",
            user=postgres.system_user,
            stop_signal="INT",  # fast: SIGTERM would wait for every client to leave
            stop_seconds=30,
        ),
        Service(
            "mlflow",
            lambda: [
                *[python, "-m", "mlflow", "server"],
                *["--host", settings.host, "--port", str(settings.mlflow_port)],
                *["--workers", "1"],
            ],
            settings.mlflow_port,
            "MLOPS_MLFLOW_PORT",
            lambda: _answers(f"{settings.mlflow_url}/health"),
            lambda: {
                # In the environment, since a command line is there for everybody to see.
                "MLFLOW_BACKEND_STORE_URI": database_url(
                    "mlflow", "mlflow", settings=settings, driver="postgresql+psycopg2"
                ),
                "MLFLOW_ARTIFACTS_DESTINATION": settings.mlflow_artifacts
                or str(settings.state_dir / "mlflow-artifacts"),
                # Eight more processes and 1.3 GB for jobs that nobody here submits.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            },
            secrets=("mlflow_db_password",),
            start_seconds=180,
            address=settings.mlflow_url,
        ),
        Service(
            "mage",
            lambda: mage_command(settings),
            settings.mage_port,
            "MLOPS_MAGE_PORT",
            lambda: _mage_complaint(settings),
            lambda: {
                **mage_environment(settings),
                "MLFLOW_TRACKING_URI": settings.mlflow_url,
                "GIT_PYTHON_REFRESH": "quiet",
                # Candidates are fitted side by side and must not fight for the cores.
                "OMP_NUM_THREADS": str(settings.training_threads),
                "OPENBLAS_NUM_THREADS": str(settings.training_threads),
            },
            secrets=(
                *("postgres_password", "mage_owner_password", "mage_trigger_token"),
                "predict_api_key",
            ),
            start_seconds=180,
            address=settings.mage_url,
        ),
        Service(
            "predict",
            lambda: [python, "-m", "gunicorn", "-c", str(payload / "gunicorn.conf.py")],
            settings.predict_port,
            "MLOPS_PREDICT_PORT",
            lambda: _reports_ok(f"{settings.predict_url}/health"),
            secrets=("predict_db_password", "predict_api_key"),
            waits_for=payload / "predict.py",
            stop_seconds=35,  # gunicorn gives requests under way 30 s: a file takes a while
            address=settings.predict_url,
        ),
        Service(
            "listener",
            lambda: [
                *[python, "-m", "gunicorn", "mlops.alerting.listener:create_app()"],
                *["--bind", f"{settings.host}:{settings.listener_port}"],
                *["--workers", "1", "--threads", "4", "--no-control-socket"],
            ],
            settings.listener_port,
            "MLOPS_LISTENER_PORT",
            lambda: _reports_ok(f"{settings.listener_url}/health"),
            secrets=("postgres_password", "webhook_token", "mage_trigger_token", "notify_url"),
            address=settings.listener_url,
        ),
        Service(
            "streamlit",
            lambda: [
                *[python, "-m", "streamlit", "run", str(ROOT / "mlops" / "app" / "Home.py")],
                *["--server.address", settings.host],
                *["--server.port", str(settings.streamlit_port)],
                *["--server.headless", "true", "--browser.gatherUsageStats", "false"],
            ],
            settings.streamlit_port,
            "MLOPS_STREAMLIT_PORT",
            lambda: _answers(f"{settings.streamlit_url}/_stcore/health"),
            secrets=("grafana_db_password", "predict_api_key", "mage_trigger_token"),
            address=settings.streamlit_url,
        ),
    ]
    program = prometheus.remembered(settings)
    if program is not None:
        found.append(
            Service(
                "prometheus",
                lambda: prometheus.server_command(settings, program),
                settings.prometheus_port,
                "MLOPS_PROMETHEUS_PORT",
                lambda: _answers(f"{settings.prometheus_url}/-/ready"),
                stop_seconds=30,
                address=settings.prometheus_url,
            )
        )
    return [*found, watcher(settings, remembered(settings))]


def watcher(settings: Settings, grafana: Grafana | None) -> Service:
    """Return the server that evaluates the alert rules: `grafana`, or the evaluator without one.

    Never both: each alert would be told twice.
    """
    if grafana is None:
        return Service(
            "evaluator",
            lambda: [str(SERVICES_PYTHON), "-m", "mlops.alerting.evaluator"],
            health=lambda: heartbeat_complaint(settings),
            secrets=("postgres_password", "grafana_db_password", "webhook_token"),
        )
    return Service(
        "grafana",
        lambda: [
            *[str(grafana.program), "server", "--homepath", str(grafana.home)],
            *["--config", str(_GRAFANA_FILES / "grafana.ini")],
        ],
        settings.grafana_port,
        "MLOPS_GRAFANA_PORT",
        lambda: _grafana_complaint(settings),
        lambda: {
            "GF_PATHS_DATA": str(settings.state_dir / "grafana"),
            "GF_PATHS_LOGS": str(settings.state_dir / "grafana" / "log"),
            "GF_PATHS_PLUGINS": str(settings.state_dir / "grafana" / "plugins"),
            "GF_PATHS_PROVISIONING": str(_GRAFANA_FILES / "provisioning"),
            "GF_SERVER_HTTP_ADDR": settings.host,
            "GF_SERVER_HTTP_PORT": str(settings.grafana_port),
            "GF_SECURITY_ADMIN_PASSWORD": settings.secret("grafana_admin_password"),
            "GF_SECURITY_SECRET_KEY": settings.secret("grafana_secret_key"),
            "MLOPS_DASHBOARDS_DIR": str(_GRAFANA_FILES / "dashboards"),
            "MLOPS_PROMETHEUS_URL": settings.prometheus_url,
            **provisioning_environment(settings),
        },
        # Login and key stand under Grafana's own names already.
        secrets=("grafana_db_password", "webhook_token"),
        stop_seconds=30,  # Grafana gives itself as long
        start_seconds=180,  # the first start makes some hundred tables
        address=settings.grafana_url,
    )


def launch_environment(service: Service, settings: Settings | None = None) -> dict[str, str]:
    """Return the environment that `service` runs in: this one, settings, and its own secrets.

    A proxy stays, for the internet, but the stack's own servers are asked without it. What this one
    says about another Postgres or Grafana does not count.
    """
    settings = settings or get_settings()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "GF_"))
    }
    visible = settings.environment()
    hidden = {f"MLOPS_{name.upper()}" for name in secret_names() if name not in service.secrets}
    environment = {**inherited, **visible, **service.environment()}
    environment.update(bypass(environment, settings))
    for name in hidden:
        environment.pop(name, None)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


def _mage_complaint(settings: Settings) -> str | None:
    """Return None if Mage answers and can be asked to start a pipeline."""
    complaint = _answers(f"{settings.mage_url}/api/status")
    if complaint is None and not tokens_set_path(settings).exists():
        return "its triggers have no token yet"
    return complaint


def _grafana_complaint(settings: Settings) -> str | None:
    """Return None if Grafana and its own database are well, else what is not."""
    answer = _ask(f"{settings.grafana_url}/api/health")
    if isinstance(answer, str):
        return answer
    try:
        database = str(answer.json()["database"])
    except (ValueError, TypeError, KeyError):
        return "answers without a status"
    return None if database == "ok" else f"its own database: {database}"


def _answers(url: str) -> str | None:
    """Return None if `url` answers 200, else what it does instead."""
    answer = _ask(url)
    return answer if isinstance(answer, str) else None


def _reports_ok(url: str) -> str | None:
    """Return None if the health that `url` answers is "ok", else what it says is wrong.

    Servers of ours answer 200 also when they can do only a part of their work.
    """
    answer = _ask(url)
    if isinstance(answer, str):
        return answer
    try:
        report = answer.json()
        status = report["status"]
    except (ValueError, TypeError, KeyError):
        return "answers without a status"
    if status == "ok":
        return None
    reasons = [
        str(report.get("load_error") or ""),
        "its database does not answer" if report.get("database") is False else "",
        "its thread does not run" if report.get("starter") is False else "",
    ]
    return ": ".join([str(status), *filter(None, reasons)])


def _ask(url: str) -> requests.Response | str:
    """Return the answer of `url`, or why there is none that counts."""
    try:
        response = requests.get(url, timeout=_PROBE_TIMEOUT_S)
    except requests.Timeout:
        return f"no answer within {_PROBE_TIMEOUT_S:.0f} s"
    except requests.RequestException:
        return "does not answer"
    return response if response.ok else f"answers {response.status_code}"
