"""What is said of a picture, checked: captions are Unicode, labels are whole numbers.

Raises ValueError, with the reason for ``broken.jsonl``, for what is not.
"""

from __future__ import annotations

import json
from typing import Any

from dit.data.prepare import MOST_TEXT

LARGEST_LABEL = 2**31 - 2


def captions_of(given: bytes | tuple[str, ...]) -> list[str]:
    """Captions without blank ones: each line of a file's bytes, or each text as it is."""
    if isinstance(given, bytes):
        if len(given) > MOST_TEXT:
            raise ValueError(f"its captions take {len(given)} bytes; expected at most {MOST_TEXT}")
        try:
            texts = given.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"its caption is not UTF-8: {error.reason} at byte {error.start}"
            ) from error
    else:
        texts = list(given)
    for text in texts:
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"its caption is not Unicode at character {error.start}") from error
        if len(encoded) > MOST_TEXT:
            raise ValueError(
                f"its caption takes {len(encoded)} bytes; expected at most {MOST_TEXT}"
            )
    return [text.strip() for text in texts if text.strip()]


def label_of(given: Any) -> int | None:
    """A label from a number or its decimal digits; None stands for none."""
    if given is None:
        return None
    if isinstance(given, bytes | str):
        text = given.decode("ascii", "replace") if isinstance(given, bytes) else given
        if len(text) > 20 or not text.strip().isdecimal():
            raise ValueError(f"its label is {text[:20]!r}; expected a whole number from 0")
        given = int(text)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= LARGEST_LABEL:
        raise ValueError(f"its label is {str(given)[:20]!r}; expected a whole number from 0")
    return given


def fields_of(text: bytes) -> tuple[tuple[str, ...], int | None, dict[str, Any]]:
    """``(captions, label, all fields)`` of a JSON object: ``caption`` or ``captions``, ``label``."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"its JSON takes {len(text)} bytes; expected at most {MOST_TEXT}")
    try:
        fields = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"its JSON is {type(fields).__name__}; expected an object")
    given = fields.get("captions", fields.get("caption"))
    found = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(caption, str) for caption in found):
        raise ValueError(f"its caption is {str(given)[:40]!r}; expected a text, or several")
    return tuple(found), label_of(fields.get("label")), fields
