"""Low-rank adaptation: of every kind of kernel, of a run by command, and in the layout of PEFT."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_run
from flax.traverse_util import flatten_dict, unflatten_dict

from dit import carry, config, convert, draw, models, sample, train
from dit.experiment import build
from dit.interop import lora as layouts
from dit.parallel.frozen import place as place_frozen
from dit.parallel.frozen import where
from dit.parallel.mesh import make_mesh, mesh_of
from dit.training import lora
from dit.training.checkpoint import read_meta
from dit.training.lora import LoraSettings
from dit.training.workdir import plain
from dit.types import Cond, UserError

SHAPE = (1, 8, 8, 4)
DATA = {"name": "noise", "shape": SHAPE, "num_classes": 3}
MODEL = {"name": "dit", "depth": 2, "width": 16, "heads": 2, "patch": 2}
RUN = {"model": MODEL, "codec": {"name": "latent", "scale": 0.5}}
NETWORKS = {
    "dit": {"depth": 2, "width": 16, "heads": 2, "num_classes": 3},
    "dit modern": {"depth": 1, "width": 16, "heads": 2, "block": "modern", "context_dim": 6},
    "unet": {"width": 8, "multipliers": (1, 2), "depth": 1, "heads": 2, "norm_groups": 4},
    "autoencoder": {"width": 8, "multipliers": (1, 2), "depth": 1, "norm_groups": 4},
    "wan_vae": {"width": 4, "multipliers": (1, 2), "depth": 1},
}


def adapted(name, targets="*kernel", rank=2):
    """A network, parameters none of which is zero, its LoRA of all kernels, and inputs."""
    model = config.resolve("models", name.split()[0], in_channels=4, **NETWORKS[name])
    draw = np.random.default_rng(0).standard_normal

    def noise(tree):  # drawn by jax, each shape would be compiled
        values = jax.tree.map(lambda x: 0.3 * draw(x.shape, np.float32), tree)
        return jax.device_put(values)

    abstract = models.abstract(model, SHAPE)
    found = lora.build(
        LoraSettings(rank=rank, alpha=3.0, targets=targets),
        abstract,
        models.logical_axes(model, SHAPE),
    )
    x, t, cond = model.example(SHAPE)
    inputs = jax.tree.map(
        lambda a: noise(a) if jnp.issubdtype(a.dtype, jnp.floating) else a, (x, t, cond)
    )
    pairs = jax.eval_shape(found.init, jax.random.key(0))
    return model, noise(abstract), found, noise(pairs), inputs


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "autoencoder", "wan_vae")]


@pytest.mark.parametrize("name", ["dit", "dit modern", *SLOW])
def test_every_kernel_of_a_network_is_adapted_and_merges(name):
    model, params, found, pairs, (x, t, cond) = adapted(name)
    apply = models.apply_fn(model)

    @jax.jit
    def run(params, pairs):
        base = {"network": params, "scale": jnp.float32(found.scale)}

        def out(pairs):
            return apply(lora.join(base, pairs), x, t, cond)

        merged = {
            name: lora.merge(found, name, kernel, pairs)
            for name, kernel in flatten_dict(params, sep="/").items()
        }
        slope = jax.grad(lambda p: jnp.sum(jnp.sin(out(p))))(pairs)
        merged = unflatten_dict(merged, sep="/")
        return out(pairs), apply(merged, x, t, cond), apply(params, x, t, cond), slope

    unmerged, merged, plain, slope = jax.device_get(run(params, pairs))
    np.testing.assert_allclose(unmerged, merged, atol=2e-4 * np.abs(merged).max())
    assert np.abs(merged - plain).max() > 1e-3
    still = [n for n, g in flatten_dict(slope, sep="/").items() if not np.abs(g).max() > 0]
    assert not still
    kernels = [n for n in flatten_dict(params, sep="/") if n.endswith("kernel")]
    assert len(found.pairs) == len(kernels)


def test_it_starts_as_the_frozen_network_to_the_bit():
    model, params, found, _, (x, t, cond) = adapted("dit", targets=())
    assert list(found.pairs) == ["blocks/attention/out", "blocks/attention/qkv"]
    pairs = found.init(jax.random.key(1))
    assert found.axes.keys() == pairs.keys()
    base = {"network": params, "scale": jnp.float32(found.scale)}
    run = jax.jit(models.apply_fn(model))
    np.testing.assert_array_equal(run(lora.join(base, pairs), x, t, cond), run(params, x, t, cond))
    a = pairs["blocks"]["attention"]["qkv"]["lora_a"]
    assert a.shape == (2, 16, 3, 2)  # layers, inputs, query, key and value, rank
    assert 0.2 < float(jnp.abs(a).max()) <= 0.25  # 1 / sqrt(16)


# --- by command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run to begin with, and a file of its config."""
    place = tmp_path_factory.mktemp("lora")
    saved_run.save(place / "base", DATA, **RUN)
    text = f"def get_config():\n    return {saved_run.TINY | RUN | {'data': DATA}!r}\n"
    (place / "config.py").write_text(text)
    return place


