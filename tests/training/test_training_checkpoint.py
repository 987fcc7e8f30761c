"""Checkpoints: whole, checked bit for bit, and refused with a reason where they do not fit."""

import copy
import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_tiny as tiny

from dit import experiment
from dit.config import builder, keywords
from dit.parallel.fingerprints import fingerprints
from dit.training import checkpoint as checkpoints
from dit.training import workdir as workdirs
from dit.types import OutsideError, UserError

CONFIG = {
    "schedule": {"name": "constant"},
    "optimizer": {"lr": 0.1},
    "steps": 10,
    "log": {"every": 5},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir with checkpoints at steps 2 and 4, and what they hold."""
    s = tiny.setup()
    s.workdir = tmp_path_factory.mktemp("run")
    s.target = described(s)
    writer = checkpoints.Checkpoints(s.workdir, CONFIG)
    s.states, state = {}, s.init(s.key)
    for step in (2, 4):
        state, _ = tiny.run(s, 2, start=step - 2, state=state)
        writer.save(step, state, {"position": 16 * step, "fingerprint": "tiny"})
        s.states[step] = jax.device_get(state)  # the next steps consume the state being written
    writer.close()
    return s


def described(s):
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        s.abstract,
        s.shardings,
    )


@pytest.fixture
def run(made, tmp_path):
    """A copy of the workdir that a test may spoil."""
    return pathlib.Path(shutil.copytree(made.workdir, tmp_path / "run"))


def restore(made, run, config=CONFIG):
    reader = checkpoints.Checkpoints(run, config)
    try:
        return reader.restore(made.target)
    finally:
        reader.close()


def test_what_is_read_is_what_was_written(made, run):
    state, data = restore(made, run)
    assert tiny.trees_equal(jax.device_get(state), made.states[4])
    assert data == {"position": 64, "fingerprint": "tiny"}
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(made.target), strict=True):
        assert x.sharding == y.sharding


def test_a_checkpoint_reads_on_another_mesh(made, run):
    s = tiny.setup(devices=8, sizes={"fsdp": 8})
    reader = checkpoints.Checkpoints(run, CONFIG)
    state, _ = reader.restore(described(s))
    reader.close()
    assert tiny.trees_equal(jax.device_get(state), made.states[4])
    kernel = state.params["in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_a_fresh_directory_holds_nothing(made, tmp_path):
    assert restore(made, tmp_path) is None


def data_files(run, step):
    return [f for f in (run / "checkpoints" / str(step)).rglob("*") if "/d/" in str(f)]


def flip_bits_of_data(run, step):
    for file in data_files(run, step):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 0x10
        file.write_bytes(bytes(raw))


def change_one_value(run, step):
    """What a flip that the file format does not notice looks like: bits and fingerprint disagree."""
    file = run / "checkpoints" / str(step) / "meta" / "metadata"
    meta = json.loads(file.read_text())
    for array in meta["arrays"].values():
        array["bits"] = f"{int(array['bits'], 16) ^ 1:016x}"
    file.write_text(json.dumps(meta))


def truncate_data(run, step):
    for file in data_files(run, step):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_data(run, step):
    for file in data_files(run, step):
        file.unlink()


def misname_array(run, step):
    file = run / "checkpoints" / str(step) / "state" / "_METADATA"
    text = file.read_text()
    assert '"key": "kernel"' in text
    file.write_text(text.replace('"key": "kernel"', '"key": "kernem"'))


def truncate_meta(run, step):
    file = run / "checkpoints" / str(step) / "meta" / "metadata"
    file.write_text(file.read_text()[:200])


def remove_meta(run, step):
    shutil.rmtree(run / "checkpoints" / str(step) / "meta")


def remove_position(run, step):
    shutil.rmtree(run / "checkpoints" / str(step) / "data")


DAMAGES = [
    flip_bits_of_data,
    change_one_value,
    truncate_data,
    remove_data,
    misname_array,
    truncate_meta,
    remove_meta,
    remove_position,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(made, run, damage):
    damage(run, 4)
    with pytest.raises(UserError, match="damaged"):
        checkpoints.restore_params(run, made.target.params)
    state, data = restore(made, run)
    assert tiny.trees_equal(jax.device_get(state), made.states[2])
    assert data["position"] == 32
    (aside,) = (run / "damaged").iterdir()
    assert aside.name == "4-0"
    assert (aside / "reason.txt").read_text().strip()
    assert checkpoints.steps(run) == [2]


def test_when_none_is_sound_nothing_is_lost_and_nothing_starts(made, run):
    for step in (2, 4):
        flip_bits_of_data(run, step)
    for _ in range(2):  # the second time, too: not a fresh start in silence
        with pytest.raises(UserError, match="no intact checkpoint"):
            restore(made, run)
    assert sorted(p.name for p in (run / "damaged").iterdir()) == ["2-0", "4-0"]


@pytest.mark.parametrize("which", ["params", "ema_10", "ema_100"])
def test_parameters_are_read_alone(made, run, which):
    abstract = jax.eval_shape(tiny.init_params, made.key)
    got = checkpoints.restore_params(run, abstract, which=which, step=2)
    state = made.states[2]
    want = state.params if which == "params" else state.ema[which]
    assert tiny.trees_equal(jax.device_get(got.params), want)
    assert (got.step, got.which) == (2, which)
    taken = checkpoints.taken_from(jax.device_put(state), which)
    assert taken.fingerprint == got.fingerprint
    assert len(got.fingerprint) == 12


def test_by_default_the_longest_average_of_the_latest_step(made, run):
    got = checkpoints.restore_params(run, made.abstract.params)
    assert (got.step, got.which) == (4, "ema_100")
    other = checkpoints.restore_params(run, made.abstract.params, which="params")
    assert other.fingerprint != got.fingerprint


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"which": "ema_11"}, "did you mean 'ema_10'"), ({"step": 3}, r"there are \[2, 4\]")],
)
def test_a_name_or_step_that_is_not_there(made, run, kwargs, message):
    with pytest.raises(UserError, match=message):
        checkpoints.restore_params(run, made.abstract.params, **kwargs)


def test_an_empty_directory_has_no_checkpoint(made, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.restore_params(tmp_path, made.abstract.params)


def test_another_model_is_refused_by_the_names_of_its_arrays(made, run):
    wide = {**made.target.params, "in": {"kernel": jax.ShapeDtypeStruct((16, 99), np.float32)}}
    with pytest.raises(UserError, match=r"in/bias.*in/kernel.*99"):
        checkpoints.restore_params(run, wide, which="params")
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), made.abstract.params)
    with pytest.raises(UserError, match="bfloat16"):  # Orbax would cast it without a word
        checkpoints.restore_params(run, half, which="params")
    reader = checkpoints.Checkpoints(run, CONFIG)
    with pytest.raises(UserError, match="in/kernel"):
        reader.restore(made.target.replace(params=wide))
    reader.close()
    assert checkpoints.steps(run) == [2, 4]  # a good checkpoint is not set aside for that


def test_another_config_is_refused_with_the_keys_that_differ(made, run):
    with pytest.raises(UserError, match=r"optimizer.lr: 0.1 -> 0.2"):
        restore(made, run, {**CONFIG, "optimizer": {"lr": 0.2}})
    assert restore(made, run, {**CONFIG, "log": {"every": 1}, "steps": 99}) is not None
    assert checkpoints.latest_config(run) == CONFIG


def test_only_the_latest_are_kept(made, tmp_path):
    writer = checkpoints.Checkpoints(tmp_path, CONFIG, keep=2)
    for step in range(1, 5):
        writer.save(step, jax.device_put(made.states[2]), {"position": 0})
    writer.close()
    assert checkpoints.steps(tmp_path) == [3, 4]


def test_a_write_that_fails_is_told(made, tmp_path, monkeypatch):
    writer = checkpoints.Checkpoints(tmp_path, CONFIG)
    manager = writer._manager

    def full():
        raise OSError("No space left on device")

    monkeypatch.setattr(manager, "check_for_errors", full)
    with pytest.raises(UserError, match=r"No space left.*none is on disk"):
        writer.check()


@pytest.mark.parametrize("when", ["at the next save", "at the end"])
def test_a_checkpoint_that_is_not_there_after_its_write_is_told(made, tmp_path, when):
    """Whatever the cause: no run ends well with nothing on disk."""
    writer = checkpoints.Checkpoints(tmp_path, CONFIG)
    writer.save(2, jax.device_put(made.states[2]), {"position": 0})
    writer._manager.wait_until_finished()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    state = jax.device_put(made.states[4])
    end = {"at the next save": lambda: writer.save(4, state, {}), "at the end": writer.close}
    with pytest.raises(UserError, match="it was written, and there is no"):
        end[when]()


def test_every_bit_counts():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    whole = fingerprints({"x": jnp.asarray(x)})["x"]
    assert whole == fingerprints({"x": jnp.asarray(x)})["x"]
    seen = {whole}
    for word, bit in [(0, 0), (5, 31), (23, 12), (11, 1)]:
        raw = x.copy()
        raw.reshape(-1).view(np.uint32)[word] ^= np.uint32(1 << bit)
        seen.add(fingerprints({"x": jnp.asarray(raw)})["x"])
    swapped = x.copy()
    swapped[0, 0, 1], swapped[0, 0, 2] = x[0, 0, 2], x[0, 0, 1]
    seen.add(fingerprints({"x": jnp.asarray(swapped)})["x"])
    assert len(seen) == 6
    mesh = tiny.setup(devices=2, bare=True).mesh
    spread = jax.device_put(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "data"))
    )
    assert fingerprints({"x": spread})["x"] == whole


@pytest.mark.parametrize("dtype", ["bfloat16", "bool", "int32", "int8", "float16", "uint32"])
def test_every_dtype_has_a_fingerprint(dtype):
    a, b = jnp.zeros(8, dtype), jnp.zeros(8, dtype).at[3].set(1)
    assert fingerprints([a])["0"] != fingerprints([b])["0"]


def test_a_workdir_is_for_one_job(tmp_path):
    with (
        workdirs.lock(tmp_path),
        pytest.raises(OutsideError, match="in use by another job"),
        workdirs.lock(tmp_path),
    ):
        pass
    with workdirs.lock(tmp_path):
        pass


def test_the_steps_are_free_only_where_the_schedule_does_not_need_them():
    cosine = {**CONFIG, "schedule": {"name": "warmup_cosine", "warmup": 2}}
    with pytest.raises(UserError, match="steps: 10 -> 11"):
        workdirs.check_same(cosine, {**cosine, "steps": 11}, "x")
    assert workdirs.check_same(CONFIG, {**CONFIG, "steps": 11}, "x") == {"steps": [10, 11]}
    with pytest.raises(UserError, match=r"model.width: '\(not there\)' -> 3"):
        workdirs.check_same(CONFIG, {**CONFIG, "model": {"width": 3}}, "x")


COMPLETE = experiment.load_config("configs/digits.py", {"scores.every": 1}).to_dict()


@pytest.mark.parametrize("key", sorted(workdirs.differences({}, COMPLETE)))
def test_every_key_of_a_config_is_identity_or_operational(key):
    """From the table: each key of a complete config is changed alone."""
    *parents, last = key.split(".")
    changed = copy.deepcopy(COMPLETE)
    node = functools.reduce(dict.__getitem__, parents, changed)
    node[last] = "another"
    changes = workdirs.differences(COMPLETE, changed)
    assert [*changes] == [key]
    free = any(key == k or key.startswith(f"{k}.") for k in workdirs.OPERATIONAL)
    if free:
        assert workdirs.check_same(COMPLETE, changed, "x") == changes
        return
    with pytest.raises(UserError, match=re.escape(f"{key}: ")) as caught:
        workdirs.check_same(COMPLETE, changed, "x")
    assert ("--new-lr" in str(caught.value)) == (key == "optimizer.lr")
    assert workdirs.check_same(COMPLETE, changed, "x", allowed=[key]) == changes


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_run_of_before_levels_loads_and_goes_on(per_frame):
    """Its config says ``per_frame``, and nothing of the keywords that came later."""
    level = "frame" if per_frame else "sample"
    now = {**COMPLETE, "objective": {**COMPLETE["objective"], "level": level}}
    before = {k: v for k, v in copy.deepcopy(now).items() if k != "init_from"}
    before["objective"] = {"name": "denoise", "condition_dropout": 0.1, "per_frame": per_frame}
    before["objective"]["strata"] = None
    for later in ("pooled_dim", "second_time", "guidance_input", "concat_channels"):
        del before["model"][later]
    assert workdirs.check_same(before, now, "x") == {}
    example = {"shape": [1, 8, 8, 1], "classes": 10}
    assert experiment.build(before, example).level == level
    other = {**now, "objective": {**now["objective"], "level": "token"}}
    with pytest.raises(UserError, match=r"objective\.level"):
        workdirs.check_same(before, other, "x")


def test_the_table_names_only_keys_that_there_are():
    known = [*workdirs.differences({}, COMPLETE)]
    known += [f"codec.{key}" for key in keywords(builder("codecs", "autoencoder_kl"))]
    known += [f"text.encoders.{key}" for key in keywords(builder("text.pretrained", "clip"))]
    for entry in workdirs.OPERATIONAL:
        assert any(key == entry or key.startswith(f"{entry}.") for key in known), entry
    assert not workdirs.is_operational("logging", COMPLETE)
    assert not workdirs.is_operational("model.rematerialise", COMPLETE)


def test_changes_are_kept_with_the_checkpoints_that_follow(made, run):
    changed = {**CONFIG, "log": {"every": 1}, "optimizer": {"lr": 0.05}}
    with pytest.raises(UserError, match="--new-lr"):
        restore(made, run, changed)
    writer = checkpoints.Checkpoints(run, changed, allowed=["optimizer.lr"])
    state, data = writer.restore(made.target)
    assert writer.changes == {"log.every": [5, 1], "optimizer.lr": [0.1, 0.05]}
    writer.save(6, state.replace(step=state.step + 2), data)
    writer.close()
    assert checkpoints.read_meta(run)["changes"] == [{"step": 4, **writer.changes}]
    assert restore(made, run, changed) is not None  # now it is the run's own


def test_a_config_file_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        workdirs.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 1')
    with pytest.raises(UserError, match="damaged"):
        workdirs.read_config(tmp_path)


def test_the_config_of_a_run_that_left_nothing_may_change(tmp_path):
    other = {**CONFIG, "optimizer": {"lr": 9.0}}
    workdirs.write_config(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").touch()
    workdirs.write_config(tmp_path, other)
    assert workdirs.read_config(tmp_path) == other
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    with pytest.raises(UserError, match=r"optimizer.lr: 9.0 -> 0.1"):
        workdirs.write_config(tmp_path, CONFIG)
