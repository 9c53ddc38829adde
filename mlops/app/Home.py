"""Entry of the app: `streamlit run mlops/app/Home.py` from the root of the repository.

It frames every page (title, navigation, addresses of the other user interfaces) and shows nothing
of its own.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from mlops.app.elsewhere import grafana_address, in_browser
from mlops.settings import get_settings

# Cells of a dashboard are as wide as its grid of 24 columns says, and stand below one another where
# that would be too narrow.
CELLS = "\n".join(
    f'[class*="st-key-band-"] > :has(> [class*="st-key-cell-w{width}-"])'
    f" {{ flex: {width} 1 min(100%, max(10rem, {2 * width}rem)); min-width: 0; }}"
    for width in range(1, 25)
)

# Streamlit stacks columns on phones only. These rows, which the pages name by `key`, break as soon
# as an item would become too narrow to read.
STYLE = """<style>
.st-key-fields, .st-key-summary, .st-key-months { display: grid; width: 100%; }
.st-key-fields { grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); }
.st-key-summary { grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); }
.st-key-months { grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.st-key-fields > *, .st-key-summary > *, .st-key-months > * { min-width: 0; width: 100% }
.st-key-training > :first-child, .st-key-alerts > :first-child { flex: 3 1 38rem; min-width: 0; }
.st-key-training > :last-child, .st-key-alerts > :last-child { flex: 2 1 23rem; min-width: 0; }
.st-key-gate > *, .st-key-slices > * { flex: 1 1 30rem; min-width: 0; }
[class*="st-key-choices"] > * { flex: 1 1 15rem; min-width: 0; max-width: 26rem; }
[class*="st-key-band-"] { align-items: stretch; }
CELLS
.cards { display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; padding-bottom: .3rem; }
.cards small, .rule small { display: block; opacity: .72; font-size: .78rem; }
.cards b { font-size: 1.25rem; font-weight: 600; white-space: nowrap; }
.rule { margin-bottom: .6rem; }
.rule .alert { border-left: 3px solid; padding: .1rem 0 .1rem .6rem; margin: .3rem 0; }
</style>""".replace("CELLS", CELLS)

st.set_page_config(
    page_title="MLOps",
    # A file: an icon that is only named is fetched from the internet.
    page_icon=str(Path(__file__).with_name("icon.svg")),
    layout="wide",
    initial_sidebar_state=230,
)

page = st.navigation(
    [
        st.Page("try_it.py", title="Try it", icon=":material/play_circle:", default=True),
        st.Page("batch.py", title="Batch", icon=":material/table_rows:", url_path="batch"),
        st.Page("models.py", title="Models", icon=":material/leaderboard:", url_path="models"),
        st.Page(
            "model_card.py", title="Model card", icon=":material/badge:", url_path="model-card"
        ),
        st.Page("shadow.py", title="Shadow", icon=":material/visibility:", url_path="shadow"),
        st.Page(
            "monitoring.py", title="Monitoring", icon=":material/monitoring:", url_path="monitoring"
        ),
        st.Page("reports.py", title="Reports", icon=":material/summarize:", url_path="reports"),
        st.Page("columns.py", title="Columns", icon=":material/view_column:", url_path="columns"),
        st.Page("replay.py", title="Replay", icon=":material/replay:", url_path="replay"),
    ]
)

settings = get_settings()
with st.sidebar:
    st.caption("Elsewhere")
    st.page_link(
        in_browser(settings.mage_url), label="Mage, the pipelines", icon=":material/account_tree:"
    )
    st.page_link(
        in_browser(settings.mlflow_url), label="MLflow, the runs", icon=":material/science:"
    )
    grafana = grafana_address(settings)
    if grafana is not None:
        st.page_link(grafana, label="Grafana, the dashboards", icon=":material/monitoring:")

st.html(STYLE)
page.run()
