"""Data sources: one file each, whose ``build(**options)`` returns a ``dit.data.source.Source``."""
