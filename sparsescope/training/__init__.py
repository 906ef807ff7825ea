"""Training of the small models that the project ships: recipes as data, exact resumption, checkpoints as a series.

``sparsescope train analyses/grokking/relu.toml --output FOLDER`` runs a recipe. This is no general trainer:
it knows modular addition and bytes of text, AdamW, and four architectures (``models.architectures``).
"""
