"""Tell a webhook what a retrain came to; never in the way of the loop, and off without an address.

A thread of the listener looks at `ops.retrains` for what was closed and not told. A try is counted
before it is made and `notified_at` written after it succeeded: so a notice is told once. It is told
again if the process dies in between, or if a server takes it and does not say so within the
deadline: nobody can know that from here. After `TRIES` it is given up and logged.

The address is a secret (whoever has it can write into the channel): it is in no log line and no
message, and neither is an error of the library, whose text holds it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.reporting.words import RETRAINS_SQL, headline
from mlops.settings import Settings

logger = logging.getLogger("gunicorn.error")  # into the server's own log

TRIES = 3
WAIT_S = (15.0, 120.0)
"""Between the first and second, and the second and third try."""

LOOK_EVERY_S = 5.0
TIMEOUT_S = 5.0
"""To connect, and to wait for the next byte."""

DEADLINE_S = 15.0
"""For all of a try: a server that answers a byte at a time never runs into a timeout."""

NOT_OLDER_THAN_S = 24 * 3600
"""What was closed before is no news: an address that is set later tells no history."""

LONGEST = 3000
"""Characters of a notice; Slack cuts a text at 40,000, and nobody reads that far."""


class NoticeError(RuntimeError):
    """A notice was not taken; the message names no address."""


def check_address(url: str) -> str:
    """Return `url` if notices may go there: https, or http on this very machine.

    Raises NoticeError, which does not repeat it, for any other.
    """
    parts = urlsplit(url)
    if parts.hostname and (
        parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
    ):
        return url
    raise NoticeError(
        "MLOPS_NOTIFY_URL is no address that notices go to: expected https://..., "
        "or http:// with localhost"
    )


def notice_text(retrain: Mapping[str, Any], card: Card, settings: Settings) -> str:
    """Return the notice of a closed retrain (a row of `ops.retrains`), as Slack's markup has it."""
    lines = [f"*{_plain(card.title)}*: {headline(retrain)}", f"Why: {_plain(retrain['cause'])}"]
    compared = (retrain["gate"] or {}).get("roc_auc")
    if isinstance(compared, dict):
        lines.append(
            f"ROC AUC {compared['difference']:+.4f} beside the champion "
            f"({compared['low']:+.4f} to {compared['high']:+.4f})"
        )
    if retrain["reason"]:
        lines.append(_plain(retrain["reason"]))
    text = "\n".join(lines)
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return f"{text}\n{report_address(str(retrain['id']), settings)}"


def report_address(retrain_id: str, settings: Settings) -> str:
    """Return where a person reads the report of a retrain: page *Reports* of the app."""
    app = settings.notify_app_url
    if not app:
        # In a container the app listens on all addresses, and is published on the loopback.
        host = "127.0.0.1" if settings.in_containers else (settings.streamlit_host or settings.host)
        app = f"http://{host}:{settings.streamlit_port}"
    return f"{app.rstrip('/')}/reports?retrain={retrain_id}"


