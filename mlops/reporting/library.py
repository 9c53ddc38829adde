"""Where reports lie, which there are, and how long they are kept; never what stands in one.

    reports/<version>/<period>.html             our summary of a month, whole in itself
    reports/<version>/<period>.evidently.html   Evidently's page of it, whose script lies in assets
    reports/retrains/<id>.html                  of a retrain
    reports/cards/<version>.html, .pdf          model card of a version that went to production
    reports/assets/                             what all of Evidently's pages share, once

Only the standard library is imported: pipelines write reports, and the app lists them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from mlops.settings import Settings, get_settings

logger = logging.getLogger(__name__)

RETRAINS = "retrains"
CARDS = "cards"
ASSETS = "assets"
DETAIL = ".evidently.html"

KEPT_OF_CHAMPION = 6
"""Latest months of the version in production whose reports no bound deletes."""

_VERSION = re.compile(r"[0-9]{1,9}")
_PERIOD = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")
_RETRAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ASSET = re.compile(r'(?:src="|url\()\.\./assets/([A-Za-z0-9._-]+)(?:"|\))')
_DAYS_OF_MONTH = 30.44


Kind = Literal["month", "retrain", "card"]


class ReportError(ValueError):
    """There is no such report, or its name is none."""


@dataclass(frozen=True)
class Report:
    """A report that is there: of a month (`version`, `period`), of a retrain (`retrain`), or the
    model card of a `version`."""

    kind: Kind
    path: Path
    written_at: datetime
    bytes: int
    """Of all its files; what pages share is not counted in."""
    version: str | None = None
    period: str | None = None
    retrain: str | None = None
    detail: Path | None = None
    """Evidently's own page of the month, or the card as a PDF, if there is one."""

    @property
    def files(self) -> list[Path]:
        """The files that are this report's alone."""
        return [self.path] if self.detail is None else [self.path, self.detail]


def month_path(reports_dir: Path, version: str, period: str) -> Path:
    """Return where the report of a month lies. Raises ReportError for what are no such names."""
    if not _VERSION.fullmatch(version) or not _PERIOD.fullmatch(period):
        raise ReportError(f"found version {version!r}, period {period!r}: expected '3', '2009-03'")
    return reports_dir / version / f"{period}.html"


def retrain_path(reports_dir: Path, retrain_id: str) -> Path:
    """Return where the report of a retrain lies. Raises ReportError for an id that is no name."""
    if not _RETRAIN.fullmatch(retrain_id):
        raise ReportError(f"found retrain {retrain_id!r}: expected letters, digits, - and _")
    return reports_dir / RETRAINS / f"{retrain_id}.html"


def card_path(reports_dir: Path, version: str) -> Path:
    """Return where the model card of a version lies; its PDF lies beside it, ending in .pdf.

    Raises ReportError for what is no version.
    """
    if not _VERSION.fullmatch(version):
        raise ReportError(f"found version {version!r}: expected a number, as in '3'")
    return reports_dir / CARDS / f"{version}.html"


def list_reports(reports_dir: Path) -> list[Report]:
    """Return all reports, the latest written first. Links and other files are passed over."""
    found = []
    for folder in _folders(reports_dir):
        if folder.name == RETRAINS:
            found += [
                _report("retrain", path, retrain=path.stem)
                for path in _files(folder, ".html")
                if _RETRAIN.fullmatch(path.stem)
            ]
        elif folder.name == CARDS:
            found += [
                _report("card", path, version=path.stem)
                for path in _files(folder, ".html")
                if _VERSION.fullmatch(path.stem)
            ]
        elif _VERSION.fullmatch(folder.name):
            found += [
                _report("month", path, version=folder.name, period=path.stem)
                for path in _files(folder, ".html")
                if _PERIOD.fullmatch(path.stem)
            ]
    kept = [report for report in found if report is not None]
    return sorted(kept, key=lambda report: (report.written_at, report.path.name), reverse=True)


def find_report(
    reports_dir: Path,
    *,
    version: str | None = None,
    period: str | None = None,
    retrain: str | None = None,
) -> Report:
    """Return one report by what a person asked for. Raises ReportError if it is not there.

    Names come from addresses: they are compared with what is listed, and never become a path.
    """
    for report in list_reports(reports_dir):
        if retrain is not None and report.retrain == retrain:
            return report
        if version is not None and (report.version, report.period) == (version, period):
            return report
    asked = f"retrain {retrain!r}" if retrain is not None else f"{period!r} of version {version!r}"
    raise ReportError(f"there is no report of {asked} in {reports_dir}")


