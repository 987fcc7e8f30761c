"""Text encoders with weights from elsewhere, one a file; they are frozen.

``config.resolve("text.pretrained", NAME, path=DIR, **options)`` opens an ``Encoder``: see ``encoder``.
``config.resolve("text", "pretrained", encoders=...)`` makes one of several, as the section ``text`` of a
config asks for them.
"""

from __future__ import annotations

from typing import Any

from dit.config import resolve
from dit.text import FrozenText
from dit.text.pretrained.joint import joined
from dit.types import UserError


def build(*, encoders: tuple[dict[str, Any], ...], dtype: str = "float32") -> FrozenText:
    """The ``encoders`` as one: of each its ``name`` in this room, and its keywords.

    ``dtype``: of the products of those that do not set their own. Raises UserError for one that cannot
    be opened, and for some that cannot be joined.
    """
    if not encoders:
        raise UserError("got no text encoders; expected one or more, such as encoders=minilm")
    found = [resolve("text.pretrained", **{"dtype": dtype, **each}) for each in encoders]
    return joined(found)
