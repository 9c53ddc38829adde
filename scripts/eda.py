"""`make eda`: runs EDA.ipynb and writes what came of it, for reading and with code; never into git.

python scripts/eda.py
python scripts/eda.py --pictures images    # the figures that have a name, too
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlops.settings import get_settings  # noqa: E402 - the clone is no installed package

NOTEBOOK = ROOT / "EDA.ipynb"
CELL_SECONDS = 200
TEMPLATE = """{% extends 'index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
"""Jupyter's own page without what it fetches from the internet: there is no formula in it."""


def main() -> int:
    """Run the notebook, write its copies, say where; return 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for the figures that have a name")
    parser.add_argument("--to", type=Path, help="folder of the copies; default: reports")
    options = parser.parse_args()
    folder = (options.to or get_settings().reports_dir).resolve()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if options.pictures:
        set_parameter(notebook, "PICTURES", str(options.pictures.resolve()))
    began = time.monotonic()
    # The kernel of this environment, and the clone as its folder, from where it imports mlops.
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    failure = None
    try:
        client.execute()
    except CellExecutionError as error:
        failure = error
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / NOTEBOOK.name)
    if failure:
        print(f"{failure}\n{folder / NOTEBOOK.name} has all up to there", file=sys.stderr)
        return 1
    page = HTMLExporter(
        raw_template=TEMPLATE,
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
    )
    html, _ = page.from_notebook_node(notebook, {"metadata": {"name": "EDA"}})
    (folder / "EDA.html").write_text(html, encoding="utf-8")
    print(f"{time.monotonic() - began:.0f} s; for reading: {folder / 'EDA.html'}")
    print(f"with its code: {folder / NOTEBOOK.name}")
    return 0


def set_parameter(notebook: nbformat.NotebookNode, name: str, value: str) -> None:
    """Give a name of the cell that is tagged `parameters` another value."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []) and cell.source.startswith(f"{name} = "):
            cell.source = f"{name} = {value!r}"
            return
    raise SystemExit(f"{NOTEBOOK.name} has no cell `{name} = …` with the tag parameters")


if __name__ == "__main__":
    sys.exit(main())
