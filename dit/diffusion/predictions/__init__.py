"""One prediction a file; ``build(**kwargs) -> Prediction``, a pair of coefficients (p, q)."""
