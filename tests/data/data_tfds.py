"""A prepared TFDS data set with features of many kinds; most of them cannot be trained on."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TRAIN, TEST = 9, 3
NAN = 5  # the example with a latent that is not finite


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Image i is 12 x 10 pixels of brightness i, with the label i % 3."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        features = {
            "image": f.Image(shape=(12, 10, 1)),
            "deep": f.Tensor(shape=(12, 10, 1), dtype=np.uint16),
            "clear": f.Image(shape=(12, 10, 4)),
            "vary": f.Image(shape=(None, None, 3)),
            "clip": f.Sequence(f.Image(shape=(12, 10, 1))),
            "reel": f.Sequence(f.Image(shape=(12, 10, 1)), length=3),
            "latent": f.Tensor(shape=(4, 4, 2), dtype=np.float32),
            "table": f.Tensor(shape=(4, 4, 2), dtype=np.int64),
            "vector": f.Tensor(shape=(4,), dtype=np.float32),
            "label": f.ClassLabel(num_classes=3),
            "long": f.Scalar(dtype=np.int64),
            "byte": f.Scalar(dtype=np.uint8),
            "flag": f.Scalar(dtype=np.bool_),
            "late": f.Scalar(dtype=np.int64),
            "none": f.Scalar(dtype=np.int64),
            "text": f.Text(),
            "list": f.Sequence(f.ClassLabel(num_classes=3)),
            "real": f.Scalar(dtype=np.float32),
            "dict": f.FeaturesDict({"label": f.ClassLabel(num_classes=3)}),
        }
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, TRAIN),
            "test": self._generate_examples(TRAIN, TRAIN + TEST),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            latent = np.full((4, 4, 2), i, np.float32)
            latent[1, 2, 1] = np.nan if i == NAN else 0
            yield (
                i,
                {
                    "image": png(Image.new("L", (10, 12), i)),
                    "deep": np.full((12, 10, 1), 257 * (i + 200), np.uint16),
                    "clear": png(Image.new("RGBA", (10, 12), (i, i, i, 255 * (i % 2)))),
                    "vary": png(Image.new("RGB", (10 + i, 12))),
                    "clip": [png(Image.new("L", (10, 12), i)) for _ in range(2 + i % 2)],
                    "reel": [png(Image.new("L", (10, 12), i + k)) for k in range(3)],
                    "latent": latent,
                    "table": np.zeros((4, 4, 2), np.int64),
                    "vector": np.zeros(4, np.float32),
                    "label": i % 3,
                    "long": i % 3,
                    "byte": i % 3,
                    "flag": bool(i % 2),
                    "late": i % 3 if i != NAN else -1,
                    "none": -1,
                    "text": "a cat",
                    "list": [0, 1],
                    "real": 0.5,
                    "dict": {"label": 1},
                },
            )


def png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    file.seek(0)
    return file


def prepare(path):
    """The keywords of the source that reads it."""
    TinyImages(data_dir=str(path), file_format="array_record").download_and_prepare()
    return {"dataset": "tiny_images", "data_dir": str(path)}
