"""The explorer: pages over the stored runs. It reads results and draws them; it never loads a model.

Run it with ``sparsescope explore``. A link with ``?run=<id>`` at the root goes to that run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path[:0] = [] if str(Path(__file__).parent) in sys.path else [str(Path(__file__).parent)]

import shell  # noqa: E402  the folder of the app is on the path only now

# Drawn here: a Material icon or an emoji would be fetched from a font server.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">'
    '<rect width="16" height="16" rx="3" fill="#0064a6"/><g fill="#fff"><circle cx="4" cy="12" r="1.2"/>'
    '<circle cx="8" cy="8" r="2.4"/><circle cx="12" cy="4" r="1.2"/></g></svg>'
)
st.set_page_config(page_title="sparsescope", page_icon=ICON, layout="wide")
page = st.navigation(list(shell.pages().values()), position="top")
if page.url_path == "" and "run" in st.query_params:
    shell.go("result", **st.query_params.to_dict())
page.run()
