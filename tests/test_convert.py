"""``dit convert``: workdirs of files, files of workdirs, in every format; what is refused, by name."""

import json
import resource
import shutil
import sys

import jax
import measured
import numpy as np
import pytest
import saved_run
from sparse_files import write_sparse
from weights_files import write_safetensors

from dit import config, convert, draw, models, sample, train
from dit.interop import files, folder, mapping, writing
from dit.interop.views import Region
from dit.parallel.fingerprints import fingerprints
from dit.parallel.mesh import make_mesh
from dit.parallel.rules import shardings
from dit.training import slicewise, weights
from dit.training.checkpoint import read_meta
from dit.types import UserError

DATA = {"name": "noise", "shape": (1, 8, 8, 4), "num_classes": 3}
MODEL = {"name": "dit", "depth": 2, "width": 16, "heads": 2, "patch": 2, "learn_sigma": True}
RUN = {
    "model": MODEL,
    "codec": {"name": "latent", "scale": 0.5},
    "data": DATA,
    "path": {"name": "ddpm"},
    "prediction": {"name": "eps"},
    "samples": {"num": 2, "solver": "ddim", "grid": "ddpm", "steps": 2},
}
CODEC = ("--config.codec.name=latent", "--config.codec.scale=0.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's workdir, and a file of its config."""
    place = tmp_path_factory.mktemp("run")
    saved_run.save(place / "run", DATA, **{k: v for k, v in RUN.items() if k != "data"})
    text = f"def get_config():\n    return {saved_run.TINY | RUN!r}\n"
    (place / "config.py").write_text(text)
    return place


def bits(workdir, prefix="params"):
    """The fingerprint of each parameter."""
    arrays = read_meta(workdir)["arrays"]
    return {n.removeprefix(prefix): x["bits"] for n, x in arrays.items() if n.startswith(prefix)}


def out(run, to, *more, name=None):
    place = run / (name or to)
    convert.main([f"--to={to}", f"--workdir={run / 'run'}", f"--out={place}", *more])
    return place


@pytest.fixture(scope="module")
def written(run):
    """The run's average in every format that holds it; the second in parts."""
    made = {"dit_original": out(run, "dit_original", name="w/original.safetensors")}
    made["diffusers_dit"] = out(run, "diffusers_dit", "--largest=0.00002")
    return made


def test_a_directory_in_parts_has_an_index_and_a_config(written):
    place = written["diffusers_dit"]
    index = json.loads((place / "diffusion_pytorch_model.safetensors.index.json").read_text())
    parts = sorted(p.name for p in place.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == parts
    assert len(parts) > 2
    sizes = [(place / name).stat().st_size for name in parts]
    assert max(sizes) < 20_000 + 2_000  # and the header
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in folder.opened(str(place))[0].values()
    )
    settings = json.loads((place / "config.json").read_text())
    assert settings["num_layers"] == 2
    assert settings["out_channels"] == 8
    assert not list(place.glob("*.tmp"))


@pytest.mark.first
@pytest.mark.parametrize("name", ["dit_original", "diffusers_dit"])
def test_what_is_written_is_read_to_the_bit_and_drawn_from(run, written, name, tmp_path):
    told = [f"--config={run / 'config.py'}"] if name == "dit_original" else CODEC
    back = tmp_path / "back"
    convert.main([f"--from={name}", f"--weights={written[name]}", f"--workdir={back}", *told])
    assert bits(back) == bits(run / "run", "ema/ema_10")
    meta = read_meta(back)
    assert meta["example"] == {"shape": [1, 8, 8, 4], "classes": 3}
    assert meta["config"]["codec"] == {"name": "latent", "scale": 0.5, "shift": 0.0}
    assert meta["config"]["model"]["quirks"] == (None if told[1:] == [] else "diffusers")
    if name == "dit_original":
        drawn = {}
        for place in (back, run / "run"):
            sample.main([f"--workdir={place}", "--labels=0,2", f"--out={tmp_path / 'x.npz'}"])
            drawn[place] = np.load(tmp_path / "x.npz")["samples"]
        np.testing.assert_array_equal(*drawn.values())


def test_a_converted_workdir_begins_a_run_and_is_none(run, written, tmp_path):
    back = tmp_path / "back"
    asked = [f"--config={run / 'config.py'}", f"--workdir={back}"]
    convert.main(["--from=dit_original", f"--weights={written['dit_original']}", *asked])
    with pytest.raises(UserError, match=r"holds parameters alone.*init_from\.path"):
        train.main(asked)
    experiment = draw.load_experiment(str(back))
    with pytest.raises(UserError, match="there is a run in"):
        convert.main(["--from=dit_original", f"--weights={written['dit_original']}", *asked])
    with pytest.raises(UserError, match="there is something at"):
        out(run, "dit_original", name="w/original.safetensors")
    assert experiment.num_classes == 3


def test_each_device_gets_its_slice(run, written):
    """Layers, heads in parts and all: on eight devices as on one."""
    experiment = draw.load_experiment(str(run / "run"))
    weights, shape = config.resolve("interop", "diffusers_dit"), experiment.shape
    state, model = folder.opened(str(written["diffusers_dit"]))[0], experiment.model
    assert all(isinstance(x, files.Stored) for x in state.values())
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, jax.devices()[:8])
    abstract = models.abstract(model, shape)
    where = shardings(abstract, models.logical_axes(model, shape), mesh)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where
    )
    found, whole = (weights.to_params(state, model, shape, t) for t in (target, None))
    assert found["blocks"]["attention"]["qkv"]["kernel"].addressable_shards[0].data.shape == (
        *(2, 4, 3, 1),
        8,
    )
    for x, y, s in zip(*map(jax.tree.leaves, (found, whole, where)), strict=True):
        assert x.sharding == s
        np.testing.assert_array_equal(x, y)
    entries = weights.table(model, ())
    for path, group in mapping.by_path(entries).items():
        leaf = whole
        for key in path:
            leaf = leaf[key]
        parts = list(mapping.parts(state, group, leaf))
        assert len(parts) == (2 if path[0] == "blocks" else 1)
        np.testing.assert_array_equal(np.concatenate(parts), leaf)


