"""LightningDiT against its authors' code, at tiny random weights, from weights to drawn samples.

``golden/lightning_original.npz``: hustvl/LightningDiT, with PyTorch's RMSNorm in the place of a copy of
LLaMA's, at width 16 with QK-norm (``normed``) and without (``plain``, which was published).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_cases import check_format
from weights_files import write_safetensors

from dit import carry, config, convert, draw, models, sample
from dit.diffusion.process import Process
from dit.interop import files
from dit.recipe import Recipe, rules
from dit.sampling.denoisers import paired
from dit.sampling.nfe import nfe
from dit.sampling.sample import sample as sample_from
from dit.types import Cond, UserError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "lightning_original.npz"
SHAPE = (1, 8, 8, 5)
TABLES = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
COUNTS = {  # of 32 channels on 16 x 16 latents, of that code; without QK-norm and with it
    "B/1": (130_359_584, 130_361_120),
    "B/2": (130_507_136, 130_508_672),
    "L/2": (458_087_520, 458_090_592),
    "XL/1": (674_961_824, 674_965_856),
    "XL/2": (675_183_104, 675_187_136),
    "1p0B/1": (1_029_007_904, 1_029_010_976),
    "1p0B/2": (1_029_302_912, 1_029_305_984),
    "1p6B/1": (1_631_308_368, 1_631_311_952),
    "1p6B/2": (1_631_652_528, 1_631_656_112),
}


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDEN))


def group(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def weights(arrays, normed=False):
    """The state that the authors' code saves."""
    state = group(arrays, "weight.")
    return {k: v for k, v in state.items() if normed or ("q_norm" not in k and "k_norm" not in k)}


def network(normed=False, **changes):
    own = {"depth": 2, "width": 16, "heads": 2, "patch": 2, "in_channels": 5, "num_classes": 3}
    return config.resolve("models", "lightning", **own | {"qk_norm": normed} | changes)


LAYOUT = config.resolve("interop", "lightning_original")


