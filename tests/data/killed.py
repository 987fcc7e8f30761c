"""``killed.py OUT ARGV...``: dit prepare with these arguments, whole, killed ten times, and by two.

Into ``OUT/whole``, ``OUT/killed`` and ``OUT/shared``; the last line printed tells the kills. Each run is
a fork of this process, which has imported all that they need and started no backend of JAX.
"""

import json
import math
import os
import random
import signal
import sys
import time
import traceback

import array_record.python.array_record_module  # noqa: F401
import tensorflow_datasets  # noqa: F401
import tokenizers  # noqa: F401

import dit.codecs.autoencoder_kl
import dit.text.pretrained.clip  # noqa: F401
from dit import prepare
from dit.data.prepare.inputs import folder

KILLS = 10
folder.FILES = 20  # so that there are several parts


def forked(argv):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = prepare.main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid):
    """The exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def made(work):
    """How many files of each stage are whole."""
    names = os.listdir(work) if os.path.isdir(work) else []
    encoded = sum(name.endswith(".encoded.json") for name in names)
    every = sum(name.startswith("part-") and name.endswith(".json") for name in names)
    shards = sum(name.startswith("records-") and name.endswith(".json") for name in names)
    return {"parts": every - encoded, "encoded": encoded, "shards": shards}


def main(out, *argv):
    assert ended(forked([*argv, f"--out={out}/whole"])) == 0
    rng, work, kills = random.Random(0), f"{out}/killed/.work", []
    parts = math.ceil(len(os.listdir(argv[0].partition("=")[2])) / 2 / folder.FILES)
    for far in sorted(rng.sample(range(2 * parts), KILLS)):
        pid = forked([*argv, f"--out={out}/killed"])
        while sum(made(work).values()) < far:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it has ended by itself"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        kills.append(made(work))
    assert ended(forked([*argv, f"--out={out}/killed"])) == 0
    two = [forked([*argv, f"--out={out}/shared", f"--share={i}/2"]) for i in (1, 0)]
    assert [ended(pid) for pid in two] == [0, 0]
    print(json.dumps(kills))


if __name__ == "__main__":
    main(*sys.argv[1:])
