"""Figures: one theme, helpers with alt text, safe display of foreign strings, a default view of any table."""
