"""Checkpoints that were spoilt on disk: the newest sound one is taken, and a good one is never lost.

Whatever is done to the files of step 4, one of two things must come back: the state of step 4, bit for
bit, because nothing that matters was hit; or that of step 2, with step 4 set aside and the reason with
it. Never other numbers, and never a traceback.
"""

import json
import os
import pathlib
import random
import shutil

import jax
import pytest
import training_fake as fake
import training_tiny as tiny

from dit.training import checkpoint as checkpoints
from dit.training import loop, sealed
from dit.training.checkpoint import Checkpoints
from dit.training.logging import read_metrics
from dit.training.workdir import write_config
from dit.types import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Orbax's tasks
]
CONFIG = {"schedule": {"name": "constant"}, "optimizer": {"lr": 0.1}, "steps": 10}
FLIPS, SEED = 50, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir with checkpoints at steps 2 and 4, and what they hold."""
    s = tiny.setup()
    s.workdir = tmp_path_factory.mktemp("run")
    s.target = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        s.abstract,
        s.shardings,
    )
    writer = Checkpoints(s.workdir, CONFIG)
    s.states, state = {}, s.init(s.key)
    for step in (2, 4):
        state = state.replace(
            step=state.step + 2, params=jax.tree.map(lambda x: x + 1, state.params)
        )
        writer.save(step, state, {"position": 16 * step, "fingerprint": "tiny"})
        s.states[step] = jax.device_get(state)
    writer.close()
    s.files = sorted(f.relative_to(s.workdir) for f in s.workdir.rglob("4/**/*") if f.is_file())
    return s


@pytest.fixture
def copy(made, tmp_path):
    """``copy()``: the workdir again, to be spoilt."""

    def again():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return pathlib.Path(shutil.copytree(made.workdir, tmp_path / "run"))

    return again


def restored(made, run):
    """The step that came back, after checking every bit, and the reason if it is not the latest."""
    reader = Checkpoints(run, CONFIG)
    state, data = reader.restore(made.target)
    reader.close()
    step = int(state.step)
    assert tiny.trees_equal(jax.device_get(state), made.states[step])
    assert data == {"position": 16 * step, "fingerprint": "tiny"}
    kept = checkpoints.steps(run)
    assert kept == ([2, 4] if step == 4 else [2])
    return step, None if step == 4 else (run / "damaged" / "4-0" / "reason.txt").read_text()


def tally(outcomes):
    """How often step 2 was taken for step 4, and the reasons, the most frequent first."""
    reasons = [reason.split(":")[0].strip() for step, reason in outcomes if step == 2]
    common = sorted(set(reasons), key=reasons.count, reverse=True)[:3]
    sound = len(outcomes) - len(reasons)
    return f"{len(reasons)} found, step 2 taken; {sound} without harm. Reasons: {'; '.join(common)}"


def test_fifty_bit_flips(made, copy, note):
    rng, outcomes = random.Random(SEED), []
    sizes = [(made.workdir / f).stat().st_size for f in made.files]
    for _ in range(FLIPS):
        run = copy()
        (file,) = rng.choices(made.files, sizes)  # every bit of the checkpoint is as likely
        raw = bytearray((run / file).read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (run / file).write_bytes(raw)
        outcomes.append(restored(made, run))
    assert {step for step, _ in outcomes} == {2, 4}
    note(f"{FLIPS} bit flips", "anywhere in a checkpoint", tally(outcomes))


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def delete(file):
    file.unlink()


def flip_a_bit(file):
    """The first one of the file: small files come to their turn too."""
    raw = bytearray(file.read_bytes())
    raw[0] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("spoil", [truncate, empty, delete, flip_a_bit], ids=lambda f: f.__name__)
def test_every_file_in_turn(made, copy, note, spoil):
    outcomes = []
    for file in made.files:
        run = copy()
        if spoil is flip_a_bit and not (run / file).stat().st_size:
            continue
        spoil(run / file)
        outcomes.append(restored(made, run))
    assert {step for step, _ in outcomes} == {2, 4}  # some files say what others say too
    names = {"truncate": "truncated", "empty": "emptied", "delete": "deleted"}
    what = names.get(spoil.__name__, "a flipped bit in every file")
    note(f"{what}, each in turn", f"{len(made.files)} files of a checkpoint", tally(outcomes))


@pytest.mark.parametrize("spoil", [truncate, empty, delete], ids=lambda f: f.__name__)
def test_every_folder_in_turn(made, copy, note, spoil):
    """All files of a folder at once, which is what a lost disk or a stopped copy looks like."""
    outcomes = []
    for folder in sorted({f.parent for f in made.files}):
        run = copy()
        for file in (run / folder).rglob("*"):
            if file.is_file():
                spoil(file)
        outcomes.append(restored(made, run))
    note(f"{spoil.__name__} all files", "each folder of a checkpoint", tally(outcomes))


JUNK = {
    "files": lambda root: [
        (root / n).write_text("x") for n in ("notes.txt", "5x", "-1", "٣", "4 ")
    ],
    "a file named as a step": lambda root: (root / "6").write_text("x"),
    "links to nowhere and in circles": lambda root: [
        (root / "6").symlink_to("nowhere"),
        (root / "7").symlink_to("7"),
        (root / "4" / "loop").symlink_to(root, target_is_directory=True),
    ],
    "an empty step": lambda root: (root / "6").mkdir(),
    "a step of rubbish": lambda root: [
        (root / "6" / name).mkdir(parents=True) for name in ("state", "data", "meta")
    ],
    "half a write": lambda root: shutil.copytree(root / "4", root / "6.orbax-checkpoint-tmp"),
    "a copy under a later number": lambda root: shutil.copytree(root / "4", root / "9"),
    "a step with zeros before it": lambda root: shutil.copytree(root / "2", root / "0008"),
    "a step of 200 digits": lambda root: (root / ("9" * 200)).mkdir(),
    "a checkpoint of one file": lambda root: shutil.copy(root / "4/_CHECKPOINT_METADATA", root),
}


@pytest.mark.parametrize("junk", JUNK, ids=lambda name: name.replace(" ", "-"))
def test_junk_beside_the_checkpoints(made, copy, note, junk):
    """It is passed over or set aside, the latest checkpoint comes back, and the next can be saved."""
    run = copy()
    JUNK[junk](run / "checkpoints")
    writer = Checkpoints(run, CONFIG, keep=2)
    state, data = writer.restore(made.target)
    assert int(state.step) == 4
    assert tiny.trees_equal(jax.device_get(state), made.states[4])
    for step in (6, 7):
        writer.save(step, state, data)
    writer.close()
    assert checkpoints.steps(run) == [6, 7]
    aside = [f.name for f in run.glob("damaged/*")] + [f.name for f in run.rglob("junk-*")]
    note("junk", f"{junk} among the checkpoints", f"step 4 taken; {len(aside)} set aside")


def test_a_good_checkpoint_is_never_rotated_out_for_a_bad_one(made, copy, note):
    run = copy()
    for _ in range(3):  # each time the latest one is found to be bad, and written again
        for file in run.rglob("4/state/**/d/*"):
            truncate(file)
        writer = Checkpoints(run, CONFIG, keep=2)
        state, data = writer.restore(made.target)
        assert int(state.step) == 2
        writer.save(4, jax.device_put(made.states[4]), {**data, "position": 64})
        writer.close()
        assert checkpoints.steps(run) == [2, 4]
    note(
        "a truncated file",
        "the latest checkpoint, three times",
        "step 2 stays, and is gone on from",
    )


def forged(run, change, seal):
    """Change the saved position in the data of step 4, and seal it anew as who knows how may do."""
    data_file = run / "checkpoints/4/data/metadata"
    meta_file = run / "checkpoints/4/meta/metadata"
    data, meta = json.loads(data_file.read_text()), json.loads(meta_file.read_text())
    data.update(change)
    if seal:
        meta["seal"] = sealed.seal(meta, data)
    data_file.write_text(json.dumps(data))
    meta_file.write_text(json.dumps(meta))


def test_a_forged_position_without_its_seal_is_damage(made, copy, note):
    outcomes = []
    for change in ({"position": 80}, {"position": -1}, {"fingerprint": "other"}, {"more": 1}):
        run = copy()
        forged(run, change, seal=False)
        outcomes.append(restored(made, run))
    note("forged iterator state", "the position saved beside step 4", tally(outcomes))


@pytest.mark.parametrize(
    "change",
    [{"position": -16}, {"position": 2**62}, {"position": "64"}, {"fingerprint": "../../other"}],
    ids=["negative", "past-the-end", "text", "other-data"],
)
def test_a_forged_position_with_a_seal_is_refused(tmp_path, note, change):
    """Through the loop, as a run would meet it."""

    def train(steps):
        experiment = fake.Experiment(tiny, {"steps": steps, "checkpoint": {"every": 4}})
        return loop.train(
            experiment,
            tmp_path,
            batches=tiny.batches(),
            devices=jax.devices()[:1],
            progress=False,
        )

    train(4)
    forged(tmp_path, change, seal=True)
    with pytest.raises(UserError) as error:
        train(8)
    assert checkpoints.steps(tmp_path) == [4]
    note("forged iterator state, sealed", f"{change}", str(error.value))


def test_a_spoilt_config_file_is_written_anew_from_the_same_command(made, copy, note):
    for text in ("", '{"steps": 1', "[]", "\x00" * 40):
        run = copy()
        (run / "config.json").write_text(text)
        write_config(run, CONFIG)
        assert json.loads((run / "config.json").read_text()) == CONFIG
    run = copy()
    with pytest.raises(UserError, match=r"optimizer\.lr"):  # the checkpoints still know
        Checkpoints(run, {**CONFIG, "optimizer": {"lr": 1.0}}).restore(made.target)
    note("emptied, truncated, junk", "config.json", "written anew; the checkpoints hold it too")


def test_a_spoilt_log_loses_only_the_spoilt_lines(tmp_path, note):
    good = [{"step": step, "loss": 1.0} for step in range(1, 5)]
    text = [json.dumps(row).encode() for row in good]
    bad = [b"\xff\xfe", b"5", b"{}", b'{"step": "x"}', b'{"step": 2, "lo', b"9" * 5000]
    mixed = [line for pair in zip(text, bad[:4], strict=True) for line in pair] + bad[4:]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(mixed))
    assert read_metrics(tmp_path) == good
    note("junk between the lines", "metrics.jsonl", "the sound lines are kept")
