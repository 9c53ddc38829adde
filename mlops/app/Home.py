"""Entry of the app: `streamlit run mlops/app/Home.py` from the root of the repository.

It frames every page (title, navigation, addresses of the other user interfaces) and shows nothing
of its own.
"""

from __future__ import annotations

import streamlit as st

from mlops.settings import get_settings

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
</style>"""

st.set_page_config(
    page_title="MLOps",
    page_icon=":material/insights:",
    layout="wide",
    initial_sidebar_state=230,
)

page = st.navigation(
    [
        st.Page("try_it.py", title="Try it", icon=":material/play_circle:", default=True),
        st.Page("models.py", title="Models", icon=":material/leaderboard:", url_path="models"),
    ]
)

settings = get_settings()
with st.sidebar:
    st.caption("Elsewhere")
    st.page_link(settings.mage_url, label="Mage, the pipelines", icon=":material/account_tree:")
    st.page_link(settings.mlflow_url, label="MLflow, the runs", icon=":material/science:")

st.html(STYLE)
page.run()
