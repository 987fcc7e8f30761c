"""One path a file; ``build(**kwargs) -> Path``."""
