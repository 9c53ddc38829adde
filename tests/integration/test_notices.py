"""Notices of retrains, told to a real HTTP server: one that takes them, and ones that do not."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from psycopg2.extras import Json
from pydantic import SecretStr

from mlops.alerting import notices
from mlops.alerting.notices import (
    TRIES,
    NoticeError,
    Teller,
    check_address,
    notice_text,
    report_address,
    tell_retrains,
)
from mlops.alerting.retrains import close_retrain, open_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.settings import ROOT, Settings
from tests.fixtures.waiting import await_

PATH = "/services/T0/B0/verysecret"
CARD = load_card("bank_marketing")
GATE = {"roc_auc": {"difference": 0.0123, "low": 0.0031, "high": 0.0214, "better_share": 0.99}}


class Hook:
    """A webhook that answers as it is told: a status, `hang`, or `drip` (a byte at a time)."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.let_go = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.paths.append(self.path)
                hook.headers.append(dict(self.headers))
                hook.got.append(json.loads(body))
                answer = hook.answers.pop(0) if hook.answers else 200
                if answer == "hang":
                    hook.let_go.wait(30)
                    return
                if answer == "drip":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not hook.let_go.wait(0.05):
                        try:
                            self.wfile.write(b"x")
                            self.wfile.flush()
                        except OSError:
                            return
                    return
                self.send_response(answer)
                if answer in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{PATH}"


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.let_go.set()
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def settings(database: Settings, hook: Hook) -> Settings:
    return database.model_copy(update={"notify_url": SecretStr(hook.url)})


def closed(settings: Settings, name: str = "r1", outcome: str = "promoted", **values: Any) -> None:
    with connect(settings=settings) as connection:
        open_retrain(connection, CARD, name, values.get("cause", "alert: Prediction drift"))
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE ops.retrains SET champion = '3', challenger = '4', gate = %s WHERE id = %s",
                (Json(GATE), name),
            )
        close_retrain(connection, name, outcome, values.get("reason", "better"))  # type: ignore[arg-type]


def tell(settings: Settings, deadline_s: float = 5.0) -> list[str]:
    with connect(settings=settings) as connection:
        return tell_retrains(connection, CARD, settings, deadline_s=deadline_s)


def row(settings: Settings, name: str = "r1") -> tuple[bool, int]:
    """Whether it counts as told, and the tries."""
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT notified_at IS NOT NULL, notify_tries FROM ops.retrains WHERE id = %s", (name,)
        )
        found = cursor.fetchone()
    assert found is not None
    return found


def test_a_closed_retrain_is_told_once_with_what_it_came_to(settings: Settings, hook: Hook) -> None:
    closed(settings)
    assert tell(settings) == ["r1"]
    assert tell(settings) == []
    (body,) = hook.got
    assert set(body) == {"text"}
    for part in (
        "*Bank Marketing*: Version 4 is in production in place of version 3",
        "Why: alert: Prediction drift",
        "ROC AUC +0.0123 beside the champion (+0.0031 to +0.0214)",
        "/reports?retrain=r1",
    ):
        assert part in body["text"]
    assert row(settings) == (True, 1)


def test_a_retrain_without_a_comparison_is_told_without_one(settings: Settings) -> None:
    of = {
        "id": "r1",
        "outcome": "kept_champion",
        "cause": "alert",
        "champion": "3",
        "challenger": "4",
        "reason": "no comparison: 0 of 250",
        "gate": {"roc_auc": None},
    }
    text = notice_text(of, CARD, settings)
    assert "no comparison: 0 of 250" in text
    assert "beside the champion" not in text


def test_nothing_is_told_without_an_address(database: Settings, hook: Hook) -> None:
    closed(database)
    assert tell(database) == []
    assert row(database) == (False, 0)
    Teller(database).ensure_running()
    assert "teller" not in {thread.name for thread in threading.enumerate()}


