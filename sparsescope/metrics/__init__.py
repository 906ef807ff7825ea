"""Pure functions on arrays: no model, no files, no torch."""