def spoilt(state, how):
    state = {name: np.asarray(x) for name, x in state.items()}
    if how == "missing":
        del state["blocks.1.mlp.fc1.bias"]
    elif how == "not used":
        state["blocks.2.mlp.fc1.bias"] = np.zeros(3, np.float32)
    elif how == "turned":
        state["blocks.1.mlp.fc1.weight"] = state["blocks.1.mlp.fc1.weight"].T.copy()
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing \['blocks.1.mlp.fc1.bias'\]"),
        ("not used", r"not used \['blocks.2.mlp.fc1.bias'\]"),
        ("turned", r"blocks.1.mlp.fc1.weight has shape \(16, 64\).*blocks/mlp/in/kernel"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(run, written, how, message, tmp_path):
    write_safetensors(tmp_path / "w.safetensors", spoilt(files.read(written["dit_original"]), how))
    asked = [f"--weights={tmp_path}/w.safetensors", f"--config={run / 'config.py'}"]
    with pytest.raises(UserError, match=message):
        convert.main(["--from=dit_original", *asked, f"--workdir={tmp_path / 'x'}"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "--from=diffusers_dit --weights={diffusers_dit}",
            "give --config.codec.name=autoencoder_kl",
        ),
        (
            "--from=diffusers_dit --weights={diffusers_dit} --config.codec.name=autoencoder_kl "
            "--config.codec.path={nowhere}",
            "there is nothing at",
        ),
        ("--from=dit_original --weights={dit_original}", "give --config=FILE"),
        ("--from=dit_original --weights={nowhere}", "there is nothing at"),
        ("--from=dit_orignal --weights={dit_original}", "did you mean 'dit_original'"),
        ("--from=diffusers_dit --weights={diffusers_dit} --merge", "--merge is of no effect with"),
        ("--from=diffusers_dit", "--weights is missing"),
        ("--from=diffusers_dit --to=dit_original", "expected one of --from"),
        ("--to=autoencoder_diffusers --out={nowhere}", "got a DiT for weights of a AutoencoderKL"),
        ("--to=dit_original --merge --out={nowhere}", "trained no LoRA"),
        ("--merge --out={nowhere}", "trained no LoRA"),
    ],
)
def test_what_cannot_be_is_refused(run, written, given, message, tmp_path):
    names = {k: str(v) for k, v in written.items()} | {"nowhere": str(tmp_path / "nowhere")}
    workdir = tmp_path / "x" if "--from" in given else run / "run"
    with pytest.raises(UserError, match=message):
        convert.main([*given.format(**names).split(), f"--workdir={workdir}"])
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "nowhere").exists()