def run(place, name, steps, *more):
    workdir = place / name
    train.main(
        [
            *(f"--config={place / 'config.py'}", f"--workdir={workdir}"),
            *(f"--config.steps={steps}", "--config.lora.rank=2", "--config.lora.alpha=4"),
            *("--config.optimizer.lr=0.01", "--config.samples.every=0", "--config.log.every=1"),
            *(f"--config.init_from.path={place / 'base'}", "--config.mesh.fsdp=8"),
            *("--config.ema.half_lives=(1.0,)", *more),
        ]
    )
    return workdir


@pytest.fixture(scope="module")
def trained(place):
    """Four steps of a LoRA over eight devices."""
    return run(place, "lora", 4)


def test_only_its_pairs_are_trained_averaged_and_saved(place, trained):
    meta = read_meta(trained)
    names = [n for n in meta["arrays"] if n.startswith(("params/", "ema/"))]
    assert {n.split("/")[-1] for n in names} == {"lora_a", "lora_b"}
    assert len(names) == 2 * 4  # of two kernels; one average
    state = [n for n in meta["arrays"] if n.startswith("opt_state/") and "blocks/" in n]
    assert {n.split("/")[-1] for n in state} == {"lora_a", "lora_b"}
    assert set(meta["frozen"]) == {"base"}
    experiment = draw.load_experiment(str(trained))
    pairs = flatten_dict(draw.load_params(experiment, str(trained), "params", None).params, sep="/")
    assert all(np.abs(x).max() > 0 for x in pairs.values())  # B has left zero


@pytest.mark.slow
def test_it_goes_on_exactly_and_its_network_may_move_but_not_change(place, trained):
    run(place, "twice", 2)
    moved = place / "moved"
    (place / "base").rename(moved)
    try:
        again = run(place, "twice", 4, f"--config.init_from.path={moved}")
        first, second = (read_meta(w)["arrays"] for w in (trained, again))
        assert first == second
        other = (f"--config.init_from.path={moved}", "--config.init_from.which=params")
        with pytest.raises(UserError, match="other frozen weights of the base"):
            run(place, "twice", 5, *other)
        saved_run.save(place / "base", DATA, **RUN | {"seed": 1})  # another beginning
        for main, out in ((convert.main, "--merge"), (sample.main, "--labels=1")):
            with pytest.raises(UserError, match="are not those that this run"):
                main([out, f"--workdir={trained}", f"--out={place / 'not'}.npz"])
        assert not list(place.glob("not*"))
    finally:
        shutil.rmtree(place / "base", ignore_errors=True)
        moved.rename(place / "base")


def drawn(workdir, out):
    sample.main(
        [f"--workdir={workdir}", "--labels=0,1,2", "--guidance=2", "--seed=3", f"--out={out}"]
    )
    return np.load(out)["samples"]


