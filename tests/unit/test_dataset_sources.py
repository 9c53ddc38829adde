"""Where data comes from: files, archives, addresses, the cache, and the sample when all fails."""

import gzip
import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlops.dataset import sources
from mlops.dataset.card import load_card
from mlops.dataset.errors import DataError
from mlops.dataset.sources import read_source
from mlops.download import progress_lines
from mlops.settings import Settings

CARD = load_card("bank_marketing")
CSV = (
    b"age;job;balance;housing;contact;day;month;campaign;pdays;previous;poutcome;y\n"
    b"58;management;2143;yes;unknown;5;may;1;-1;0;unknown;no\n"
    b"44;technician;29;yes;unknown;5;may;1;-1;0;unknown;yes\n"
)
SHA256 = hashlib.sha256(CSV).hexdigest()


def zipped(**files: bytes) -> bytes:
    """Return a zip; a name's last underscore stands for its dot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(
                ".".join(name.rsplit("_", 1)).replace("bank_full", "bank-full"), content
            )
    return buffer.getvalue()


NESTED = zipped(bank_zip=zipped(bank_full_csv=CSV, bank_csv=b"other"), additional_zip=b"PK")


def settings(tmp_path, data=None) -> Settings:
    return Settings(_env_file=None, data=data, cache_dir=tmp_path / "cache")


def read(tmp_path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return read_source(CARD, settings(tmp_path, str(path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bank-full.csv", CSV),
        ("bank.csv.gz", gzip.compress(CSV)),
        ("bank.zip", zipped(bank_full_csv=CSV, bank_csv=b"other")),
        ("bank+marketing.zip", NESTED),
        ("mine.zip", zipped(mine_csv=CSV, readme_txt=b"read me")),
        ("no-suffix", zipped(mine_csv=CSV)),
    ],
)
def test_the_same_data_is_recognised_in_every_wrapping(tmp_path, name, content):
    raw = read(tmp_path, name, content)
    assert (raw.sha256, raw.bytes, raw.rows) == (SHA256, len(CSV), 2)
    assert (raw.origin, raw.source, raw.notice) == ("file", str(tmp_path / name), None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bank.zip", NESTED[:-40], "zip that is truncated or damaged"),
        ("bank.zip", zipped(bank_zip=zipped(bank_full_csv=CSV)[:60]), "truncated or damaged"),
        ("bank.zip", b"", "found an empty file"),
        ("bank.zip", CSV, "no zip, though its name ends in .zip"),
        ("bank.zip", zipped(a_csv=CSV, b_csv=CSV), "found in the zip: a.csv, b.csv; expected bank"),
        ("bank.zip", zipped(readme_txt=b"read me"), "found in the zip: readme.txt; expected"),
        ("bank.csv.gz", gzip.compress(CSV)[:-12], "gzip that is truncated or damaged"),
        ("deep.zip", zipped(a_zip=zipped(b_zip=zipped(c_zip=zipped(d_zip=NESTED)))), "nested more"),
    ],
)
def test_a_damaged_or_strange_archive_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)


def test_a_damaged_byte_inside_a_zip_is_found(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("bank.csv", CSV)
    with pytest.raises(DataError, match=r"truncated or damaged \(Bad CRC-32"):
        read(tmp_path, "bank.zip", buffer.getvalue().replace(b"technician", b"technicien"))


def test_a_path_may_be_relative_to_the_project_or_the_folder(tmp_path, monkeypatch):
    (tmp_path / "bank.csv").write_bytes(CSV)
    # As derive names it: the settings' own value is absolute already.
    relative = settings(tmp_path).model_copy(update={"data": "bank.csv"})
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert read_source(CARD, relative).rows == 2
    monkeypatch.setattr(sources, "ROOT", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert read_source(CARD, relative).rows == 2


def test_nothing_is_read_beyond_the_limit_packed_or_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to more than 1000 bytes"):
        read(tmp_path, "bomb.zip", zipped(bank_csv=b"0" * 100_000))
    with pytest.raises(DataError, match="unpacks to more than 1000 bytes"):
        read(tmp_path, "bomb.csv.gz", gzip.compress(b"0" * 100_000))
    with pytest.raises(DataError, match="found 2000 bytes, expected at most 1000"):
        read(tmp_path, "big.csv", b"0" * 2000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("/no/such/bank.zip", r"/no/such/bank\.zip cannot be used:\s+- no such file.*MLOPS_DATA"),
        ("/dev/null", "found a folder or device"),
        ("ftp://example.org/bank.zip", "address of kind ftp, expected http or https"),
        ("file:///etc/passwd", "address of kind file, expected http or https"),
        ("http://127.0.0.1:9/bank.zip", "127.0.0.1 cannot be reached.*MLOPS_DATA"),
    ],
)
def test_data_that_the_user_named_is_never_replaced_by_other_data(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        read_source(CARD, settings(tmp_path, data))


class _Server(ThreadingHTTPServer):
    answer: bytes = NESTED
    length: int | None = None
    status: int = 200
    requests: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/bank+marketing.zip"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.length or len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    """A web server that answers what a test tells it to."""
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def public(server):
    """The card with the test's server as its public source."""
    source = CARD.source.model_copy(update={"url": server.url, "sha256": SHA256})
    return CARD.model_copy(update={"source": source})


def test_an_address_is_read_with_progress(tmp_path, server):
    steps = []
    raw = read_source(
        CARD, settings(tmp_path, server.url), lambda done, total: steps.append((done, total))
    )
    assert (raw.origin, raw.source, raw.sha256) == ("download", server.url, SHA256)
    assert steps[-1] == (len(NESTED), len(NESTED))


