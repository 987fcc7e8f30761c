"""Hundreds of spoilt and hostile inputs: the run ends, tells of each, and what is good is as it was.

``python tests/data/test_data_prepare_fuzzed.py 10000`` does the same with any number.
"""

import json
import os
import pathlib
import re
import sys
import tempfile
import time

import fuzzed
import measured
import numpy as np
import pytest

from dit.data.sources import records as source_of

ROOT = pathlib.Path(__file__).parent.parent.parent
MEMORY = 2 * 2**30  # bytes that no process may exceed: pictures of up to 2**26 pixels are read
ARGV = (f"--size={fuzzed.SIDE}", "--fields=caption", "--held-out=0.2", "--workers=2")


def prepared(root, out, *argv):
    """What a run leaves in ``broken.jsonl``; and how long it took, and the most memory of a process."""
    run = [sys.executable, "-m", "dit.prepare", f"--source={root}", f"--out={out}", *ARGV, *argv]
    since = time.monotonic()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    _, most = measured.run(*run, env=env)
    broken = [json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines()]
    return broken, time.monotonic() - since, most


def check(root, out, kind, made):
    """What is there after a run; figures of it."""
    argv = ("--frames=4",) if kind == "videos" else ()
    broken, seconds, most = prepared(root / kind, out, *argv)
    assert all(each["name"] and each["reason"] for each in broken)
    address = re.compile("0x[0-9a-f]{6}|/tmp")  # with one, no two runs would say the same
    assert not [each for each in broken if address.search(each["reason"])]
    source = source_of.build(path=str(out))
    found, records = {}, 0
    for split in (source.train, source.held_out):
        for i in range(len(split)):
            example = split[i]
            records += 1
            for text in example["caption"]:
                if text.startswith("good"):
                    assert text not in found
                    found[text] = example["x"]
    assert found.keys() == made.good.keys()
    for text, x in made.good.items():
        np.testing.assert_array_equal(found[text], x if x.ndim == 4 else x[None], text)
    if kind in ("pictures", "videos"):  # of tars and tables, a part may be lost as a whole
        names = {each["name"].partition("#")[0] for each in broken}
        assert len(names) + records == made.count
    assert most < MEMORY
    figures = {"inputs": made.count, "good": len(made.good), "records": records}
    return figures | {"broken": len(broken), "seconds": seconds, "peak_gib": most / 2**30}


@pytest.mark.slow
def test_the_good_are_all_there_and_all_is_told(tmp_path):
    for kind, made in fuzzed.write(tmp_path / "in", 400).items():
        check(tmp_path / "in", tmp_path / kind, kind, made)
    outside = {p.name for p in tmp_path.iterdir()}
    assert outside == {"in", *fuzzed.SHARES}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        for kind, made in fuzzed.write(
            here / "in", int(sys.argv[1]), *map(int, sys.argv[2:])
        ).items():
            print(kind, json.dumps(check(here / "in", here / kind, kind, made)), flush=True)
