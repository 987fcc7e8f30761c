"""The source ``sources/captioned.py``, where ``resolve`` finds it, and a tiny model that reads it."""

import contextlib
import pathlib

from saved_run import TINY

import dit.data.sources

WORDS = {"name": "bytes", "length": 32, "width": 8, "depth": 1, "heads": 2}


@contextlib.contextmanager
def installed():
    before = dit.data.sources.__path__
    dit.data.sources.__path__ = [*before, str(pathlib.Path(__file__).parent / "sources")]
    yield
    dit.data.sources.__path__ = before


def told(block="cross_attention", **data):
    """A config, and the keywords of ``save``, but for its ``data``."""
    model = {**TINY["model"], "block": block}
    return {**TINY, "data": {"name": "captioned", **data}, "text": WORDS, "model": model}
