"""Little pictures with captions, as many as are asked for: what a caption says is in the picture.

``black`` and ``white`` are its brightness; ``several``: with two captions each, one of them long.
"""

import dataclasses

import numpy as np

from dit.data.source import STREAM_LENGTH, Source, Stream


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Captioned(Stream):
    shape: tuple
    num_classes: int | None
    several: bool

    def make(self, rng, i):
        white = bool(rng.integers(2))
        x = rng.integers(0, 100, self.shape, np.uint8) + np.uint8(150 * white)
        caption = "white" if white else "black"
        found = {
            "x": x,
            "caption": [caption, f"a picture, all {caption}"] if self.several else caption,
        }
        return found | ({"label": i % self.num_classes} if self.num_classes else {})


def build(*, shape=(1, 4, 4, 1), num_classes=None, several=False, held_out=12):
    parts = (
        Captioned(
            shape=tuple(shape),
            num_classes=num_classes,
            several=several,
            seed=0,
            length=length,
            fingerprint=f"captioned/{part}",
        )
        for part, length in (("train", STREAM_LENGTH), ("held_out", held_out))
    )
    return Source(*parts, tuple(shape), num_classes, "captioned", streaming=True)
