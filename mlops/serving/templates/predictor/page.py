"""The API described for people: one page made from its OpenAPI document.

It holds all that it needs: no address of another server stands in it, and its policy lets a browser
run and load nothing but what it brings. A record can be tried; that asks with purpose `test`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5b6675; --page: #fff; --card: #f6f7f9;
  --line: #dde1e7; --link: #1457b8; --get: #1f7a4d; --post: #1457b8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #9aa5b4; --page: #12161c;
  --card: #1b2129; --line: #313a46; --link: #7db0ff; --get: #5fce96; --post: #7db0ff;
  --bad: #ff8a80; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, nav ul { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; } h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; } a { color: var(--link); } .dim, .lead { color: var(--dim); }
.lead { font-size: 1.15rem; } code, pre, textarea, .path { font-family: ui-monospace,
  SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; }
code { background: var(--card); border-radius: 4px; padding: .1em .3em; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; overflow-x: auto; margin: .5rem 0; }
pre code { background: none; padding: 0; font-size: 1em; }
nav { border-bottom: 1px solid var(--line); margin-top: 1.2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; list-style: none;
  padding-bottom: .7rem; }
section.operation { border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin: 1rem 0; } section.operation h3:first-child { font-size: 1.05rem; margin: 0; }
.method { font-weight: 700; margin-right: .6rem; } .get { color: var(--get); }
.post { color: var(--post); } .path { font-weight: 600; font-size: 1rem; margin-right: .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .94rem; }
th { text-align: left; color: var(--dim); font-weight: 600; } th, td { padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { white-space: nowrap; }
section td:first-child { width: 14rem; } .kind, td code { white-space: nowrap; }
.num { white-space: nowrap; font-variant-numeric: tabular-nums; }
textarea { width: 100%; min-height: 17rem; background: var(--card); color: var(--ink);
  border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; resize: vertical;
  line-height: 1.5; }
.try { display: grid; gap: 1.2rem; grid-template-columns: 1fr 1fr; }
.try > * { min-width: 0; } .try pre { margin: 0; min-height: 17rem; max-height: 32rem;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 45rem) { .try { grid-template-columns: 1fr; } }
.row { display: flex; flex-wrap: wrap; gap: .7rem; align-items: center; margin: .6rem 0; }
button, select, input { font: inherit; color: inherit; border: 1px solid var(--line);
  border-radius: 8px; padding: .4rem .9rem; background: var(--card); }
button { background: var(--post); border-color: var(--post); color: var(--page); font-weight: 600;
  cursor: pointer; } button:disabled { opacity: .6; cursor: wait; }
.refused { color: var(--bad); } footer { margin: 3rem 0 2rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
"""

_SCRIPT = """
"use strict";
const [send, way, body, answer, fact, key] =
  ["send", "way", "body", "answer", "fact", "key"].map((id) => document.getElementById(id));
document.getElementById("origin").textContent = location.origin;
send.addEventListener("click", async () => {
  send.disabled = true;
  fact.textContent = "asking";
  fact.className = "dim";
  const headers = { "Content-Type": "application/json", "X-Purpose": "test" };
  if (key && key.value) headers.Authorization = "Bearer " + key.value;
  const began = performance.now();
  try {
    const response = await fetch(way.value, { method: "POST", headers, body: body.value });
    const text = await response.text();
    const took = (performance.now() - began).toFixed(0);
    fact.textContent = `${response.status} in ${took} ms`;
    fact.className = response.ok ? "dim" : "refused";
    try { answer.textContent = JSON.stringify(JSON.parse(text), null, 2); }
    catch { answer.textContent = text; }
  } catch (fault) {
    fact.textContent = "no answer: does the API still run?";
    fact.className = "refused";
  } finally {
    send.disabled = false;
  }
});
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)};"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""


def docs_page(document: Json) -> bytes:
    """Return the page of an OpenAPI document, as UTF-8; all of the document's texts are escaped."""
    info = document["info"]
    sections = "".join(
        f"<h2 id='{_anchor(tag['name'])}'>{escape(tag['name'])}</h2>"
        f"<p class='dim'>{_text(tag['description'])}</p>{_operations(document, tag['name'])}"
        for tag in document["tags"]
    )
    places = ["Try it", "Fields", *(tag["name"] for tag in document["tags"]), "Errors"]
    links = "".join(f"<li><a href='#{_anchor(each)}'>{escape(each)}</a></li>" for each in places)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(info["title"])}</h1>
<p class="lead">{escape(info["summary"])}</p>
<p>{_text(info["description"])}</p>
<p class="dim">Model version {escape(info["version"])} · <a href="openapi.json">openapi.json</a> ·
<a href="model">model.json</a></p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
<h2 id="try-it">Try it</h2>
{_trial(document)}
<h2 id="fields">Fields</h2>
{_fields(document)}
{sections}
<h2 id="errors">Errors</h2>
<p class="dim">Every refusal is JSON that names what is wrong:
<code>{{"error": {{"code", "field", "row", "message"}}}}</code>, rows counted from 0.</p>
{_errors(document)}
<footer class="dim">Made from the model that answers.</footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def _trial(document: Json) -> str:
    record = document["components"]["schemas"]["Record"]["examples"][0]
    lines = json.dumps(record, indent=2, ensure_ascii=False)
    ways = "".join(
        f"<option value='{escape(path[1:])}'>POST {escape(path)}</option>"
        for path in ("/predict", "/explain")
        if path in document["paths"]
    )
    key = (
        "<input id='key' type='password' placeholder='API key' aria-label='API key'"
        " autocomplete='off'>"
        if "security" in document
        else ""
    )
    compact = json.dumps(record, ensure_ascii=False).replace("'", "'\\''")
    bearer = " \\\n  -H 'Authorization: Bearer &lt;key&gt;'" if "security" in document else ""
    return (
        "<p class='dim'>The typical record of the training; change it and ask. It is logged as a"
        " test, so it moves no chart.</p>"
        f"<div class='row'><select id='way' aria-label='Address'>{ways}</select>"
        f"<button id='send' type='button'>Ask</button>{key}"
        "<span id='fact' class='dim' role='status'></span></div>"
        f"<div class='try'><textarea id='body' aria-label='Record' spellcheck='false'"
        f" rows='{lines.count(chr(10)) + 2}'>"
        f"{escape(lines)}</textarea>"
        "<pre><code id='answer' aria-live='polite'>The answer comes here.</code></pre></div>"
        "<h3>From a shell</h3>"
        "<pre><code>curl -s <span id='origin'>http://127.0.0.1:9696</span>/predict"
        f" -H 'Content-Type: application/json'{bearer} \\\n  -d '{escape(compact, quote=False)}'"
        "</code></pre>"
    )


