"""Text, activations of a model on it, and mergeable statistics of them."""
