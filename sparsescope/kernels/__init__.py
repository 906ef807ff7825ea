"""One operation per file: a readable reference, fast backends, the same answer from each."""

from sparsescope.kernels.compiled_cache import choose_cache

choose_cache()  # before the first loop is declared: numba asks for the folder then