def test_an_autoencoder_in_and_out_keeps_its_scale(tmp_path):
    import autoencoder_files as made

    made.save(tmp_path / "vae", "tiny")
    for step in (
        ["--from=autoencoder_diffusers", f"--weights={tmp_path / 'vae'}"],
        ["--to=autoencoder_diffusers", f"--out={tmp_path / 'again'}"],
        ["--to=autoencoder_original", f"--out={tmp_path / 'old.safetensors'}"],
    ):
        convert.main([*step, f"--workdir={tmp_path / 'run'}"])
    before, after = (folder.opened(str(tmp_path / name))[0] for name in ("vae", "again"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (settings["scaling_factor"], settings["shift_factor"]) == (2.0, 0.5)
    assert settings["block_out_channels"] == [8, 8]
    codec = config.resolve("codecs", "autoencoder_kl", path=str(tmp_path / "run"))
    assert codec.encoded_shape((1, 8, 8, 3)) == (1, 4, 4, 4)
    made.save(tmp_path / "flux2", "flux2")
    asked = [f"--weights={tmp_path / 'flux2'}", f"--workdir={tmp_path / 'x'}"]
    with pytest.raises(UserError, match="statistics of their latents"):
        convert.main(["--from=autoencoder_diffusers", *asked])


def test_what_a_checkpoint_holds_is_read_a_layer_at_a_time_and_checked(tmp_path):
    """Written by layers it is read by layers, and no bit may be another than was told of."""
    x = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
    layers = weights.Later(x.shape, x.dtype, lambda: [x[i : i + 1] for i in range(3)])
    calls = iter([[x[0]], [x[0] + 1]])
    liar = weights.Later(x[0].shape, x.dtype, lambda: next(calls))
    named = {"blocks/kernel": layers, "kernel": liar}
    weights.save_params(tmp_path / "run", {}, named, example={}, frozen={})
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named.items()}
    read = slicewise.opened(tmp_path / "run", abstract, {"blocks/kernel"})
    parts = list(read("blocks/kernel"))
    assert [part.shape for part in parts] == [(1, 4, 4)] * 3
    np.testing.assert_array_equal(np.concatenate(parts), x)
    known = slicewise.saved(tmp_path / "run")
    assert known["blocks/kernel"] == fingerprints({"x": x})["x"]
    with pytest.raises(UserError, match="the bits of kernel have changed"):
        list(read("kernel"))
    (whole,) = slicewise.opened(tmp_path / "run", abstract, ())("blocks/kernel")
    np.testing.assert_array_equal(whole, x)
    with pytest.raises(UserError, match="holds other arrays than this model: params/kernel"):
        slicewise.opened(tmp_path / "run", {"blocks/kernel": abstract["blocks/kernel"]}, ())


def test_storage_that_takes_no_more_leaves_nothing(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)
    later, usual = weights.Later(x.shape, x.dtype, lambda: [x]), resource.RLIMIT_FSIZE
    soft, hard = resource.getrlimit(usual)
    resource.setrlimit(usual, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"could not be written: File too large.*make room"):
            weights.save_params(tmp_path / "run", {}, {"w": later}, example={}, frozen={})
    finally:
        resource.setrlimit(usual, (soft, hard))
    assert not list((tmp_path / "run").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 399_999))
    how = {"dtype": np.float32, "largest": 10**9}
    with pytest.raises(UserError, match=r"0.0004 GB are to be written .*; make room"):
        writing.write(str(tmp_path / "a/b"), "model", {"w": x.shape}, [Region("w", x)], **how)
    assert not (tmp_path / "a").exists()


def test_tensors_are_written_in_parts_and_must_be_whole(tmp_path):
    x = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    parts = [Region("x", x[:, 2:], 1, 2), Region("y", x[0]), Region("x", x[:, :2], 1, 0)]
    how = {"dtype": np.float32, "largest": 10**9}
    shapes = {"x": x.shape, "y": x[0].shape}
    (file,) = writing.write(str(tmp_path / "w"), "model", shapes, parts, **how)
    state = files.read(file)
    np.testing.assert_array_equal(state["x"], x)
    np.testing.assert_array_equal(state["y"], x[0])
    for wrong, message in ((parts[:2], "too little"), ([Region("y", x[0], 0, 1)], "has no")):
        with pytest.raises(ValueError, match=message):
            writing.write(str(tmp_path / "v"), "model", shapes, wrong, **how)
        assert not list((tmp_path / "v").iterdir())


def test_an_index_that_lacks_a_part_is_told(written, tmp_path):
    shutil.copytree(written["diffusers_dit"], tmp_path / "w")
    file = tmp_path / "w" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = min(index["weight_map"].values())
    index["weight_map"] = {n: x for n, x in index["weight_map"].items() if x != first}
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names \d+ parts of \d+, such as.*00002-of"):
        folder.opened(str(tmp_path / "w"))


CHILD = """
import resource, sys
from dit import convert
for weights, workdir in zip(sys.argv[1::2], sys.argv[2::2]):
    convert.main(["--from=dit_original", f"--weights={weights}", f"--workdir={workdir}",
                  "--config.codec.name=latent"])
    convert.main(["--to=diffusers_dit", f"--workdir={workdir}", f"--out={workdir}/out",
                  "--dtype=bfloat16"])
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_is_needed_for_the_largest_tensor_and_not_for_the_network(tmp_path):
    """Seven layers of 1024: 137 million numbers, 548 MB in float32; a tensor has at most 25."""
    weights = config.resolve("interop", "dit_original")
    for name, depth in (("one", 1), ("all", 7)):
        model = config.resolve(
            "models", "dit", size="L/2", depth=depth, in_channels=4, num_classes=9
        )
        shapes = mapping.layout(weights.table(model, ()), models.abstract(model, (1, 16, 16, 4)))
        shapes = {n: x.shape for n, x in shapes.items()}
        given = weights.fixed(model, (1, 16, 16, 4))
        size = write_sparse(tmp_path / f"{name}.safetensors", shapes, given=given)
    assert size > 260e6
    each = [(tmp_path / f"{n}.safetensors", tmp_path / n) for n in ("one", "all")]
    argv = [str(p) for pair in each for p in pair]
    lines, _ = measured.run(sys.executable, "-c", CHILD, *argv, timeout=600)
    one, seven = (int(line.split()[1]) for line in lines if "peak" in line)
    assert seven < one + 250, lines  # of 460 that are more; it does not grow with the depth
