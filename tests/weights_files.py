"""Writes the files in which weights are published."""

import json


def write_json(path, content):
    path.write_text(json.dumps(content))


def write_safetensors(path, state):
    header, end = {}, 0
    for name, x in state.items():
        ends = [end, end := end + x.nbytes]
        dtype = {"float32": "F32", "float16": "F16", "int64": "I64"}[str(x.dtype)]
        header[name] = {"dtype": dtype, "shape": x.shape, "data_offsets": ends}
    text = json.dumps(header).encode()
    parts = [len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in state.values())]
    path.write_bytes(b"".join(parts))