def read_page(path: Path) -> str:
    """Return a page, with the assets that it names put into it: whole in itself.

    Raises ReportError if it is gone, for a link, or for an asset that is not there.
    """
    text = _read(path).decode("utf-8")
    for name in sorted(set(_ASSET.findall(text))):
        asset = _read(path.parent.parent / ASSETS / name)
        if name.endswith(".js"):
            script = asset.decode("utf-8").replace("</script", "<\\/script")
            text = text.replace(
                f'<script src="../assets/{name}"></script>', f"<script>{script}</script>"
            )
    return text


def read_bytes(path: Path) -> bytes:
    """Return a file of a report as it is. Raises ReportError if it is gone, or a link."""
    return _read(path)


def write_page(path: Path, text: str) -> Path:
    """Replace `path` by `text` and return it; a reader sees the old page or the new one."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Replace `path` by `content` and return it; a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def prune(settings: Settings | None = None, champion: str | None = None) -> list[Path]:
    """Delete reports beyond `reports_keep_months` and `reports_max_mb`; return the files deleted.

    Of each version the latest `reports_keep_months` months are kept, and retrains and model cards
    as long. If all are more than `reports_max_mb`, the oldest go first: months of retired versions,
    then retrains and cards, then months of `champion`; never its latest `KEPT_OF_CHAMPION`, nor its
    card. Nothing else is touched.
    """
    settings = settings or get_settings()
    reports = list_reports(settings.reports_dir)
    kept_always = set(_latest(reports, champion, KEPT_OF_CHAMPION)) if champion else set()
    kept_always |= {each for each in reports if each.kind == "card" and each.version == champion}
    oldest = datetime.now(timezone.utc) - timedelta(
        days=settings.reports_keep_months * _DAYS_OF_MONTH
    )
    versions = {report.version for report in reports if report.kind == "month"}
    recent = {
        report.path
        for version in versions
        for report in _latest(reports, version, settings.reports_keep_months)
    }
    beyond = [
        report
        for report in reports
        if (report.path not in recent if report.kind == "month" else report.written_at < oldest)
    ]
    left = [report for report in reports if report not in beyond]
    room = settings.reports_max_mb * 1_000_000 - _assets_bytes(settings.reports_dir)
    excess = sum(report.bytes for report in left) - room
    for report in sorted(left, key=lambda report: _age(report, champion)):
        if excess <= 0:
            break
        if report not in kept_always:
            beyond.append(report)
            excess -= report.bytes
    return _delete(report for report in beyond if report not in kept_always)


def _age(report: Report, champion: str | None) -> tuple[int, str, datetime]:
    """Sort key: what goes first."""
    if report.kind != "month":
        return 1, "", report.written_at
    return (2 if report.version == champion else 0), report.period or "", report.written_at


def _latest(reports: Sequence[Report], version: str | None, months: int) -> list[Report]:
    own = [report for report in reports if report.kind == "month" and report.version == version]
    return sorted(own, key=lambda report: report.period or "", reverse=True)[:months]


def _delete(reports: Iterable[Report]) -> list[Path]:
    gone = []
    for report in reports:
        # The summary last: what is listed is what is there.
        try:
            for path in reversed(report.files):
                path.unlink(missing_ok=True)
                gone.append(path)
            if report.kind == "month" and not any(report.path.parent.iterdir()):
                report.path.parent.rmdir()
        except OSError as error:
            logger.warning("a report could not be deleted: %s", error)
    return gone


def _report(kind: Kind, path: Path, **facts: str) -> Report | None:
    detail = path.with_name(f"{path.stem}{DETAIL if kind == 'month' else '.pdf'}")
    try:
        size, written = path.stat().st_size, path.stat().st_mtime
        beside = detail if kind != "retrain" and _is_file(detail) else None
        size += beside.stat().st_size if beside else 0
    except OSError:  # pruned at this moment
        return None
    return Report(
        kind, path, datetime.fromtimestamp(written, timezone.utc), size, detail=beside, **facts
    )


def _assets_bytes(reports_dir: Path) -> int:
    folder = reports_dir / ASSETS
    return sum(path.stat().st_size for path in _files(folder, "")) if folder.is_dir() else 0


def _folders(reports_dir: Path) -> list[Path]:
    if not reports_dir.is_dir():
        return []
    return sorted(path for path in reports_dir.iterdir() if path.is_dir() and not path.is_symlink())


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(suffix) and _is_file(path)
    )


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _read(path: Path) -> bytes:
    try:
        # A report is a file of its own: a link would show what somebody else has pointed it at.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as f:
            return f.read()
    except OSError as error:
        raise ReportError(f"{path.name} cannot be read: {error.strerror}") from error
