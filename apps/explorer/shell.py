"""The pages of the explorer and the way between them."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import streamlit as st
from streamlit.navigation.page import StreamlitPage

# A folder "pages" would be served by Streamlit itself, without the frame of the app, until
# somebody opens the app.
_FOLDER = Path(__file__).parent / "screens"


def pages() -> dict[str, StreamlitPage]:
    """Return the pages by name; the names are part of every shared link."""
    return {
        "overview": st.Page(_FOLDER / "overview.py", title="Runs", icon=":material/grid_view:", default=True),
        "result": st.Page(
            _FOLDER / "result.py", title="Result", icon=":material/show_chart:", url_path="result"
        ),
        "compare": st.Page(
            _FOLDER / "compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"
        ),
    }


def go(name: str, **query: str) -> NoReturn:
    """Open a page with query parameters."""
    st.switch_page(pages()[name], query_params=query)
