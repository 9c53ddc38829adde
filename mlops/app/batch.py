"""Page *Batch*: a whole file of rows, scored by the same API as everybody's.

An upload is kept in a temporary folder of the session, which goes with it. What the page shows of a
result is worked out in `scored_rows`. Below it stands what has become of the files of the inbox.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2
import streamlit as st

from mlops.app import charts, form, scored_rows
from mlops.database import connect
from mlops.serving import exchange
from mlops.serving.client import ApiError, ApiUnavailable, PredictClient
from mlops.settings import MissingSecretError, Settings, get_settings

#: Seconds without any answer before the page says that there is none.
TIMEOUT_S = 60
ENDINGS = ["csv", "ndjson", "parquet", "gz"]
REFRESH_S = 10
TITLE = "Batch"

KINDS = {"csv": "text/csv", "ndjson": "application/x-ndjson", "gz": "application/gzip"}


@dataclass
class Outcome:
    """A file that was scored: its name, what the API said of it, and where the results lie.

    The folder is deleted when nobody holds it any more: with the session, or by the next file.
    """

    upload: str
    name: str
    summary: dict[str, Any]
    scored: scored_rows.Scored
    bad_rows: pd.DataFrame
    model: dict[str, Any]
    predictions: Path
    rejected: Path
    folder: tempfile.TemporaryDirectory[str]


def show_upload(model: dict[str, Any], settings: Settings) -> Any:
    """Draw the upload and what a file must look like; return the file, None if there is none."""
    uploaded = st.file_uploader(
        "A file of rows: CSV or NDJSON (also as .gz), or Parquet;"
        f" up to {scored_rows.LARGEST_MB} MB",
        type=ENDINGS,
        max_upload_size=scored_rows.LARGEST_MB,
        key="upload",
    )
    names = [entry["name"] for entry in model["inputs"]]
    with st.expander("What the file must look like", expanded=False):
        st.markdown(
            f"One row a line, with the columns {', '.join(f'`{name}`' for name in names)}."
            " Others may stand there too, and come back with the scores. A bad row is listed with"
            " its line; the others are scored."
        )
        st.download_button(
            "Example to start from (CSV)",
            scored_rows.example(model),
            file_name=f"{model['model']}_example.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
        )
        place = exchange.folder(settings, "inbox") if not settings.in_containers else "data/inbox"
        st.markdown(
            f"Larger files, and those that a program sends: put them into `{place}`. They are"
            " scored by themselves, within seconds."
        )
    return uploaded


def score(uploaded: Any, model: dict[str, Any], purpose: str, settings: Settings) -> Outcome | None:
    """Score an upload with a bar that tells how far it is; say so if it cannot be scored."""
    ending = exchange.ending(uploaded.name)
    if not ending:
        st.warning(
            f"The name of “{uploaded.name}” tells no format: it must end in"
            f" {', '.join(exchange.FORMATS)}.",
            icon=":material/error:",
        )
        return None
    folder = tempfile.TemporaryDirectory(prefix="mlops-batch-")
    here = Path(folder.name)
    source, predictions = here / f"upload{ending}", here / f"predictions{ending.lower()}"
    rejected = here / "rejected.ndjson"
    bar = st.progress(0.0, "Sending …")

    def tell(what: str, done: int, total: int) -> None:
        share = min(done / total, 1.0) if total > 0 else 0.0
        unit = f"{done / 1e6:,.1f} MB" if what == "sending" else f"{done:,} rows"
        bar.progress(share, f"{what.capitalize()}: {unit}")

    try:
        with source.open("wb") as file:
            uploaded.seek(0)
            shutil.copyfileobj(uploaded, file)
        with PredictClient.of(settings, timeout=TIMEOUT_S) as client:
            # The same upload has the same id, so a second try is not logged twice.
            asked = uuid.uuid5(uuid.NAMESPACE_OID, f"{uploaded.file_id} {purpose}").hex
            summary = client.score_file(
                source, predictions, rejected, asked, purpose=purpose, progress=tell
            )
            if str(summary["version"]) != str(model["version"]):
                model = client.model()  # deployed since: its threshold is what counts
        source.unlink()
        bar.progress(1.0, "Reading the scores …")
        positive = str(model["target"]["positive"])
        return Outcome(
            uploaded.file_id,
            uploaded.name,
            summary,
            scored_rows.read_scored(predictions, positive),
            scored_rows.read_bad_rows(rejected),
            model,
            predictions,
            rejected,
            folder,
        )
    except ApiUnavailable as error:
        folder.cleanup()
        st.warning(
            f"The file was not scored: {error} Try again: nothing is logged twice.",
            icon=":material/cloud_off:",
        )
    except (ApiError, ValueError) as error:
        folder.cleanup()
        st.warning(f"“{uploaded.name}” cannot be scored: {error}", icon=":material/error:")
    except OSError as error:
        folder.cleanup()
        st.warning(
            f"The file was not scored: {error.strerror or error} (temporary files of the app)",
            icon=":material/error:",
        )
    finally:
        bar.empty()
    return None


def show_purpose() -> str:
    """Ask whether the rows count as traffic; return their purpose, as the API knows it."""
    tried = st.checkbox(
        "Only a try: do not count these rows as this month's traffic",
        help="Rows that count are monitored: old or made-up ones look like drift, and may start a"
        " retrain.",
    )
    return "test" if tried else "live"


def show_outcome(outcome: Outcome) -> None:
    """Show counts, scores, first rows, bad rows, and the downloads."""
    summary, scored, model = outcome.summary, outcome.scored, outcome.model
    positive = str(model["target"]["positive"])
    st.subheader(outcome.name)
    st.caption(f"Scored by version {summary['version']} · request {summary['request_id']}")
    row = st.container(horizontal=True, key="summary")
    share = f"{scored.positives / scored.rows:.1%} of the scored" if scored.rows else "none scored"
    for label, value, note in (
        ("Rows scored", scored.rows, f"of {summary['rows']:,} in the file"),
        (f"Decided “{positive}”", scored.positives, share),
        ("Unusual", scored.unusual, "values that training did not have"),
        ("Bad rows", summary["rejected"], "not scored"),
    ):
        row.container().metric(
            label, f"{value:,}", delta=note, delta_color="off", delta_arrow="off"
        )
    downloads = st.container(horizontal=True)
    ending = exchange.ending(outcome.name)
    stem = outcome.name.removesuffix(ending)
    downloads.download_button(
        "Predictions",
        outcome.predictions.read_bytes,
        file_name=f"{stem}_scored{ending}",
        mime=KINDS.get(ending.rpartition(".")[2].lower(), "application/octet-stream"),
        type="primary",
        icon=":material/download:",
        on_click="ignore",
        key="predictions",
    )
    if summary["rejected"]:
        downloads.download_button(
            "Bad rows",
            outcome.rejected.read_bytes,
            file_name=f"{stem}_rejected.ndjson",
            mime="application/x-ndjson",
            icon=":material/download:",
            on_click="ignore",
            key="rejected",
        )
    if scored.rows:
        show_scores(scored, model)
    if summary["rejected"]:
        show_bad_rows(outcome)


def show_scores(scored: scored_rows.Scored, model: dict[str, Any]) -> None:
    """Show how the scores lie about the threshold, and the first rows."""
    positive = str(model["target"]["positive"])
    st.subheader(f"Probability of “{positive}”")
    st.plotly_chart(
        charts.score_histogram(
            scored.negative_counts,
            scored.positive_counts,
            float(model["threshold"]),
            charts.palette(st.context.theme.type),
        ),
        config=charts.CONFIG,
        key="scores",
    )
    st.subheader("First rows")
    st.dataframe(
        scored.preview,
        hide_index=True,
        height=300,
        placeholder="-",
        column_config={
            "row": st.column_config.TextColumn("Line"),
            scored_rows.PROBABILITY: st.column_config.NumberColumn("Probability", format="%.4f"),
            scored_rows.DECISION: "Decision",
            scored_rows.WARNINGS: "Unusual",
        },
        key="preview",
    )


def show_bad_rows(outcome: Outcome) -> None:
    """List the rows that were not scored, by their lines."""
    st.subheader("Bad rows")
    listed = len(outcome.bad_rows)
    st.dataframe(
        outcome.bad_rows,
        hide_index=True,
        placeholder="-",
        height="auto" if listed < 8 else 300,
        column_config={
            "line": st.column_config.NumberColumn("Line", format="%d", width="small"),
            "field": st.column_config.TextColumn("Field", width="small"),
            "code": None,
            "message": st.column_config.TextColumn("Why", width="large"),
        },
        key="bad",
    )
    if listed < outcome.summary["rejected"]:
        st.caption(f"The first {listed:,}; the download has all.")


@st.fragment(run_every=REFRESH_S)
def show_inbox(settings: Settings) -> None:
    """Show the latest files of the inbox, read as role `grafana`."""
    st.subheader("Files of the inbox")
    try:
        with connect(role="grafana", settings=settings) as connection:
            files = scored_rows.read_files(connection)
    except (psycopg2.Error, MissingSecretError) as error:
        reason = str(error).strip().partition("\n")[0]
        st.warning(f"Not read from Postgres: {reason}", icon=":material/cloud_off:")
        return
    if not files:
        st.caption("None yet: a file put there is scored by itself, and listed here.")
        return
    table = pd.DataFrame(files)
    table["at"] = table["finished_at"].where(table["finished_at"].notna(), table["started_at"])
    table["where"] = table["predictions"].where(table["status"].eq("success"), table["reason"])
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=["at", "name", "status", "rows", "scored", "rejected", "version", "where"],
        column_config={
            "at": st.column_config.DatetimeColumn("When (UTC)", format="YYYY-MM-DD HH:mm:ss"),
            "name": "File",
            "status": st.column_config.TextColumn("Status", width="small"),
            "rows": st.column_config.NumberColumn("Rows", format="localized", width="small"),
            "scored": st.column_config.NumberColumn("Scored", format="localized", width="small"),
            "rejected": st.column_config.NumberColumn("Bad", format="localized", width="small"),
            "version": st.column_config.TextColumn("Version", width="small"),
            "where": st.column_config.TextColumn("Result, or why there is none", width="large"),
        },
        key="files",
    )


def show_page() -> None:
    """Draw the page; the files of the inbox also where no API answers."""
    settings = get_settings()
    st.title(TITLE)
    try:
        with PredictClient.of(settings, timeout=10) as client:
            model = client.model()
            form.fields(model)
    except ApiUnavailable:
        st.warning(
            f"The prediction service does not answer at {settings.predict_url}, so no file can be"
            f" scored now. `{settings.start_command}` starts the stack; before the first model,"
            " the pipelines *train* and *deploy* make one.",
            icon=":material/cloud_off:",
        )
        st.button("Try again", icon=":material/refresh:", type="primary")
    except (ApiError, form.FormError) as error:
        st.warning(f"{settings.predict_url} serves no model: {error}", icon=":material/error:")
    else:
        st.caption(" · ".join([str(model.get("title") or ""), *form.provenance(model)]).strip(" ·"))
        uploaded = show_upload(model, settings)
        kept: Outcome | None = st.session_state.get("batch")
        if kept is not None and (uploaded is None or uploaded.file_id != kept.upload):
            st.session_state.pop("batch").folder.cleanup()
        purpose = show_purpose() if uploaded is not None else "live"
        if uploaded is not None and st.button("Score", type="primary", icon=":material/bolt:"):
            outcome = score(uploaded, model, purpose, settings)
            if outcome is not None:
                st.session_state["batch"] = outcome
        if "batch" in st.session_state:
            show_outcome(st.session_state["batch"])
    show_inbox(settings)


show_page()