def send(url: str, text: str, deadline_s: float = DEADLINE_S) -> None:
    """Post `{"text": text}` to `url`; raise NoticeError unless it is answered 2xx in time.

    What has not been answered by then may still be taken, and so be told again by the next try.
    Redirects are not followed: an address elsewhere is not the one that was chosen.
    """
    outcome: list[NoticeError | None] = []
    thread = threading.Thread(
        target=lambda: outcome.append(_post(url, text)), name="notice", daemon=True
    )
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        raise NoticeError(f"no answer within {deadline_s:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _post(url: str, text: str) -> NoticeError | None:
    with requests.Session() as session:
        # A proxy of the machine may be the only way out, but none leads to this very machine.
        session.trust_env = not _is_loopback(urlsplit(url).hostname or "")
        try:
            answer = session.post(
                url,
                json={"text": text},
                timeout=TIMEOUT_S,
                allow_redirects=False,
                stream=True,  # whatever it answers is not read
                auth=lambda request: request,  # and nothing of a .netrc is sent
            )
        except (requests.RequestException, ValueError) as error:
            return NoticeError(type(error).__name__)  # its text holds the address
        with answer:
            ok = 200 <= answer.status_code < 300
            return None if ok else NoticeError(f"answered {answer.status_code}")


def tell_retrains(
    connection: Connection,
    card: Card,
    settings: Settings,
    due: Callable[[str, int], bool] = lambda retrain_id, tries: True,
    deadline_s: float = DEADLINE_S,
) -> list[str]:
    """Tell each closed retrain that nobody was told of, the oldest first; return the ids told.

    Commits. `due(id, tries)` may put off a try. What is not taken is logged, and counted.
    """
    if settings.notify_url is None:
        return []
    url = check_address(settings.secret("notify_url"))
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            RETRAINS_SQL + " WHERE card = %s AND finished_at IS NOT NULL"
            " AND notified_at IS NULL AND notify_tries < %s"
            " AND finished_at > clock_timestamp() - make_interval(secs => %s)"
            " ORDER BY finished_at",
            (card.name, TRIES, NOT_OLDER_THAN_S),
        )
        waiting = [dict(row) for row in cursor.fetchall()]
    connection.commit()
    told = []
    for retrain in waiting:
        tries = int(retrain["notify_tries"])
        if not due(retrain["id"], tries) or not _claim(connection, retrain["id"], tries):
            continue
        try:
            send(url, notice_text(retrain, card, settings), deadline_s)
        except NoticeError as error:
            rest = "given up" if tries + 1 >= TRIES else f"try {tries + 2} of {TRIES} follows"
            logger.error("retrain %s: the webhook was not told (%s): %s",
                         retrain["id"], error, rest)  # fmt: skip
            continue
        with connection.cursor() as cursor:
            # Not if it has another outcome by now, which is to be told as well.
            cursor.execute(
                "UPDATE ops.retrains SET notified_at = clock_timestamp()"
                " WHERE id = %s AND finished_at = %s",
                (retrain["id"], retrain["finished_at"]),
            )
        connection.commit()
        told.append(retrain["id"])
    return told


def _claim(connection: Connection, retrain_id: str, tries: int) -> bool:
    """Count a try before it is made; False if another process has."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.retrains SET notify_tries = notify_tries + 1"
            " WHERE id = %s AND notify_tries = %s AND notified_at IS NULL",
            (retrain_id, tries),
        )
        claimed = bool(cursor.rowcount == 1)
    connection.commit()
    return claimed


class Teller:
    """The thread that tells; without an address there is none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.card = load_card(settings.card)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._said = ""
        self._tried: dict[str, float] = {}

    def ensure_running(self) -> None:
        """Start the thread unless it runs in this very process: a fork leaves threads behind."""
        if self.settings.notify_url is None:
            return
        with self._lock:
            alive = self._thread is not None and self._thread.is_alive()
            if not alive or self._pid != os.getpid():
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self.look()
            time.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Tell what is due. Nothing may end the thread: what went wrong is logged, once."""
        try:
            with connect(settings=self.settings) as connection:
                tell_retrains(connection, self.card, self.settings, self._due)
            self._said = ""
        except Exception as error:
            said = str(error) if isinstance(error, NoticeError) else type(error).__name__
            if said != self._said:
                logger.error("retrains are not told: %s", said)
            self._said = said

    def _due(self, retrain_id: str, tries: int) -> bool:
        now = time.monotonic()
        last = self._tried.get(retrain_id)
        # After a restart nothing is known of the last try, and the next is made at once.
        if last is not None and tries and now - last < WAIT_S[tries - 1]:
            return False
        self._tried = {each: at for each, at in self._tried.items() if now - at < NOT_OLDER_THAN_S}
        self._tried[retrain_id] = now
        return True


def _plain(text: str) -> str:
    """Escape what Slack reads as markup: a reason must call nobody, and link nowhere."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
