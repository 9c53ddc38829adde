"""Fetch a file from the internet: in pieces, up to a limit, with progress, or a reason why not.

It writes into the file that it is given; it never names, unpacks, checks or keeps anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO
from urllib.parse import urlsplit

import requests

Progress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all (None if the server does not tell)."""

_TIMEOUTS = (5, 30)  # seconds to connect, and between two pieces
_PIECE = 1 << 16
# Packed on the way and unpacked again, an archive would come without its own packing.
_HEADERS = {"Accept-Encoding": "identity"}


class UnreachableError(Exception):
    """An address gave nothing, or not all: no internet, no such server, an HTTP error."""


class TooBigError(Exception):
    """An address gave more than was asked for."""


def download(url: str, file: IO[bytes], most_bytes: int, progress: Progress | None = None) -> str:
    """Write what is at `url` to `file`; return its sha256 in hex.

    Raises UnreachableError with the reason in a few words, and TooBigError beyond `most_bytes`.
    """
    digest = hashlib.sha256()
    try:
        with requests.get(url, headers=_HEADERS, stream=True, timeout=_TIMEOUTS) as response:
            if response.status_code != requests.codes.ok:
                raise UnreachableError(
                    f"the server answered {response.status_code} {response.reason}"
                )
            length = response.headers.get("Content-Length", "")
            encoded = "Content-Encoding" in response.headers
            total = int(length) if length.isdigit() and not encoded else None
            done = 0
            for piece in response.iter_content(_PIECE):
                done += len(piece)
                if done > most_bytes:
                    raise TooBigError(f"it went on after {most_bytes} bytes")
                file.write(piece)
                digest.update(piece)
                if progress is not None:
                    progress(done, total)
            if total is not None and done != total:
                raise UnreachableError(f"the connection ended after {done} of {total} bytes")
    except requests.RequestException as error:
        raise UnreachableError(_reason(error, url)) from error
    return digest.hexdigest()


def progress_lines(tell: Callable[[str], object] = print) -> Progress:
    """Return a progress that tells a line at every tenth of a download (every 10 MB if unsized)."""
    last = -1

    def progress(done: int, total: int | None) -> None:
        nonlocal last
        step = done * 10 // total if total else done // 10_000_000
        if step > last:
            last = step
            of = f" of {total / 1e6:.1f} MB ({done / total:.0%})" if total else " MB"
            tell(f"downloaded {done / 1e6:.1f}{of}")

    return progress


def _reason(error: requests.RequestException, url: str) -> str:
    host = urlsplit(url).hostname
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer in time"
    if isinstance(error, requests.ConnectionError):
        return f"{host} cannot be reached from here"
    return f"{host}: {error}"