def test_progress_is_told_in_tenths():
    lines = []
    progress = progress_lines(lines.append)
    for done in range(0, 2_000_001, 50_000):
        progress(done, 2_000_000)
    assert len(lines) == 11
    assert lines[0] == "downloaded 0.0 of 2.0 MB (0%)"
    assert lines[-1] == "downloaded 2.0 of 2.0 MB (100%)"
    progress_lines(lines.append)(123_456, None)
    assert lines[-1] == "downloaded 0.1 MB"


def test_the_public_archive_is_downloaded_once(tmp_path, server, public):
    first = read_source(public, settings(tmp_path))
    again = read_source(public, settings(tmp_path))
    assert (first.origin, first.sha256, again.sha256) == ("download", SHA256, SHA256)
    assert server.requests == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".archive"]


def test_a_damaged_cache_is_downloaded_anew(tmp_path, server, public):
    read_source(public, settings(tmp_path))
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(NESTED[:100])
    assert read_source(public, settings(tmp_path)).sha256 == SHA256
    assert server.requests == 2
    assert cached.read_bytes() == NESTED


def test_another_file_at_the_public_address_is_refused_and_not_cached(tmp_path, server, public):
    server.answer = zipped(bank_full_csv=CSV.replace(b"58", b"59"))
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        read_source(public, settings(tmp_path))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": 503}, "the server answered 503"),
        ({"length": len(NESTED) + 1000}, "ended after|cannot be reached|broken"),
    ],
)
def test_without_the_public_archive_a_sample_is_generated_and_loudly_told(
    tmp_path, server, public, caplog, changes, reason
):
    for name, value in changes.items():
        setattr(server, name, value)
    with caplog.at_level(logging.WARNING):
        raw = read_source(public, settings(tmp_path))
    assert raw.origin == "generated"
    assert raw.source == "generated from bank_marketing, seed 42"
    assert "THIS IS GENERATED DATA, NOT THE REAL DATA SET." in raw.notice
    assert "MLOPS_DATA" in raw.notice
    assert raw.notice in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_address_of_the_user_that_fails_is_an_error(tmp_path, server):
    server.status = 404
    with pytest.raises(DataError, match="the server answered 404"):
        read_source(CARD, settings(tmp_path, server.url))


def test_an_address_is_downloaded_once_for_two_reads_of_the_same_data(tmp_path, server):
    first = read_source(CARD, settings(tmp_path, server.url))
    server.answer = zipped(bank_full_csv=CSV.replace(b"58", b"59"))
    again = read_source(CARD, settings(tmp_path, server.url), sha256=first.sha256)
    assert again.frame.equals(first.frame)
    assert (again.sha256, again.source, again.origin) == (SHA256, server.url, "download")
    assert server.requests == 1
    # Whoever reads anew gets what is there now.
    assert read_source(CARD, settings(tmp_path, server.url)).sha256 != SHA256
    assert server.requests == 2


def test_an_address_that_has_changed_between_two_reads_is_refused(tmp_path, server):
    first = read_source(CARD, settings(tmp_path, server.url))
    for cached in (tmp_path / "cache").iterdir():
        cached.write_bytes(b"damaged")
    assert read_source(CARD, settings(tmp_path, server.url), sha256=first.sha256).sha256 == SHA256
    for cached in (tmp_path / "cache").iterdir():
        cached.unlink()
    server.answer = zipped(bank_full_csv=CSV.replace(b"58", b"59"))
    with pytest.raises(DataError, match=f"(?s)expected {SHA256}.*run the pipeline prepare again"):
        read_source(CARD, settings(tmp_path, server.url), sha256=first.sha256)


def test_a_file_that_has_changed_between_two_reads_is_refused(tmp_path):
    first = read(tmp_path, "bank.csv", CSV)
    (tmp_path / "bank.csv").write_bytes(CSV.replace(b"58", b"59"))
    with pytest.raises(DataError, match=f"bank.csv.*(?s:.)*expected {SHA256}"):
        read_source(CARD, settings(tmp_path, str(tmp_path / "bank.csv")), sha256=first.sha256)


def test_a_sample_does_not_take_the_place_of_what_was_read_before(tmp_path, server, public):
    first = read_source(public, settings(tmp_path))
    for cached in (tmp_path / "cache").iterdir():
        cached.unlink()
    server.status = 503
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        read_source(public, settings(tmp_path), sha256=first.sha256)


def test_a_card_without_a_source_asks_for_the_data(tmp_path):
    card = CARD.model_copy(update={"source": None, "sample": None})
    with pytest.raises(DataError, match="no source: set MLOPS_DATA"):
        read_source(card, settings(tmp_path))


@pytest.mark.parametrize("name", ["credit_card_churn", "corporate_churn"])
def test_a_card_whose_data_nobody_publishes_has_a_sample_and_says_so(tmp_path, name):
    card = load_card(name)
    raw = read_source(card, settings(tmp_path))
    assert raw.origin == "generated"
    assert raw.notice is not None
    assert "GENERATED" in raw.notice
    assert f"set MLOPS_DATA to a file with {name}'s columns" in raw.notice
    assert raw.frame["period"].min() == card.time.start
    assert raw.frame["period"].max() == card.time.end
    rows = raw.frame.groupby("period")["target"].agg(["size", "sum"])
    assert rows["size"].min() >= settings(tmp_path).drift_min_rows, "each month may alarm"
    assert raw.sha256 == read_source(card, settings(tmp_path)).sha256