def _fields(document: Json) -> str:
    rows = []
    record = document["components"]["schemas"]["Record"]
    fields = record["properties"]
    common = sorted(set.intersection(*(set(each["x-missing"]) for each in fields.values())))
    for name, field in fields.items():
        seen = field["x-training"]
        if "minimum" in seen:
            low, high = seen["minimum"], seen["maximum"]
            known = f"<span class='num'>{low:,} … {high:,}</span>"
            kind = next(each["type"] for each in field["anyOf"] if each["type"] != "null")
            kind = {"integer": "whole number", "number": "number"}[kind]
        else:
            known = " ".join(f"<code>{escape(value)}</code>" for value in seen.get("values", ()))
            kind = "number" if "anyOf" in field else "text"
        unit = f", {escape(field['x-unit'])}" if "x-unit" in field else ""
        optional = "" if name in record["required"] else " <span class='dim'>(optional)</span>"
        own = [each for each in field["x-missing"] if each not in common]
        meaning = field["description"].partition(". In training")[0].partition(". Missing:")[0]
        meaning = re.sub(r" \([^()]*\)$", "", meaning) if unit else meaning
        rows.append(
            f"<tr><td><code>{escape(name)}</code>{optional}</td><td>{escape(meaning)}</td>"
            f"<td class='kind'>{kind}{unit}</td><td>{known or '-'}</td>"
            f"<td>{_codes(own) or '-'}</td></tr>"
        )
    return (
        "<p class='dim'>What a record holds. Ranges and values are those of the training: what lies"
        f" outside is answered with a warning. Missing is {_codes([None, *common])} in every field."
        "</p>" + _table(("Field", "Meaning", "Type", "In training", "Missing too"), rows)
    )


def _codes(values: Iterable[Any]) -> str:
    return " ".join(f"<code>{escape(json.dumps(each))}</code>" for each in values)


def _operations(document: Json, tag: str) -> str:
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                found.append(_operation(document, path, method, operation))
    return "".join(found)


def _operation(document: Json, path: str, method: str, operation: Json) -> str:
    parts = [
        f"<h3><span class='method {method}'>{method.upper()}</span>"
        f"<span class='path'>{escape(path)}</span> {escape(operation['summary'])}</h3>"
        f"<p>{_text(operation['description'])}</p>"
    ]
    parameters = [_resolved(document, each) for each in operation.get("parameters", ())]
    if parameters:
        rows = [
            f"<tr><td><code>{escape(each['name'])}</code></td><td>{_text(each['description'])}"
            f"{_choices(each['schema'])}</td></tr>"
            for each in parameters
        ]
        parts.append("<h3>Headers, all optional</h3>" + _table((), rows))
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        types = " ".join(f"<code>{escape(each)}</code>" for each in body)
        parts.append(f"<h3>Takes</h3><p>{types}</p>")
    given, refused = [], []
    for status, response in sorted(operation["responses"].items()):
        if "$ref" in response:
            refused.append(f"<a href='#status-{status}'>{status}</a>")
        else:
            types = " ".join(f"<code>{escape(each)}</code>" for each in response["content"])
            words = _text(response["description"])
            given.append(f"<tr><td>{status}</td><td>{words}<br>{types}</td></tr>")
    if refused:
        given.append(f"<tr><td>{', '.join(refused)}</td><td>an error</td></tr>")
    parts.append("<h3>Answers</h3>" + _table((), given))
    return f"<section class='operation'>{''.join(parts)}</section>"


def _errors(document: Json) -> str:
    rows = []
    for status, response in document["components"]["responses"].items():
        examples = response["content"]["application/json"]["examples"]
        for place, (code, example) in enumerate(examples.items()):
            anchor = f" id='status-{status}'" if place == 0 else ""
            message = _text(example["value"]["error"]["message"])
            rows.append(
                f"<tr{anchor}><td>{status}</td><td><code>{escape(code)}</code></td>"
                f"<td>{message}</td></tr>"
            )
    return _table(("Status", "Code", "When"), rows)


def _choices(schema: Json) -> str:
    return "".join(f" <code>{escape(str(each))}</code>" for each in schema.get("enum", ()))


def _resolved(document: Json, entry: Json) -> Json:
    """Return what a `$ref` into the document names, or the entry itself."""
    while "$ref" in entry:
        found: Any = document
        for step in entry["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        entry = found
    return entry


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th scope='col'>{escape(each)}</th>" for each in heads)
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f"<div class='scroll'><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _text(text: str) -> str:
    """Return a text as HTML: what stands in backticks is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
