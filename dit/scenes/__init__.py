"""A small world of coloured shapes and short words: what is said of a picture, and how it is drawn.

What makes such pictures (``data.sources.shapes_text``) and what reads them (``evaluation.reading``)
share the vocabulary, the outlines and the letters here, so that neither can drift away from the other.
"""
