"""Running analyses: one forward pass for all that only need activations, stored results, studies."""
