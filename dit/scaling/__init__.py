"""What a model costs, and what its loss should be."""
