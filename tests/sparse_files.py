"""Safetensors files of any size that take no room on a disk: a header, and zeros that are not stored."""

import json

import numpy as np

SIZES = {"F32": 4, "BF16": 2}


def write_sparse(path, shapes, dtype="BF16", given=None):
    """A file of zeros; ``given``: tensors, float32, that are not."""
    given, header, end = given or {}, {}, 0
    for name, shape in {**shapes, **{k: x.shape for k, x in given.items()}}.items():
        kind = "F32" if name in given else dtype
        stop = end + int(np.prod(shape, dtype=np.int64)) * SIZES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, stop]}
        end = stop
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, x in given.items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(x, "<f4").tobytes())
    return end
