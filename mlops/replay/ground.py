"""A place of a replay's own: settings, card and secrets in a folder that nothing else uses.

Ports are free ones, secrets are made for it and die with it, so a stack that runs is not disturbed.
It starts nothing.
"""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from mlops.dataset.card import Card, load_card
from mlops.dataset.timeline import add_months
from mlops.settings import Settings, get_settings, secret_names
from mlops.training.candidates import get_candidate

_SERVERS = (
    *("mage", "listener", "mlflow", "grafana", "streamlit", "predict", "postgres", "prometheus"),
)
_CARD = "card."
_LOOPBACK = "127.0.0.1"
_NOBODY = "http://127.0.0.1:9/"
"""Where nobody listens, and no request leaves the machine."""


class OverrideError(ValueError):
    """What was asked to be otherwise does not exist, or cannot have that value."""


def own_settings(folder: Path, overrides: Mapping[str, str]) -> tuple[Settings, Card]:
    """Return the settings and the card of a replay in `folder`, which exists.

    They are this machine's (data, candidates, thresholds), but for all that names a place: folders,
    hosts, ports, the models' store, secrets, and whom a retrain's outcome is told; and nothing is
    searched. What could be None has a value, since the servers would take another from the
    environment or `.env`.
    `overrides` are settings by name, or `card.` and a path into the card, as in
    `card.time.validation_months`; values are written as YAML. Raises OverrideError for a name that
    is none, ValidationError or CardError for a value that cannot be.
    """
    known = Settings.model_fields
    given = {name: value for name, value in overrides.items() if not name.startswith(_CARD)}
    for name in given:
        if name not in known or name in secret_names():
            raise OverrideError(f"{name!r} is no setting that can be set here (mlops/settings.py)")
    ports = _free_ports(len(_SERVERS))
    base = get_settings()
    values: dict[str, Any] = {
        **{name: getattr(base, name) for name in known if name not in secret_names()},
        **{name: secrets.token_urlsafe(24) for name in secret_names()},
        "notify_url": _NOBODY,
        "host": _LOOPBACK,
        **{name: _LOOPBACK for name in known if name.endswith("_host")},
        "postgres_sslmode": "disable",
        "in_containers": False,
        **{f"{name}_port": port for name, port in zip(_SERVERS, ports, strict=True)},
        "state_dir": folder / "state",
        "mlflow_artifacts": str(folder / "state" / "mlflow-artifacts"),
        "payloads_dir": folder / "payloads",
        "reports_dir": folder / "reports",
        "exchange_dir": folder / "exchange",
        "grafana": "off",
        "prometheus": "off",
        "search_trials": 0,  # dozens of trainings, in each of which the file's parameters play
        **{name: yaml.safe_load(value) for name, value in given.items()},
    }
    path = own_card(
        load_card(values["card"]),
        folder,
        {
            name.removeprefix(_CARD): yaml.safe_load(value)
            for name, value in overrides.items()
            if name.startswith(_CARD)
        },
    )
    settings = Settings(_env_file=None, **{**values, "card": str(path)})
    return settings, load_card(settings.card)


def first_month(card: Card) -> str:
    """Return the month that a replay of the card begins with, unless another is asked for.

    Raises OverrideError if the card names none.
    """
    if card.time.replay_from is not None:
        return card.time.replay_from
    if card.time.history_until is None:
        raise OverrideError(
            f"{card.path.name} tells no month that a replay could begin with: set "
            "time.history_until in it, or ask for one with --from"
        )
    return add_months(card.time.history_until, 1)


def own_card(card: Card, folder: Path, changes: Mapping[str, Any]) -> Path:
    """Write the card into `folder` with `changes` (dotted path → value); return the file."""
    content = yaml.safe_load(card.path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *steps, last = name.split(".")
        part: Any = content
        for step in steps:
            # A list of the card holds parts with names: `features.day.learn`.
            named = {each["name"]: each for each in part} if isinstance(part, list) else part
            part = named.get(step)
            if not isinstance(part, dict | list):
                raise OverrideError(f"the card {card.name} has no part {step!r} ({_CARD}{name})")
        if not isinstance(part, dict):
            raise OverrideError(f"{_CARD}{name}: name one of its entries, then what to change")
        part[last] = value
    path = folder / card.path.name
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if card.sample is not None:
        shutil.copy(card.path.with_name(card.sample.file), folder)
    return path


def own_candidates(settings: Settings, names: Collection[str], folder: Path) -> Settings:
    """Return the settings with a file of candidates that has these only; none: all of them."""
    if not names:
        return settings
    for name in names:
        get_candidate(name, settings.candidates)  # says what there is, if it is not there
    content = yaml.safe_load(settings.candidates.read_text(encoding="utf-8"))
    path = folder / settings.candidates.name
    chosen = {name: entry for name, entry in content.items() if name in names}
    path.write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
    return settings.model_copy(update={"candidates": path})


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, each once: all are held until all are found."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
