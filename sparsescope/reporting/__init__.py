"""Reports, comparisons and the way into the explorer. Nothing here loads a model."""
