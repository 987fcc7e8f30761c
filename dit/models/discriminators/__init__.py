"""Discriminators, one a file; ``build(**kwargs) -> Network``.

They are networks whose output is not of the shape of the data: a map of logits, high where a picture
looks real. Only an objective names one (``objectives/autoencoder.py``).
"""
