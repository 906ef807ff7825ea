"""One operation per file: a readable reference, fast backends, the same answer from each."""