@pytest.mark.slow
def test_merged_saved_alone_and_read_back_it_draws_the_same(place, trained, tmp_path):
    expected = drawn(trained, tmp_path / "x.npz")
    convert.main(["--merge", f"--workdir={trained}", f"--out={tmp_path / 'merged'}"])
    np.testing.assert_allclose(drawn(tmp_path / "merged", tmp_path / "x.npz"), expected, atol=1e-4)
    assert np.abs(drawn(place / "base", tmp_path / "x.npz") - expected).max() > 1e-3
    for name in ("diffusers_dit", "dit_original"):
        file = tmp_path / name
        convert.main([f"--to={name}", f"--workdir={trained}", f"--out={file}"])
        back = tmp_path / f"{name}_back"
        asked = [f"--weights={file}", f"--base={place / 'base'}", f"--workdir={back}"]
        convert.main([f"--from={name}", *asked])
        np.testing.assert_allclose(drawn(back, tmp_path / "x.npz"), expected, atol=1e-4)
    bits = [
        {n.rpartition("blocks")[2]: x["bits"] for n, x in read_meta(w)["arrays"].items() if p in n}
        for w, p in ((tmp_path / "diffusers_dit_back", "params/"), (trained, "ema/"))
    ]
    assert bits[0] == bits[1]


def test_a_network_that_every_device_held_whole_merges_too(trained):
    found = draw.load_experiment(str(trained))
    config = plain(found.config) | {"mesh": {"fsdp": 8, "whole": "base"}}
    experiment = build(config, found.example)
    spots = where(experiment.frozen, make_mesh({"fsdp": 8}))["base"]
    assert all(spot.is_fully_replicated for spot in jax.tree.leaves(spots))
    assert not carry.merged(experiment).config.mesh.whole


