"""Where the data of a card comes from: a local file, an address, the public archive, or a sample.

It brings bytes and has them checked; it never stores a row, and never unpacks to a path.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.parse import urlsplit

import pandas as pd

from mlops.dataset.card import Card
from mlops.dataset.errors import DataError
from mlops.dataset.generate import generate_csv
from mlops.dataset.parsing import parse_csv
from mlops.download import Progress, TooBigError, UnreachableError, download
from mlops.settings import ROOT, Settings, get_settings

logger = logging.getLogger(__name__)

Origin = Literal["file", "download", "generated"]
MOST_BYTES = 1 << 30
"""No file is read beyond this, packed or unpacked: a zip of a few kB can hold terabytes."""

_MOST_NESTING = 3


@dataclass(frozen=True)
class RawData:
    """The checked rows of one source, and where they came from.

    `frame` is that of `parse_csv`. `sha256` and `bytes` are of the CSV itself, so the same data
    in another wrapping is recognised. `notice` is what a person must be told, if anything.
    """

    frame: pd.DataFrame
    sha256: str
    origin: Origin
    source: str
    bytes: int
    notice: str | None = None

    @property
    def rows(self) -> int:
        """Number of rows of data."""
        return len(self.frame)


def read_source(
    card: Card,
    settings: Settings | None = None,
    progress: Progress | None = None,
    sha256: str | None = None,
) -> RawData:
    """Return the data of `card`, checked.

    `MLOPS_DATA` (zip, zip in a zip, CSV, CSV.gz; a path or an http(s) address) if it is set; else
    the card's public archive, downloaded once into the cache; else, where that cannot be reached,
    a generated sample, told by `notice` and as a logged warning.

    With the `sha256` of an earlier read, it returns the same data: a download is kept in the cache
    for that.

    Raises DataError if what is there cannot be used, or is not what was read earlier. A source that
    the user named is never replaced by another.
    """
    settings = settings or get_settings()
    raw = _read(card, settings, progress, sha256)
    if sha256 is not None and raw.sha256 != sha256:
        raise DataError(
            raw.source,
            [
                f"found data of sha256 {raw.sha256}, expected {sha256}, as it was read before: the "
                "source has changed meanwhile; run the pipeline prepare again"
            ],
        )
    return raw


def _read(card: Card, settings: Settings, progress: Progress | None, sha256: str | None) -> RawData:
    given = (settings.data or "").strip()
    if given:
        return _read_given(card, given, settings.cache_dir, progress, sha256)
    if card.source is None:
        if card.sample is None:
            raise DataError(card.path.name, ["the card has no source: set MLOPS_DATA to the data"])
        return _generated(card, settings.seed, "No public address of it stands in the card")
    try:
        content = _published(card, settings.cache_dir, progress)
    except UnreachableError as error:
        return _generated(card, settings.seed, f"It could not be downloaded: {error}")
    return _raw(card, content, "download", card.source.url)


def _read_given(
    card: Card, given: str, cache_dir: Path, progress: Progress | None, sha256: str | None
) -> RawData:
    scheme = urlsplit(given).scheme.lower()
    if scheme in ("http", "https"):
        return _raw(card, _named(card, given, cache_dir, progress, sha256), "download", given)
    if "://" in given:
        raise DataError(given, [f"found an address of kind {scheme}, expected http or https"])
    path = Path(given).expanduser()
    if not path.exists():
        path = ROOT / path  # a server may run in another folder than the person who set it
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(
                str(path), ["found a folder or device, expected a zip or CSV (MLOPS_DATA)"]
            )
        if size > MOST_BYTES:
            raise DataError(str(path), [_too_big(f"found {size} bytes")])
        packed = path.read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), ["no such file; it is named by MLOPS_DATA"]) from None
    except OSError as error:
        raise DataError(str(path), [f"cannot be read: {error.strerror}"]) from error
    return _raw(card, _unpack(packed, card, str(path)), "file", str(path))


def _raw(
    card: Card, content: bytes, origin: Origin, source: str, notice: str | None = None
) -> RawData:
    return RawData(
        frame=parse_csv(content, card, source),
        sha256=hashlib.sha256(content).hexdigest(),
        origin=origin,
        source=source,
        bytes=len(content),
        notice=notice,
    )


def _generated(card: Card, seed: int, reason: str) -> RawData:
    file = card.sample.file if card.sample else ""
    notice = "\n".join(
        [
            "=" * 78,
            "THIS IS GENERATED DATA, NOT THE REAL DATA SET.",
            f"{card.title}: {reason[:1].lower()}{reason[1:]}.",
            f"A sample was generated from the marginals in {file}",
            "and no figure made from it says anything about the real world.",
            *(
                [
                    "For the real data, go online, or set MLOPS_DATA to a copy of it (zip or CSV):",
                    f"  {card.source.url}",
                ]
                if card.source
                else [f"For real data, set MLOPS_DATA to a file with {card.name}'s columns."]
            ),
            "=" * 78,
        ]
    )
    logger.warning("%s", notice)
    content = generate_csv(card, seed)
    return _raw(card, content, "generated", f"generated from {card.name}, seed {seed}", notice)


def _published(card: Card, cache_dir: Path, progress: Progress | None) -> bytes:
    """Return the CSV of the card's archive, from the cache or downloaded into it.

    What is downloaded gets its name in the cache only after its checksum has been found right.
    Raises UnreachableError, and DataError if what came is not what the card knows.
    """
    if card.source is None:
        raise DataError(card.path.name, ["the card has no source"])
    url = card.source.url
    cached = cache_dir / f"{card.name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.archive"
    if cached.is_file():
        try:
            return _checked(cached.read_bytes(), card, url)
        except DataError as error:
            logger.warning("the cached %s is damaged and downloaded anew (%s)", cached, error)
    return _download_into(cached, url, lambda packed: _checked(packed, card, url), progress)


def _named(
    card: Card, url: str, cache_dir: Path, progress: Progress | None, sha256: str | None
) -> bytes:
    """Return the CSV at the address that MLOPS_DATA names, downloaded into the cache.

    What is there already is taken only if it is the data of `sha256`: an address may give other
    data tomorrow. One file a card is kept.
    """
    cached = cache_dir / f"{card.name}-named.archive"
    if sha256 is not None and cached.is_file():
        try:
            content = _unpack(cached.read_bytes(), card, url)
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
        except DataError as error:
            logger.warning("the cached %s is damaged and downloaded anew (%s)", cached, error)
    try:
        return _download_into(cached, url, lambda packed: _unpack(packed, card, url), progress)
    except UnreachableError as error:
        raise DataError(url, [f"{error}; it is named by MLOPS_DATA"]) from error


def _download_into(
    cached: Path, url: str, unpack: Callable[[bytes], bytes], progress: Progress | None
) -> bytes:
    """Return what `unpack` makes of the file at `url`; `cached` is written once it has done so.

    Raises UnreachableError, and DataError if `unpack` does or the cache cannot be written.
    """
    cache_dir = cached.parent
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{cached.name}.", dir=cache_dir)
    except OSError as error:
        raise DataError(
            str(cache_dir), [f"cannot be written: {error.strerror}; set MLOPS_CACHE_DIR"]
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            download(url, file, MOST_BYTES, progress)
            file.seek(0)
            content = unpack(file.read())
        temporary.replace(cached)
        return content
    except TooBigError as error:
        raise DataError(url, [_too_big(str(error))]) from error
    except OSError as error:
        raise DataError(str(cache_dir), [f"cannot be written: {error.strerror}"]) from error
    finally:
        temporary.unlink(missing_ok=True)


def _checked(packed: bytes, card: Card, source: str) -> bytes:
    content = _unpack(packed, card, source)
    if card.source is not None:
        found = hashlib.sha256(content).hexdigest()
        if found != card.source.sha256:
            raise DataError(
                source,
                [
                    f"found a file of sha256 {found}, expected {card.source.sha256} (source.sha256 "
                    f"in {card.path.name}); to use another file, name it in MLOPS_DATA"
                ],
            )
    return content


def _too_big(found: str) -> str:
    return f"{found}, expected at most {MOST_BYTES}"


def _unpack(packed: bytes, card: Card, source: str) -> bytes:
    """Return the CSV in `packed`: a zip, a zip in a zip, a gzip, or the CSV itself.

    In a zip, the card's `source.members` lead to the CSV; else the only CSV in it is taken. Raises
    DataError if it is damaged, too big, protected by a password, or holds no such CSV.
    """
    members = list(card.source.members) if card.source else []
    if source.lower().endswith(".zip") and packed and not packed.startswith(b"PK"):
        raise DataError(source, ["found a file that is no zip, though its name ends in .zip"])
    for _ in range(_MOST_NESTING + 1):
        if packed.startswith(b"PK"):
            packed, members = _member(packed, members, source)
        elif packed.startswith(b"\x1f\x8b"):
            packed = _gunzip(packed, source)
        else:
            return packed
    raise DataError(source, [f"found archives nested more than {_MOST_NESTING} deep"])


def _member(packed: bytes, members: list[str], source: str) -> tuple[bytes, list[str]]:
    """Return one file of a zip, and the members that are still to be followed in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            name, left = _choose(names, members, source)
            if archive.getinfo(name).flag_bits & 1:
                raise DataError(f"{source}, {name}", ["found a password, expected none"])
            with archive.open(name) as file:
                return _read_limited(file, f"{source}, {name}"), left
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise DataError(
            source, [f"found a zip that is truncated or damaged ({error}), expected a whole one"]
        ) from error


def _choose(names: list[str], members: list[str], source: str) -> tuple[str, list[str]]:
    for position, wanted in enumerate(members):
        for name in names:
            if PurePosixPath(name).name == wanted:
                return name, members[position + 1 :]
    for suffixes in ((".csv", ".csv.gz"), (".zip",)):
        fitting = [
            name
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith("__MACOSX/")
        ]
        if len(fitting) == 1:
            return fitting[0], members
        if fitting:
            break
    found = ", ".join(names[:10]) or "nothing"
    wanted = " or ".join([*members, "exactly one CSV"])
    raise DataError(source, [f"found in the zip: {found}; expected {wanted}"])


def _gunzip(packed: bytes, source: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            return _read_limited(file, source)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(source, [f"found a gzip that is truncated or damaged ({error})"]) from error


def _read_limited(file: IO[bytes] | gzip.GzipFile, source: str) -> bytes:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(source, [_too_big(f"it unpacks to more than {MOST_BYTES} bytes")])
    return content
