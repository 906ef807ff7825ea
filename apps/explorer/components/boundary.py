"""The error boundary of every page: a message and a next step, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from components.text import plain

from sparsescope.errors import SparsescopeError

_LOG = logging.getLogger("sparsescope.explorer")


@contextmanager
def boundary(what: str) -> Iterator[None]:
    """Turn an error inside the block into a message on the page.

    Args:
        what: What was being done, for the message, for example ``"draw this figure"``.
    """
    try:
        yield
    except SparsescopeError as error:
        st.error(plain(error.what), icon=":material/error:")
        for label, part in (("Allowed", error.allowed), ("Got", error.got)):
            if part:
                st.caption(f"{label}: {plain(part)}")
        if error.next_step:
            st.markdown("Next step:")
            st.code(error.next_step, language=None)
    except Exception as error:  # a bug must not show a traceback with paths; the log has it
        _LOG.exception("could not %s", what)
        name = type(error).__name__
        message = f"The explorer could not {plain(what)}: {name}. The terminal that runs it has the details."
        st.error(message, icon=":material/bug_report:")
        st.markdown("Next step:")
        st.code("sparsescope verify", language=None)
