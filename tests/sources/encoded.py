"""Little pictures with the embeddings of what would be said of them, as text encoders make them."""

import dataclasses

import numpy as np

from dit.data.source import Source, generator


@dataclasses.dataclass(frozen=True)
class Encoded:
    fingerprint: str
    pooled: int | None
    guidance: bool
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return 8

    def __getitem__(self, i):
        draw = generator(0, self.fingerprint, i)
        example = {"x": draw.integers(0, 256, (1, 8, 8, 1), np.uint8)}
        example["context"] = draw.standard_normal((3, 7)).astype(np.float32)
        if self.pooled is not None:
            example["pooled"] = draw.standard_normal(self.pooled).astype(np.float32)
        return example | ({"guidance": np.float32(draw.uniform(1, 4))} if self.guidance else {})


def build(*, pooled=5, guidance=False):
    parts = (Encoded(f"encoded-{part}", pooled, guidance) for part in ("train", "held_out"))
    return Source(*parts, shape=(1, 8, 8, 1), num_classes=None, fingerprint="encoded")
