"""Benchmarks: what the tool itself costs on this machine. One file each; run with ``sparsescope bench NAME``.

They are not tests: they report ratios with their spread and the environment, and never pass or fail.
"""