def test_what_cannot_be_is_refused_by_name(place, trained, tmp_path):
    for more, message in (
        (
            ["--config.lora.targets=blokcs/*"],
            "got lora.targets='blokcs/\\*', which is the name of no",
        ),
        (["--config.init_from.path=none"], "give init_from.path"),
        (["--config.init_from.only=blocks/*"], "no init_from.only"),
        (["--config.optimizer.mup_base_width=8"], "muP has no rule for LoRA"),
        (["--config.lora.rank=none"], "no lora.rank"),
        ([f"--config.init_from.path={trained}"], "trained a LoRA, which is no network by itself"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path, "x", 1, f"--config={place / 'config.py'}", *more)
    with pytest.raises(UserError, match=r"lora\.rank: 2 -> 3"):
        run(place, "lora", 5, "--config.lora.rank=3")
    file = tmp_path / "alone"
    convert.main(["--to=diffusers_dit", f"--workdir={trained}", f"--out={file}"])
    with pytest.raises(UserError, match="holds a LoRA; expected --base"):
        convert.main(["--from=diffusers_dit", f"--weights={file}", f"--workdir={tmp_path / 'y'}"])
    for workdir, more, message in (
        (trained, ["--kohya", "--merge"], "got --merge and --kohya"),
        (place / "base", ["--kohya"], "got --kohya, and the run in .* trained no LoRA"),
    ):
        out = [f"--workdir={workdir}", f"--out={tmp_path / 'z'}", *more]
        with pytest.raises(UserError, match=message):
            convert.main(["--to=diffusers_dit", *out])
    asked = [f"--weights={file}", f"--workdir={tmp_path / 'y'}", f"--base={place / 'base'}"]
    with pytest.raises(UserError, match=r"16 tensors of no linear map .*to_k"):
        convert.main(["--from=dit_original", *asked])


def test_files_of_other_ranks_and_factors_and_of_a_part_of_the_maps():
    """What trainers write: no key, alphas beside the pairs, another rank in one map."""
    model = adapted("dit")[0]
    names = carry.names_of(config.resolve("interop", "diffusers_dit"), model, SHAPE)
    draw_ = np.random.default_rng(0)
    state, expected = {}, {}
    for name, rank, alpha in (("to_q", 2, 4.0), ("to_v", 3, 1.5)):
        module = f"transformer_blocks.1.attn1.{name}"
        a, b = (draw_.standard_normal(s).astype(np.float32) for s in ((rank, 16), (16, rank)))
        state |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        state[f"{module}.alpha"] = np.float32(alpha)
        expected[name] = alpha / rank * (b @ a).T
    found = layouts.read(state, {}, names)
    assert (found.rank, found.alpha, found.targets) == (3, 3.0, ("blocks/attention/qkv/kernel",))
    a, b = (found.pairs[f"blocks/attention/qkv/lora_{x}"] for x in "ab")
    product = np.einsum("lisr,lsro->lsio", a, b)
    np.testing.assert_allclose(product[1, 0], expected["to_q"], atol=1e-5)
    np.testing.assert_allclose(product[1, 2], expected["to_v"], atol=1e-5)
    assert not product[0].any()
    assert not product[1, 1].any()
    told = {layouts.METADATA: json.dumps({"transformer.lora_alpha": 8, "transformer.r": 2})}
    one = {n: x for n, x in state.items() if "to_q" in n and "alpha" not in n}
    assert layouts.read(one, told, names).alpha == 8
    assert layouts.read(one, {}, names).alpha == 2
    for changed, message in (
        ({"transformer_blocks.9.attn1.to_q.lora_A.weight": a}, "of no linear map"),
        ({"transformer_blocks.0.attn1.to_q.lora_A.weight": a}, "lacks lora_A or lora_B"),
        ({"transformer_blocks.1.attn1.to_q.lora_B.weight": np.ones((9, 2))}, r"16 outputs"),
    ):
        with pytest.raises(UserError, match=message):
            layouts.read({**one, **changed}, {}, names)


@pytest.mark.torch
def test_diffusers_loader_takes_what_is_written_and_draws_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from diffusers.loaders.peft import PeftAdapterMixin

    class Theirs(diffusers.DiTTransformer2DModel, PeftAdapterMixin):
        pass

    model = {**MODEL, "learn_sigma": True, "quirks": "diffusers"}
    process = {"path": {"name": "ddpm"}, "prediction": {"name": "eps"}}
    whole = {**RUN, "model": model, **process}
    saved_run.save(tmp_path / "base", DATA, **whole)
    part = {"rank": 2, "alpha": 6.0, "targets": ("blocks/*", "embed/*", "final/*")}
    beside = {"lora": part, "init_from": {"path": str(tmp_path / "base")}}
    saved_run.save(tmp_path / "lora", DATA, **whole, **beside)
    for name in ("base", "lora"):
        asked = (f"--workdir={tmp_path / name}", f"--out={tmp_path / name}_out")
        convert.main(["--to=diffusers_dit", *asked])
    other = Theirs.from_pretrained(tmp_path / "base_out").eval()
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 400]), torch.tensor([0, 2])

    def out():
        with torch.no_grad():
            return other(x, timestep=t, class_labels=y).sample.numpy()

    before = out()
    other.load_lora_adapter(
        tmp_path / "lora_out",
        prefix="transformer",
        weight_name="pytorch_lora_weights.safetensors",  # as a pipeline does, which reads alpha
    )
    theirs = out()
    assert np.abs(theirs - before).max() > 1e-2
    np.testing.assert_allclose(ours(tmp_path / "lora", x, t, y), theirs, atol=2e-4)
    # and back: what their library saves of it
    other.save_lora_adapter(tmp_path / "theirs", adapter_name="default_0")
    name = next((tmp_path / "theirs").glob("*.safetensors"))
    asked = [f"--weights={name}", f"--base={tmp_path / 'base'}", f"--workdir={tmp_path / 'back'}"]
    convert.main(["--from=diffusers_dit", *asked])
    assert draw.load_experiment(str(tmp_path / "back")).lora.scale == pytest.approx(3.0)
    np.testing.assert_allclose(ours(tmp_path / "back", x, t, y), theirs, atol=2e-4)


def ours(workdir, x, t, y):
    """The output of a LoRA run for what a network of PyTorch takes."""
    experiment = draw.load_experiment(str(workdir))
    pairs = draw.load_params(experiment, str(workdir), None, None).params
    base = place_frozen(experiment.frozen, mesh_of(pairs))["base"]
    out = jax.jit(models.apply_fn(experiment.model))(
        lora.join(base, pairs),
        jnp.moveaxis(jnp.asarray(x.numpy()), 1, -1)[:, None],
        jnp.asarray(t.numpy(), jnp.float32),
        Cond(label=jnp.asarray(y.numpy())),
    )
    return jnp.moveaxis(out[:, 0], -1, 1)
