"""Between the first stage and the second: encoders on the devices add to the records of each part.

What is encoded goes into files of its own, ``.work/part-000012.encoded.records``, ``.npy`` and
``.json``, and the records that it was made from are removed. Batches are made of the records of one
part, in order, so that the numbers do not depend on where a run was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dit.data import records
from dit.data.prepare.parts import Job, Tell, open_writer, unfinished_name, write

CHUNK = 256  # records encoded together
Values = dict[str, Any]


@runtime_checkable
class Encode(Protocol):
    """``fields``: what it adds to the fields of a manifest (``records.features``).

    ``encode(examples)``: for each example, as TFDS reads it but for the PNG of its picture, the values
    of the added features, or the reason why there are none. ``replaces``: features that are left out
    instead. Of ``mean`` and ``std`` among the values the statistics are made.
    """

    fields: dict[str, Any]
    replaces: tuple[str, ...]

    def __call__(self, examples: Sequence[Values]) -> list[Values | str]: ...


def make(job: Job, part: int, encode: Encode, *, tell: Tell) -> None:
    """Encode the records of a part."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    raw, encoded = job.raw, job
    table, notes = raw.table(part), raw.notes(part)
    read = records.reader(job.options.fields_of_all)
    added = records.added(encode.fields)
    unfinished = unfinished_name(encoded.file(part, ".records"))
    writer, rows = None, []
    names, broken = [], list(notes["broken"])
    path = str(raw.file(part, ".records"))
    reader = array_record_module.ArrayRecordReader(path) if len(table) else None
    for start in range(0, len(table), CHUNK):
        found = reader.read(list(range(start, min(start + CHUNK, len(table)))))
        made = encode([read(each) for each in found])
        for i, (whole, values) in enumerate(zip(found, made, strict=True), start):
            if isinstance(values, str):
                broken.append({"name": notes["names"][i], "reason": values})
                continue
            example = tf_example_pb2.Example.FromString(whole)
            example.MergeFrom(tf_example_pb2.Example.FromString(added.serialize_example(values)))
            for name in encode.replaces:
                del example.features.feature[name]
            content = example.SerializeToString(deterministic=True)
            writer = open_writer(unfinished) if writer is None else writer
            writer.write(content)
            row = dict(zip(table.dtype.names, table[i], strict=True)) | {"bytes": len(content)}
            if "mean" in values:
                row |= sums(values["mean"], values["std"])
            rows.append(tuple(row.values()))
            names.append(notes["names"][i])
        tell(len(found), len(found), 0)
    if writer is not None:
        writer.close()
        os.replace(unfinished, encoded.file(part, ".records"))
    with open(other := unfinished_name(encoded.file(part, ".npy")), "wb") as file:
        np.save(file, np.array(rows, dtype_of(table.dtype, encode.fields)))
    os.replace(other, encoded.file(part, ".npy"))
    write(encoded.file(part, ".json"), json.dumps({"names": names, "broken": broken}))
    raw.file(part, ".records").unlink(missing_ok=True)


def sums(mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """The sums over a picture's latents, as they are drawn, that the statistics are made of."""
    m, s = (x.astype(np.float64).reshape(-1, x.shape[-1]) for x in (mean, std))
    return {"sum": m.sum(0), "squares": (m**2 + s**2).sum(0)}


def dtype_of(table: np.dtype, fields: dict[str, Any]) -> np.dtype:
    """That of the table once the pictures are latents, with sums for each channel of these."""
    channels = fields["latents"]["channels"] if "latents" in fields else None
    wide = {"sum": channels, "squares": channels} if channels else {}
    return np.dtype([(n, table[n].base, wide.get(n, table[n].shape)) for n in table.names])
