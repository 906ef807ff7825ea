"""Training: a loop that resumes exactly, and the small models that the project ships, whose recipes are data.

``loop.py`` trains whatever makes one update at a time: schedule, state, saving, progress. ``trainer.py`` uses
it for ``sparsescope train analyses/grokking/relu.toml --output FOLDER``: modular addition and bytes of text,
AdamW, six architectures (``models.structure.architectures``), checkpoints as a series.
"""
