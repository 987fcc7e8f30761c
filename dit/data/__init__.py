"""Data: sources of examples, transforms of them, and the resumable Grain pipeline."""