def test_a_retrain_under_way_is_not_told(settings: Settings, hook: Hook) -> None:
    with connect(settings=settings) as connection:
        open_retrain(connection, CARD, "r1", "by hand")
    assert tell(settings) == []


def test_a_failed_one_that_finishes_after_all_is_told_again(settings: Settings, hook: Hook) -> None:
    closed(settings, outcome="failed", reason="not finished after 3600 s")
    tell(settings)
    with connect(settings=settings) as connection:
        close_retrain(connection, "r1", "promoted", "better")
    assert tell(settings) == ["r1"]
    assert "The retrain failed" in hook.got[0]["text"]
    assert "Version 4 is in production" in hook.got[1]["text"]


def test_yesterdays_are_no_news(settings: Settings, hook: Hook) -> None:
    closed(settings)
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ops.retrains SET finished_at = now() - interval '25 hours'")
    assert tell(settings) == []


@pytest.mark.parametrize("answer", [500, 404, 302, 307])
def test_what_is_not_taken_is_tried_three_times_and_given_up(
    settings: Settings, hook: Hook, caplog: pytest.LogCaptureFixture, answer: int
) -> None:
    hook.answers = [answer] * 5
    closed(settings)
    with caplog.at_level(logging.ERROR):
        for _ in range(TRIES + 2):
            assert tell(settings) == []
    assert len(hook.got) == TRIES
    assert hook.paths == [PATH] * TRIES, "no redirect was followed"
    assert row(settings) == (False, TRIES)
    assert f"(answered {answer}): given up" in caplog.text
    assert "verysecret" not in caplog.text


def test_a_second_try_may_succeed(settings: Settings, hook: Hook) -> None:
    hook.answers = [503, 200]
    closed(settings)
    assert (tell(settings), tell(settings)) == ([], ["r1"])
    assert row(settings) == (True, 2)