@pytest.mark.parametrize("normed", [False, True])
def test_values_gradients_and_weights_are_those_of_the_authors_code(arrays, normed):
    """It counts time from noise to data, and its velocity points to the data."""
    state, model = weights(arrays, normed), network(normed)
    params = LAYOUT.to_params(state, model, SHAPE)
    x, t, y = (jnp.asarray(arrays[f"in.{k}"]) for k in "xty")
    x = jnp.moveaxis(x, 1, -1)[:, None]

    def loss(params):
        out = models.apply_fn(model)(params, x, 1 - t, Cond(label=y))
        return jnp.square(out).mean(), -jnp.moveaxis(out[:, 0], -1, 1)

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = arrays["normed.out" if normed else "plain.out"]
    np.testing.assert_allclose(out, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(value, arrays["normed.loss" if normed else "plain.loss"], rtol=1e-5)
    if normed:
        names, found = group(arrays, "grad."), LAYOUT.to_state(grads, model, SHAPE)
        assert set(names) == set(found) - set(TABLES)
        for name, grad in names.items():
            np.testing.assert_allclose(
                found[name], grad, atol=1e-4 * np.abs(grad).max() + 1e-8, err_msg=name
            )
    again = LAYOUT.to_state(params, model, SHAPE)
    assert set(again) == set(state)
    for name, value in state.items():
        exact = name not in (*TABLES, "t_embedder.mlp.0.weight")  # which are computed
        np.testing.assert_allclose(again[name], value, 0, 0 if exact else 1e-6, err_msg=name)
    shapes = carry.names_of(LAYOUT, model, SHAPE).shapes
    assert shapes.items() <= {n: x.shape for n, x in state.items()}.items()


def test_samples_are_those_of_the_authors_code(arrays):
    """Six of its Euler steps, shifted by 0.3; guidance from 0.125 on, in three channels of five."""
    state, model = weights(arrays), network()
    told = LAYOUT.sections(state, {})
    spec = told["samples"] | {"steps": 6, "labels": (0,)}
    spec["guidance"] = spec["guidance"].replace("6.7", "4.0")
    rule = rules(Recipe(**{k: v for k, v in spec.items() if k != "every"}))
    found = [config.resolve(f"diffusion.{k}s", told[k]["name"]) for k in ("path", "prediction")]
    process = Process(*found)
    params = LAYOUT.to_params(state, model, SHAPE)
    x_T = jnp.moveaxis(jnp.asarray(arrays["in.x"]), 1, -1)[:, None]
    grid = rule.grid(process.path, 6)

    @jax.jit
    def drawn(params):
        cond = Cond(label=jnp.asarray(arrays["in.y"]).clip(0, 2))
        cond = cond.replace(drop=jnp.asarray(arrays["in.y"]) == 3)
        both = paired(process, models.apply_fn(model), params, cond)
        denoise = rule.guidance(both, process.path, grid)
        return sample_from(jax.random.key(0), denoise, process.path, rule.solver, grid, x_T)

    got = np.moveaxis(np.asarray(drawn(params))[:, 0], -1, 1)
    np.testing.assert_allclose(got, arrays["drawn"], atol=1e-4 * np.abs(arrays["drawn"]).max())
    assert nfe(rule.solver, 6, rule.guidance, path=process.path, grid=grid) == 6 + 4


def test_loras_come_and_go(arrays):
    state, model = weights(arrays, normed=True), network(normed=True)
    params = LAYOUT.to_params(state, model, SHAPE)
    check_format(model, params, SHAPE, LAYOUT, computed=["t_embedder.mlp.0"])


@pytest.mark.slow
def test_a_file_becomes_a_workdir_that_draws_and_comes_back(arrays, tmp_path):
    state = weights(arrays)
    write_safetensors(tmp_path / "w.safetensors", {f"ema.{k}": v for k, v in state.items()})
    given = ["--from=lightning_original", f"--weights={tmp_path}/w.safetensors"]
    with pytest.raises(UserError, match="latents of 5 channels, and nothing says"):
        convert.main([*given, f"--workdir={tmp_path}/run"])
    codec = ["--config.codec.name=latent", "--config.codec.scale=1.0"]
    convert.main([*given, f"--workdir={tmp_path}/run", *codec])
    kept = draw.load_experiment(f"{tmp_path}/run")
    assert kept.model == network()
    assert kept.config.samples.steps == 249
    options = ["--labels=0,2", "--steps=3", f"--out={tmp_path}/x.npz"]
    sample.main([f"--workdir={tmp_path}/run", *options])
    assert np.isfinite(np.load(tmp_path / "x.npz")["samples"]).all()
    back = tmp_path / "back.safetensors"
    convert.main(["--to=lightning_original", f"--workdir={tmp_path}/run", f"--out={back}"])
    found = files.read(back)
    assert set(found) == set(state)
    for name, value in state.items():
        np.testing.assert_allclose(np.asarray(found[name]), value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=[] if s == "XL/1" else pytest.mark.slow) for s in COUNTS]
)
def test_published_sizes_have_the_parameters_of_the_authors_code(size):
    for qk_norm, count in zip((False, True), COUNTS[size], strict=True):
        model = config.resolve(
            "models", "lightning", size=size, in_channels=32, num_classes=1000, qk_norm=qk_norm
        )
        assert models.count_params(models.abstract(model, (1, 16, 16, 32))) == count


def test_what_is_no_lightning_dit_is_refused(arrays):
    state = weights(arrays)
    with pytest.raises(UserError, match="did you mean 'XL/1'"):
        network(size="XL1")
    with pytest.raises(UserError, match="heads of a multiple of 4 channels"):
        network(width=24, heads=4)
    with pytest.raises(UserError, match="give a size, such as 'XL/1', or also: depth"):
        config.resolve("models", "lightning", in_channels=4, width=16, heads=2)
    plain = {"depth": 2, "width": 16, "heads": 2, "patch": 2, "in_channels": 5, "num_classes": 3}
    for model, message in (
        (config.resolve("models", "dit", **plain), "got a DiT with block='adaln_zero'"),
        (network(context_dim=3), r"the conditions \['context', 'label'\]"),
        (network(time_scale=1000.0), "time_scale=1000"),
    ):
        with pytest.raises(UserError, match=message):
            LAYOUT.to_params(state, model, SHAPE)
    lacking = {k: v for k, v in state.items() if "w12" not in k}
    with pytest.raises(UserError, match=r"lack 'blocks.0.mlp.w12.weight'"):
        LAYOUT.sections(lacking, {})
    short = {"blocks.0.adaLN_modulation.1.bias": np.zeros(64, np.float32)}
    with pytest.raises(UserError, match=r"64 numbers .* expected 96"):
        LAYOUT.sections(state | short, {})
    turned = {"feat_rope.freqs_cos": state["feat_rope.freqs_cos"][::-1]}
    with pytest.raises(UserError, match=r"feat_rope.freqs_cos"):
        LAYOUT.to_params(state | turned, network(), SHAPE)
