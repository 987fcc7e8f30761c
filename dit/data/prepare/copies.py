"""Pictures that are copies of others, but for compression, size or a little brightness.

The fingerprint of a picture is 64 bits, of which each says whether one of 9 x 8 patches is brighter
than its left neighbour (a difference hash), and the colours of 4 x 4 patches. Two pictures are copies
where at most ``BITS`` bits differ, and no colour by more than ``COLOUR``: colours alone tell plain
pictures apart.
"""

from __future__ import annotations

import collections

import numpy as np
from jaxtyping import UInt8

BITS = 3
COLOUR = 8
STEP = 2  # by which a patch is brighter, lest noise on plain ground counts
THUMB = 4
BANDS = BITS + 1  # one of these pieces is equal in two hashes of at most BITS differences


def look(x: UInt8[np.ndarray, "h w c"]) -> tuple[np.uint64, UInt8[np.ndarray, " n"]]:
    """The hash and the colours of a picture."""
    from PIL import Image

    image = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(grey[:, 1:] - grey[:, :-1] > STEP)
    small = image.convert("RGB").resize((THUMB, THUMB), Image.Resampling.BOX)
    return bits.view(">u8")[0].astype(np.uint64), np.asarray(small).reshape(-1)


def originals(
    hashes: np.ndarray, colours: UInt8[np.ndarray, "n k"]
) -> tuple[np.ndarray, dict[int, int]]:
    """``(kept, {copy: original})`` of pictures in order: each is compared with those kept before it."""
    kept = np.ones(len(hashes), bool)
    found: dict[int, int] = {}
    width = 64 // BANDS
    known: list[dict[int, list[int]]] = [collections.defaultdict(list) for _ in range(BANDS)]
    values = [int(h) for h in hashes]
    for i, value in enumerate(values):
        bands = [value >> (width * b) & (1 << width) - 1 for b in range(BANDS)]
        near = {j for b, band in enumerate(bands) for j in known[b].get(band, ())}
        close = sorted(j for j in near if (values[j] ^ value).bit_count() <= BITS)
        if close:
            off = np.abs(colours[close].astype(np.int16) - colours[i]).max(1)
            if (off <= COLOUR).any():
                kept[i], found[i] = False, close[int(np.argmax(off <= COLOUR))]
                continue
        for b, band in enumerate(bands):
            known[b][band].append(i)
    return kept, found
