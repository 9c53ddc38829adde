"""Score a file of rows by the predict API that runs: `python -m mlops.serving.score FILE`.

The predictions come in the format of the file, with the row's line, probability, decision and
number of warnings added; rows that cannot be scored go to a file beside it, with line and reason.
Memory does not grow with the file, and nothing is written unless the whole file was answered.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mlops.serving.client import ApiError, ApiUnavailable, PredictClient
from mlops.settings import get_settings

_WORDS = {"sending": "Sending", "scoring": "Scoring"}


def default_output(source: Path) -> Path:
    """Return `customers.scored.csv.gz` for `customers.csv.gz`, in the same folder."""
    suffixes = "".join(source.suffixes[-2:] if source.suffix == ".gz" else source.suffixes[-1:])
    return source.with_name(f"{source.name.removesuffix(suffixes)}.scored{suffixes}")


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and score; return the exit status: 1 if the file could not be scored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help=".csv, .ndjson (both also .gz) or .parquet")
    parser.add_argument("--output", type=Path, help="default: FILE with .scored before its ending")
    parser.add_argument("--rejected", type=Path, help="default: OUTPUT.rejected.ndjson")
    parser.add_argument("--period", help="month that the rows belong to, such as 2009-03")
    parser.add_argument(
        "--purpose",
        choices=("live", "test"),
        default="live",
        help="live rows are monitored, as of --period or this month; test rows are not",
    )
    parser.add_argument("--request-id", help="a repeat of it is not logged twice")
    chosen = parser.parse_args(arguments)
    source: Path = chosen.file
    output: Path = chosen.output or default_output(source)
    rejected: Path = chosen.rejected or output.with_name(f"{output.name}.rejected.ndjson")
    if output.resolve() == source.resolve():
        parser.error(f"{output} is the file itself: choose another --output")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    bars = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    try:
        with bars, PredictClient.of(get_settings()) as client:
            tasks = {kind: bars.add_task(word, total=None) for kind, word in _WORDS.items()}
            summary = client.score_file(
                source,
                output,
                rejected,
                chosen.request_id,
                chosen.period,
                chosen.purpose,
                progress=lambda kind, done, total: bars.update(
                    tasks[kind], completed=done, total=total
                ),
            )
    except (ApiError, ApiUnavailable, OSError, ValueError) as error:
        print(f"{source}: {error}", file=sys.stderr)
        return 1
    print(
        f"{output}: {summary['scored']:,} of {summary['rows']:,} rows scored by version"
        f" {summary['version']} (request {summary['request_id']})"
    )
    if summary["rejected"]:
        print(f"{rejected}: {summary['rejected']:,} rows cannot be scored, and why")
    else:
        rejected.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
