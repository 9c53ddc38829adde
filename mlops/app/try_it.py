"""Page *Try it*: one prediction by hand, through the same API as everybody's.

The form is made from the API's description of its model; the page knows no data set. It is thin:
what it says is worked out in `form`, what it draws in `charts`.
"""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from mlops.app import charts, form
from mlops.serving.client import ApiError, ApiUnavailable, PredictClient
from mlops.settings import Settings, get_settings

#: Seconds that a person waits for an answer before the page says that there is none.
TIMEOUT_S = 10


def show_unavailable(settings: Settings) -> None:
    """Say why nothing answers, and how to change that."""
    st.title("Try it")
    if (settings.payloads_dir / "current").exists():
        st.warning(
            f"The prediction service does not answer at {settings.predict_url}."
            f" `{settings.start_command}` starts the stack.",
            icon=":material/cloud_off:",
        )
    else:
        st.info(
            "No model is deployed yet. `make demo` trains and deploys one; on a running stack the"
            " pipelines *train* and *deploy* in Mage do the same."
            f" (`{settings.start_command}` starts the stack.)",
            icon=":material/rocket_launch:",
        )
    st.button("Try again", icon=":material/refresh:", type="primary")


def ask(field: form.Field) -> Any:
    """Draw one input and return what is filled in; None or `form.EMPTY` where it is empty.

    What was filled in outlives a version deployed meanwhile (the key is the name alone), an API
    that is away, and a look at the other page.
    """
    key = f"input-{field.name}"
    if field.kind == "number":
        return st.number_input(
            field.label,
            value=field.default,
            step=field.step,
            format=field.format,
            help=field.help or None,
            placeholder=field.empty_label if field.optional else "a number",
            key=key,
            persist_state="session",
        )
    return st.selectbox(
        field.label,
        field.options,
        index=field.options.index(str(field.default)),
        format_func=lambda option: option if option != form.EMPTY else field.empty_label,
        help=field.help or None,
        accept_new_options=True,
        key=key,
        persist_state="session",
    )


def show_form(fields: list[form.Field]) -> dict[str, Any] | None:
    """Draw the form; return the record to send if it was just submitted."""
    with st.form("form"):
        with st.container(horizontal=True, key="fields"):
            values = {field.name: ask(field) for field in fields}
        submitted = st.form_submit_button("Predict", type="primary", icon=":material/bolt:")
    return form.record(fields, values) if submitted else None


def predict(
    client: PredictClient, fields: list[form.Field], model: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Send one record and keep the answer for this session, or say why there is none."""
    st.session_state.pop("answer", None)
    missing = form.unanswered(fields, sent)
    if missing:
        st.warning(f"Still to be filled in: {', '.join(missing)}.", icon=":material/edit:")
        return
    try:
        answer = client.predict([sent], purpose="live")
        if str(answer["version"]) != str(model["version"]):
            # Deployed since the form was drawn: its threshold and base rate are what counts.
            model = client.model()
    except ApiUnavailable:
        st.warning(
            "The prediction service stopped answering. What you filled in is kept: try again.",
            icon=":material/cloud_off:",
        )
        return
    except ApiError as error:
        st.warning(f"The service did not accept this: {error}", icon=":material/error:")
        return
    st.session_state["answer"] = {
        "sent": sent,
        "answer": answer,
        "model": model,
        "why": explain(client, sent, str(answer["version"])),
    }


def explain(client: PredictClient, sent: dict[str, Any], version: str) -> dict[str, Any] | str:
    """Return why `version` answers so, or as words why that is not told: "" where it cannot be."""
    try:
        why = client.explain(sent)
    except ApiUnavailable:
        return ""
    except ApiError as error:
        # A payload of before /explain has no such address: the answer stands without it.
        return "" if error.status in (404, 405) else f"Not explained: {error}."
    return why if str(why["version"]) == version else ""  # another was deployed in between


def show_why(why: dict[str, Any] | str, model: dict[str, Any]) -> None:
    """Show what each field adds to the score, as a picture and in words."""
    if isinstance(why, str):
        if why:
            st.caption(why)
        return
    found = form.explanation(model, why)
    st.subheader("Why this score")
    st.markdown(form.literal(found.sentence))
    if not found.steps:
        return
    st.plotly_chart(
        charts.contributions_waterfall(
            [(step.label, step.change, step.told) for step in found.steps],
            found.base,
            found.probability,
            float(model["threshold"]),
            charts.palette(st.context.theme.type),
        ),
        config=charts.CONFIG,
        key="why",
        alt=found.sentence,
    )
    st.caption(
        "In percentage points: each field's exact Shapley contribution, its mean effect over all"
        " orders in which the record's values replace the reference customer's. Fields not shown"
        " change nothing."
    )


def show_answer(
    sent: dict[str, Any],
    answer: dict[str, Any],
    model: dict[str, Any],
    why: dict[str, Any] | str = "",
) -> None:
    """Show the answer in words and as a picture, who gave it, why, and what it warns of."""
    prediction = answer["predictions"][0]
    probability = float(prediction["probability"])
    verdict = form.verdict(model, probability, prediction["decision"])
    answer_cell, probability_cell, comparison_cell = st.columns(3)
    answer_cell.metric(f"Answer of version {answer['version']}", verdict.answer)
    probability_cell.metric(
        f"Probability of “{model['target']['positive']}”", form.percent(probability)
    )
    if verdict.times is not None:
        comparison_cell.metric("Against the base rate", f"{verdict.times:.1f} times")
    st.plotly_chart(
        charts.probability_bar(
            probability,
            float(model["threshold"]),
            form.base_rate(model),
            charts.palette(st.context.theme.type),
        ),
        config=charts.CONFIG,
        key="probability",
        alt=verdict.sentence,
    )
    st.markdown(verdict.sentence)
    warnings = [warning["message"] for warning in prediction.get("warnings") or []]
    if warnings:
        st.warning(
            form.literal("Unusual, so trust the answer less: " + "; ".join(warnings) + "."),
            icon=":material/info:",
        )
    show_why(why, model)
    with st.expander("The request and the answer, as JSON"):
        request, response = st.columns(2)
        request.code(json.dumps(sent, indent=2, ensure_ascii=False), language="json")
        response.code(json.dumps(answer, indent=2, ensure_ascii=False), language="json")


def show_page() -> None:
    """Draw the page for whatever model answers now."""
    settings = get_settings()
    with PredictClient.of(settings, timeout=TIMEOUT_S) as client:
        try:
            model = client.model()
            fields = form.fields(model)
        except ApiUnavailable:
            show_unavailable(settings)
            return
        except (ApiError, form.FormError) as error:
            st.title("Try it")
            st.warning(
                f"No form can be made of what {settings.predict_url} serves: {error}",
                icon=":material/error:",
            )
            st.button("Try again", icon=":material/refresh:")
            return
        st.title(str(model["target"].get("question") or model.get("title") or "Try it"))
        st.caption(" · ".join(form.provenance(model)))
        sent = show_form(fields)
        if sent is not None:
            predict(client, fields, model, sent)
    if "answer" in st.session_state:
        show_answer(**st.session_state["answer"])


show_page()
