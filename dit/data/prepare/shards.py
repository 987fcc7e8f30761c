"""The third stage: records are copied from the parts into shards, and described for all who read them.

Beside each finished shard lies ``.work/NAME.json``, what the manifest says of it. TFDS's own description
(``dataset_info.json``, ``features.json``) follows, and last of all the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from dit.data import records
from dit.data.prepare.parts import WORK, Job, Tell, open_writer, unfinished_name, write
from dit.data.prepare.plan import Plan, Shard

ROWS = 64  # copied at once
VERSION = "1.0.0"


def mark(job: Job, shard: Shard) -> pathlib.Path:
    """The file that is there once the shard is."""
    return job.out / WORK / f"{shard.name}.json"


def make(job: Job, shard: Shard, *, tell: Tell) -> None:
    """Copy the records of a shard."""
    from array_record.python import array_record_module

    path = job.out / shard.name
    unfinished = unfinished_name(path)
    writer = open_writer(unfinished)
    for part, rows in shard.runs:
        reader = array_record_module.ArrayRecordReader(str(job.file(part, ".records")))
        for i in range(0, len(rows), ROWS):
            found = reader.read(rows[i : i + ROWS].tolist())
            for each in found:
                writer.write(each)
            tell(len(found), len(found), 0)
        reader.close()
    writer.close()
    known = {
        "name": shard.name,
        "split": shard.split,
        "bucket": shard.bucket,
        "records": shard.records,
        "bytes": os.path.getsize(unfinished),
        "sha256": digest(unfinished),
        "tail": records.tail(unfinished),
    }
    os.replace(unfinished, path)
    write(mark(job, shard), json.dumps(known))


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(job: Job, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """Write what is said of the records as a whole; the manifest."""
    shards = [json.loads(mark(job, shard).read_text()) for shard in plan.shards]
    describe_for_tfds(job, plan, shards)
    for name, listed in (("broken.jsonl", plan.broken), ("copies.jsonl", plan.copies)):
        write(job.out / name, "".join(json.dumps(each) + "\n" for each in listed))
    manifest = {
        "format": records.FORMAT,
        "fields": plan.fields,
        "classes": job.input.classes,
        "splits": plan.splits,
        "counts": {"broken": len(plan.broken), "copies": len(plan.copies)},
        "statistics": plan.statistics,
        "made_from": facts,
        "shards": shards,
    }
    write(job.out / records.MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def describe_for_tfds(job: Job, plan: Plan, shards: list[dict[str, Any]]) -> None:
    """Write what ``tfds.builder_from_directory`` reads."""
    import tensorflow_datasets as tfds

    features = records.features(plan.fields)
    if job.input.classes is not None and plan.fields["classes"] == len(job.input.classes):
        features["label"].names = list(job.input.classes)
    template = tfds.core.ShardedFileTemplate(
        data_dir=job.out, dataset_name=records.NAME, filetype_suffix="array_record"
    )
    splits = []
    for split in records.SPLITS:
        mine = [shard for shard in shards if shard["split"] == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard["records"] for shard in mine],
                num_bytes=sum(shard["bytes"] for shard in mine),
                filename_template=template.replace(split=split),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=job.out,
        features=features,
        split_infos=splits,
        version=VERSION,
        filename_template=template,
        check_data=False,
        description="Pictures prepared for training; manifest.json says how.",
    )


def check(out: pathlib.Path, manifest: dict[str, Any]) -> list[str]:
    """The names of shards whose content is not what the manifest says: all bytes are read."""
    records.check_shards(out, manifest)
    return [s["name"] for s in manifest["shards"] if digest(out / s["name"]) != s["sha256"]]
