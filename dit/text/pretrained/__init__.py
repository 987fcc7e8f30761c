"""Text encoders with weights from elsewhere, one a file; they are frozen, and their outputs stored.

``config.resolve("text.pretrained", NAME, path=DIR, **options)`` opens an ``Encoder``: see ``encoder``.
"""
