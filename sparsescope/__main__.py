"""``python -m sparsescope`` is the same as ``sparsescope``."""

from sparsescope.cli import main

main()
