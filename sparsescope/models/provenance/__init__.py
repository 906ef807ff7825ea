"""What makes a model this model besides its weights, and what readers of its numbers are told."""
