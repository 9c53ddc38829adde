"""The key, the rate and the sizes of the predict API, without a server."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import limits
from predictor.errors import PayloadError, RequestError
from predictor.limits import Arrivals, Limits, Unauthorized


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def request(path: str = "/predict", client: str = "10.0.0.1", **headers: str) -> dict[str, Any]:
    return {"PATH_INFO": path, "REMOTE_ADDR": client} | {
        f"HTTP_{name.upper()}": value for name, value in headers.items()
    }


def refused(found: Limits, environ: dict[str, Any]) -> RequestError | None:
    try:
        found.admit(environ)
    except RequestError as fault:
        return fault
    return None


def test_defaults_are_those_of_the_settings() -> None:
    from mlops.settings import Settings

    settings, found = Settings(_env_file=None), Limits({})  # type: ignore[call-arg]
    assert found.api_key == b""
    assert (found.rate, found.burst) == (settings.predict_rate_limit, settings.predict_rate_burst)
    assert found.max_records == settings.predict_max_records
    assert found.max_body_bytes == settings.predict_max_body_mb << 20
    assert found.batch_max_bytes == settings.predict_batch_max_mb << 20
    assert found.body_timeout_s == settings.predict_body_timeout_s
    assert vars(Limits(settings.environment())) == vars(found)


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf", "1e999"])
def test_setting_that_makes_no_sense_is_named(value: str) -> None:
    with pytest.raises(PayloadError, match=f"MLOPS_PREDICT_RATE_LIMIT is '{value}'"):
        Limits({"MLOPS_PREDICT_RATE_LIMIT": value})
    with pytest.raises(PayloadError, match="MLOPS_PREDICT_MAX_RECORDS"):
        Limits({"MLOPS_PREDICT_MAX_RECORDS": "0"})


@pytest.mark.parametrize("value", ["abc", "0", "-1", "nan", "inf"])
def test_time_for_a_request_is_read_by_itself_and_named_if_it_makes_no_sense(value: str) -> None:
    setting = {"MLOPS_PREDICT_BODY_TIMEOUT_S": value}
    with pytest.raises(PayloadError, match=f"MLOPS_PREDICT_BODY_TIMEOUT_S is '{value}'"):
        limits.body_timeout(setting)
    with pytest.raises(PayloadError, match=f"MLOPS_PREDICT_BODY_TIMEOUT_S is '{value}'"):
        Limits(setting)
    for said in ({}, {"MLOPS_PREDICT_BODY_TIMEOUT_S": ""}, {"MLOPS_PREDICT_BODY_TIMEOUT_S": "2.5"}):
        assert limits.body_timeout(said) == Limits(said).body_timeout_s
    assert limits.body_timeout(said) == 2.5


@pytest.mark.parametrize(
    "setting", [" open sesame", "open sesame ", "\topen sesame\n", " voil\u00e0 "]
)
def test_blanks_around_the_key_count_on_neither_side(setting: str) -> None:
    found = Limits({"MLOPS_PREDICT_API_KEY": setting})
    for key in (setting, setting.strip(), f"{setting} "):
        # As a server hands it over: a header's value without the blanks around it.
        sent = f"Bearer {key}".strip(" \t\r\n").encode().decode("latin-1")
        assert refused(found, request(authorization=sent)) is None
    assert refused(found, request(authorization=f"Bearer x{setting}")) is not None
    assert refused(found, request(authorization="Bearer")) is not None


@pytest.mark.parametrize("setting", [" ", "\t\n"])
def test_key_of_blanks_alone_is_no_open_door(setting: str) -> None:
    with pytest.raises(PayloadError, match="MLOPS_PREDICT_API_KEY is blank"):
        Limits({"MLOPS_PREDICT_API_KEY": setting})


def test_without_settings_everybody_is_admitted() -> None:
    found = Limits({})
    assert not any(refused(found, request()) for _ in range(1000))


@pytest.mark.parametrize("key", ["open sesame", "caf\u00e9", "x" * 500])
def test_only_the_key_opens(key: str) -> None:
    found = Limits({"MLOPS_PREDICT_API_KEY": key})
    sent = key.encode().decode("latin-1")  # as WSGI gives it
    assert refused(found, request(authorization=f"Bearer {sent}")) is None
    assert refused(found, request(authorization=f"bearer  {sent} ")) is None
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {sent}",
        sent,
        f"Bearer {sent}x",
        f"Bearer {sent[:-1]}",
    ]
    for header in wrong:
        fault = refused(found, request(authorization=header))
        assert isinstance(fault, Unauthorized)
        assert fault.status == 401
        assert dict(fault.headers())["WWW-Authenticate"].startswith("Bearer")
        assert sent not in fault.message
    assert refused(found, request()) is not None
    for path in ("/health", "/ready", "/metrics"):
        assert refused(found, request(path)) is None
    for path in ("/", "/docs", "/openapi.json", "/health/", "/model", "//health"):
        assert refused(found, request(path)) is not None


@given(header=st.text(st.characters(max_codepoint=255)))
def test_no_header_opens_by_chance_or_fails(header: str) -> None:
    found = Limits({"MLOPS_PREDICT_API_KEY": "open sesame"})
    fault = refused(found, request(authorization=header))
    assert isinstance(fault, Unauthorized)


def test_rate_admits_a_burst_and_then_as_many_as_it_says(clock: Clock) -> None:
    found = Limits({"MLOPS_PREDICT_RATE_LIMIT": "2", "MLOPS_PREDICT_RATE_BURST": "5"})
    assert [refused(found, request()) for _ in range(5)] == [None] * 5
    fault = refused(found, request())
    assert fault is not None
    assert (fault.status, fault.code, fault.retry_after) == (429, "rate_limited", 1)
    clock.now += 0.49
    assert refused(found, request()) is not None
    clock.now += 0.02
    assert refused(found, request()) is None
    assert refused(found, request()) is not None
    clock.now += 100
    assert sum(refused(found, request()) is None for _ in range(20)) == 5


def test_who_waits_as_told_is_admitted(clock: Clock) -> None:
    found = Limits({"MLOPS_PREDICT_RATE_LIMIT": "0.1", "MLOPS_PREDICT_RATE_BURST": "1"})
    assert refused(found, request()) is None
    for _ in range(20):  # asking in vain makes it no longer
        fault = refused(found, request())
    assert fault is not None
    assert fault.retry_after == 10
    clock.now += fault.retry_after
    assert refused(found, request()) is None


def test_rate_is_each_clients_own_and_not_of_those_that_watch(clock: Clock) -> None:
    found = Limits({"MLOPS_PREDICT_RATE_LIMIT": "1", "MLOPS_PREDICT_RATE_BURST": "1"})
    assert refused(found, request()) is None
    assert refused(found, request()) is not None
    assert refused(found, request(client="10.0.0.2")) is None
    assert refused(found, request("/health")) is None
    forwarded = request(x_forwarded_for="10.9.9.9", forwarded="for=10.9.9.9")
    assert refused(found, forwarded) is not None, "a client may say anything about itself"


def test_an_ipv6_site_is_one_client_and_a_mapped_address_the_ipv4_one(clock: Clock) -> None:
    found = Limits({"MLOPS_PREDICT_RATE_LIMIT": "1", "MLOPS_PREDICT_RATE_BURST": "1"})
    assert refused(found, request(client="2001:db8:1:2::1")) is None
    assert refused(found, request(client="2001:db8:1:2:ffff::9%eth0")) is not None
    assert refused(found, request(client="2001:db8:1:3::1")) is None
    assert refused(found, request(client="::ffff:10.0.0.1")) is None
    assert refused(found, request(client="10.0.0.1")) is not None
    assert refused(found, request(client="")) is None  # a Unix socket


def test_wrong_keys_count_for_the_rate(clock: Clock) -> None:
    found = Limits(
        {
            "MLOPS_PREDICT_API_KEY": "k",
            "MLOPS_PREDICT_RATE_LIMIT": "1",
            "MLOPS_PREDICT_RATE_BURST": "3",
        }
    )
    statuses = [
        fault.status
        for _ in range(5)
        if (fault := refused(found, request(authorization="Bearer x")))
    ]
    assert statuses == [401, 401, 401, 429, 429]


def _take(arrivals: Arrivals, admitted: Any) -> None:
    for _ in range(200):
        if arrivals.wait("10.0.0.1", 0.001, 100) == 0:
            with admitted.get_lock():
                admitted.value += 1


def test_processes_share_the_rate() -> None:
    context = multiprocessing.get_context("fork")
    arrivals, admitted = Arrivals(), context.Value("i", 0)
    workers = [context.Process(target=_take, args=(arrivals, admitted)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    # A request too many wherever both read a slot in the same instant, 200 if they shared nothing.
    assert 100 <= admitted.value <= 130


def test_slots_are_drawn_anew_and_spread() -> None:
    first, second = Arrivals(), Arrivals()
    clients = [f"10.0.{i // 250}.{i % 250}" for i in range(2000)]
    for client in clients:
        assert first.wait(client, 0.001, 20) == 0, "twenty in one slot"
    taken = sum(1 for slot in first._times if slot)
    assert taken > 1900, "addresses share slots"
    for client in clients:
        second.wait(client, 0.001, 20)
    both = sum(1 for a, b in zip(first._times, second._times, strict=True) if a and b)
    assert both < 200, "another start, the same slots"
