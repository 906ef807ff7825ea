"""Where text comes from and how it becomes a stream of tokens; ``activations.corpus`` is the way in."""
