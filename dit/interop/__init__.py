"""Weights of other implementations: one file a format, import and export.

``config.resolve("interop", name)`` gives a ``Format``. States are flat dicts of arrays by foreign name;
``files.read`` gets them out of files that need not be trusted.
"""