@pytest.mark.parametrize("answer", ["hang", "drip"])
def test_a_server_that_does_not_end_its_answer_is_left(
    settings: Settings, hook: Hook, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    hook.answers = [answer]
    closed(settings)
    closed(settings, "r2")
    with caplog.at_level(logging.ERROR):
        assert tell(settings, deadline_s=0.5) == ["r2"], "the next is told all the same"
    assert "(no answer within 0.5 s): try 2 of 3 follows" in caplog.text


def test_what_a_server_takes_and_answers_too_late_is_told_again_three_times_at_most(
    settings: Settings, hook: Hook
) -> None:
    """Nobody can know from here that it was taken: the documents say so."""
    hook.answers = ["drip"] * 5
    closed(settings)
    for _ in range(TRIES + 1):
        assert tell(settings, deadline_s=0.3) == []
    assert len(hook.got) == TRIES
    assert "answers later than" in (ROOT / "docs" / "operations.md").read_text()


def test_a_server_that_is_away_is_named_by_no_address(
    settings: Settings, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.server.server_close()
    closed(settings)
    with caplog.at_level(logging.DEBUG):
        assert tell(settings) == []
    assert "ConnectionError" in caplog.text
    assert "verysecret" not in caplog.text


class Listener:
    """The listener as it is served, in a process group of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        self.output = settings.state_dir / "listener.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *[str(ROOT / ".venv-services" / "bin" / "python"), "-m", "gunicorn"],
            *["mlops.alerting.listener:create_app()", "--threads", "4", "--no-control-socket"],
            *["--bind", f"{self.settings.host}:{self.settings.listener_port}"],
        ]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.settings.environment()},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def listener(settings: Settings) -> Iterator[Listener]:
    listener = Listener(settings)
    yield listener
    listener.kill()


def told(settings: Settings, name: str, listener: Listener) -> None:
    await_(lambda: row(settings, name)[0], 40, lambda: listener.output.read_text()[-2000:])


def test_a_retrain_that_was_closed_while_the_listener_was_away_is_told_once(
    settings: Settings, hook: Hook, listener: Listener
) -> None:
    closed(settings)
    listener.start()
    told(settings, "r1", listener)
    listener.kill()
    listener.start()
    closed(settings, "r2")
    told(settings, "r2", listener)
    assert [body["text"].rpartition("=")[2] for body in hook.got] == ["r1", "r2"]
    assert "verysecret" not in listener.output.read_text()


def test_a_listener_that_is_killed_as_it_tells_tells_a_second_time_at_most(
    settings: Settings, hook: Hook, listener: Listener
) -> None:
    hook.answers = ["hang"]
    closed(settings)
    listener.start()
    await_(lambda: hook.got, 40, lambda: listener.output.read_text()[-2000:])
    listener.kill()
    listener.start()
    told(settings, "r1", listener)
    assert len(hook.got) == 2
    assert row(settings) == (True, 2)


def test_a_process_that_dies_after_telling_tells_it_a_second_time_at_most(
    settings: Settings, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The try was counted before, and `notified_at` was never written."""

    def dies(*args: Any, **kwargs: Any) -> None:
        notices_send(*args, **kwargs)
        raise KeyboardInterrupt

    notices_send = notices.send
    closed(settings)
    monkeypatch.setattr(notices, "send", dies)
    with pytest.raises(KeyboardInterrupt):
        tell(settings)
    monkeypatch.undo()
    assert (tell(settings), tell(settings)) == (["r1"], [])
    assert len(hook.got) == 2


def test_tries_are_put_off_and_nothing_ends_the_thread(
    settings: Settings, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.answers = [500, 500]
    closed(settings)
    teller = Teller(settings)
    teller.look()
    teller.look()
    assert len(hook.got) == 1, "15 s have not passed"
    monkeypatch.setattr(notices, "WAIT_S", (0.0, 0.0))
    teller.look()
    teller.look()
    assert len(hook.got) == 3
    away = settings.model_copy(update={"postgres_port": 1})
    Teller(away).look()


def test_a_wrong_address_is_logged_once_without_it(
    settings: Settings, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    closed(settings)
    url = SecretStr(f"http://example.com{PATH}")
    teller = Teller(settings.model_copy(update={"notify_url": url}))
    with caplog.at_level(logging.ERROR):
        teller.look()
        teller.look()
    assert caplog.text.count("expected https://") == 1
    assert "verysecret" not in caplog.text
    assert "example.com" not in caplog.text
    assert row(settings) == (False, 0)


@pytest.mark.parametrize(
    "url",
    ["https://hooks.slack.com/x", "http://localhost:8065/x", "http://127.0.0.1/x", "http://[::1]/"],
)
def test_addresses_that_notices_go_to(url: str) -> None:
    assert check_address(url) == url


@pytest.mark.parametrize(
    "url",
    ["http://example.com/x", "ftp://localhost/x", "file:///etc/passwd", "https://", "no", "http://localhost.example.com/"],
)  # fmt: skip
def test_addresses_that_they_do_not_go_to(url: str) -> None:
    with pytest.raises(NoticeError) as refused:
        check_address(url)
    assert "example.com" not in str(refused.value)


def test_a_reason_calls_nobody_and_stays_short(settings: Settings) -> None:
    retrain = {
        "id": "r1", "cause": "by <!channel> & co", "outcome": "failed", "champion": "3",
        "challenger": None, "gate": None, "reason": "x" * 9000,
        "finished_at": datetime.now(timezone.utc),
    }  # fmt: skip
    text = notice_text(retrain, CARD, settings)
    assert "by &lt;!channel&gt; &amp; co" in text
    assert len(text) < 3200
    assert text.endswith(report_address("r1", settings))


def test_the_link_leads_to_where_people_read_the_app(settings: Settings) -> None:
    elsewhere = settings.model_copy(update={"notify_app_url": "https://models.example.org/"})
    assert report_address("r1", elsewhere) == "https://models.example.org/reports?retrain=r1"
    inside = settings.model_copy(update={"in_containers": True, "host": "0.0.0.0"})
    port = settings.streamlit_port
    assert report_address("r1", inside) == f"http://127.0.0.1:{port}/reports?retrain=r1"
