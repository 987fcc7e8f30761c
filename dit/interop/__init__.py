"""Weights of other implementations: one file a format, import and export.

``config.resolve("interop", name)`` gives a ``Format``. States are flat dicts of NumPy arrays by foreign
name; reading them from files, and trusting the files, is the caller's business.
"""
