"""Records of latents, as ``dit prepare`` leaves them, without pictures to make them of."""

import json
import os

import numpy as np

from dit.data import records
from dit.data.prepare.parts import open_writer


def write(root, shape, classes, flip, dtype=np.float16, each=6, bad=None):
    """``each`` examples of ``shape`` (h, w, c), or (f, h, w, c), in either split; ``bad`` has a NaN.

    With labels, or with captions where there are no classes.
    """
    *frames, height, width, channels = shape
    given = {
        "sizes": [[height, width]],
        "channels": channels,
        "dtype": str(np.dtype(dtype)),
        "flip": flip,
        **({"frames": frames[0]} if frames else {}),
    }
    fields = {"sizes": [[8 * height, 8 * width]], "channels": 3, "classes": classes}
    fields |= {"captions": classes is None, "latents": given}
    features, draw = records.features(fields), np.random.default_rng(0)
    names, shards = records.latents(flip), []
    for split in records.SPLITS:
        path = root / records.shard_name(split, 0, 1)
        writer = open_writer(path)
        for i in range(each):
            z = {n: np.abs(draw.standard_normal(shape, np.float32)).astype(dtype) for n in names}
            if i == bad:
                z["mean"][0, 0, 0] = np.nan
            size = np.array([height, width], np.int32)
            known = {"size": size, "id": np.array([0, i], np.uint32)}
            known |= {"caption": ["a red cat"]} if classes is None else {"label": i % classes}
            writer.write(features.serialize_example({**z, **known}))
        writer.close()
        shard = {"name": path.name, "split": split, "bucket": 0, "records": each}
        shards.append({**shard, "bytes": os.path.getsize(path), "tail": records.tail(path)})
    splits = {split: {"records": each, "buckets": [each]} for split in records.SPLITS}
    manifest = {"format": records.FORMAT, "fields": fields, "splits": splits, "shards": shards}
    (root / records.MANIFEST).write_text(json.dumps(manifest))
