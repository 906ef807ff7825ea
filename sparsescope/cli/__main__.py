"""``python -m sparsescope.cli`` is the same as ``sparsescope``."""

from sparsescope.cli import main

main()
