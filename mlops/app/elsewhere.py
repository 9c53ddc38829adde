"""The other user interfaces: under which address a browser finds them, and whether Grafana runs."""

from __future__ import annotations

from urllib.parse import urlsplit

import requests
import streamlit as st

from mlops.settings import Settings

#: Seconds for which an answer about Grafana is good, for all who look at the app.
GOOD_FOR_S = 30
_PATIENCE_S = 0.5


def in_browser(url: str) -> str:
    """Return `url` with the host under which the reader's browser found this app.

    In compose, servers reach one another by names that a browser does not know.
    """
    here = urlsplit(st.context.url or "").hostname
    if not here:
        return url
    there = urlsplit(url)
    host = f"[{here}]" if ":" in here else here
    return there._replace(netloc=f"{host}:{there.port}").geturl()


def grafana_address(settings: Settings) -> str | None:
    """Return where a browser finds Grafana, None if none answers."""
    if settings.grafana == "off" or not _is_grafana(settings.grafana_url):
        return None
    return in_browser(settings.grafana_url)


@st.cache_data(ttl=GOOD_FOR_S, show_spinner=False)
def _is_grafana(url: str) -> bool:
    """Return whether Grafana answers; anything may listen on a port as common as 3000."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the machine has no business here
        try:
            report = session.get(f"{url}/api/health", timeout=_PATIENCE_S).json()
        except (requests.RequestException, ValueError):
            return False
    return isinstance(report, dict) and "database" in report
