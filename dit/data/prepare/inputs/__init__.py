"""Kinds of raw data, one a file: ``resolve("data.prepare.inputs", NAME, path=..., **options)``."""
