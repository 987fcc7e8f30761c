"""One solver a file; ``build(**kwargs) -> Solver``."""
