"""What a download gives, and what it says when it gives nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mlops.download import TooBigError, UnreachableError, download

CONTENT = gzip.compress(b"an archive" * 1000)


@pytest.fixture
def address() -> Iterator[str]:
    """A server that names an archive's own packing as that of the way, as careless ones do."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/nothing" else 200)
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_comes_as_it_is_with_its_checksum_and_progress(address: str) -> None:
    file, steps = io.BytesIO(), []
    found = download(
        f"{address}/a.tar.gz", file, 10**6, lambda done, total: steps.append((done, total))
    )
    assert file.getvalue() == CONTENT
    assert found == hashlib.sha256(CONTENT).hexdigest()
    assert steps[-1] == (len(CONTENT), len(CONTENT))


def test_more_than_was_asked_for_is_refused(address: str) -> None:
    with pytest.raises(TooBigError, match="after 10 bytes"):
        download(address, io.BytesIO(), 10)


def test_a_proxy_of_the_environment_is_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", address)
    file = io.BytesIO()
    download("http://archives.invalid/a.tar.gz", file, 10**6)
    assert file.getvalue() == CONTENT


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{address}/nothing", "the server answered 404 Not Found"),
        ("http://127.0.0.1:9/a", "127.0.0.1 cannot be reached from here"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(address: str, url: str, reason: str) -> None:
    with pytest.raises(UnreachableError) as error:
        download(url.format(address=address), io.BytesIO(), 10**6)
    assert str(error.value) == reason
