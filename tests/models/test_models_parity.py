"""The model against implementations that nobody here wrote."""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import carry, config, models
from dit.interop import files
from dit.models.patchify import patchify
from dit.types import Cond, UserError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "dit_original.npz"


def group(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def loss_and_output(model, params, x, t, label):
    """Mean square of the output, its gradient and the output, for images ``b c h w``."""

    def loss(params):
        out = models.apply_fn(model)(params, jnp.moveaxis(x, 1, -1)[:, None], t, Cond(label=label))
        return jnp.square(out).mean(), jnp.moveaxis(out[:, 0], -1, 1)

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, grads, out


@pytest.fixture(scope="module")
def original():
    """Outputs and gradients of the original code (facebookresearch/DiT) at tiny random weights."""
    arrays = dict(np.load(GOLDEN))
    model = config.resolve(
        "models", "dit", depth=2, width=32, heads=4, in_channels=3, learn_sigma=True, num_classes=3
    )
    return arrays, model, (1, 8, 8, 3)


@pytest.mark.parametrize("attention", ["xla", "cpu"])
def test_original_dit(original, attention):
    arrays, model, shape = original
    layout = config.resolve("interop", "dit_original")
    params = layout.to_params(group(arrays, "weight."), model, shape)
    value, grads, out = loss_and_output(
        model.clone(attention=attention),
        params,
        *(jnp.asarray(arrays[f"in.{k}"]) for k in "xty"),
    )
    np.testing.assert_allclose(out[:2], arrays["out"][:2], atol=1e-5, rtol=1e-5)  # t = 0, 42
    np.testing.assert_allclose(out[2], arrays["out"][2], atol=1e-4)  # t = 999 w, in float32 there
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    got = layout.to_state(grads, model, shape)
    expected = group(arrays, "grad.")
    assert len(expected) >= 5
    for name, grad in expected.items():
        np.testing.assert_allclose(got[name], grad, atol=1e-4 * np.abs(grad).max(), err_msg=name)


def test_original_round_trip_is_exact(original):
    arrays, model, shape = original
    layout, state = config.resolve("interop", "dit_original"), group(arrays, "weight.")
    again = layout.to_state(layout.to_params(state, model, shape), model, shape)
    assert set(again) == set(state)
    for name in state:
        np.testing.assert_array_equal(again[name], state[name], err_msg=name)


def test_original_sit_is_that_network_with_time_and_velocity_turned(original):
    """Its code calls the same network with 1 - t, and drops the second half of the channels."""
    arrays, model, shape = original
    model, layout = model.clone(out_channels=3), config.resolve("interop", "sit_original")
    state = group(arrays, "weight.")
    params = layout.to_params(state, model, shape)
    x, t, y = (jnp.asarray(arrays[f"in.{k}"]) for k in "xty")
    _, _, out = loss_and_output(model, params, x, 1 - t, y)
    np.testing.assert_allclose(-out[:2], arrays["out"][:2, :3], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(-out[2], arrays["out"][2, :3], atol=3e-4)  # -998 w, in float32
    again = layout.to_state(params, model, shape)
    assert {n: x.shape for n, x in again.items()} == {n: x.shape for n, x in state.items()}
    assert (
        carry.names_of(layout, model, shape).shapes.items()
        <= {n: x.shape for n, x in state.items()}.items()
    )
    for name, value in state.items():
        if name.startswith("final_layer.linear"):  # pixels of three channels and three unread ones
            read = np.arange(len(value)) % 6 < 3
            assert not again[name][~read].any()
            value = np.where(read.reshape(-1, *(1,) * (value.ndim - 1)), value, 0)
        np.testing.assert_allclose(again[name], value, atol=1e-6, err_msg=name)
    for wrong, message in (
        (model.clone(out_channels=6), "holds SiT, without learn_sigma"),
        (model.clone(time_scale=1000.0), "time_scale=1000"),
    ):
        with pytest.raises(UserError, match=message):
            layout.to_params(state, wrong, shape)


def test_an_original_sit_tells_its_sizes_and_its_process():
    layout = config.resolve("interop", "sit_original")
    shapes = {"x_embedder.proj.weight": (384, 4, 2, 2), "pos_embed": (1, 256, 384)}
    shapes |= {"y_embedder.embedding_table.weight": (1001, 384), "final_layer.linear.bias": (32,)}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    told = layout.sections(state | {"blocks.0.attn.proj.bias": np.zeros(384)}, {})
    assert told["model"] == {"name": "dit", "depth": 1, "width": 384, "heads": 6, "patch": 2}
    assert told["data"]["shape"] == (1, 32, 32, 4)
    assert (told["path"], told["prediction"]) == ({"name": "linear"}, {"name": "velocity"})
    with pytest.raises(UserError, match="not a SiT's"):
        layout.sections(state | {"final_layer.linear.bias": np.zeros(16)}, {})


def test_original_state_that_does_not_fit(original):
    arrays, model, shape = original
    layout, state = config.resolve("interop", "dit_original"), group(arrays, "weight.")
    with pytest.raises(UserError, match=r"missing \['blocks.2"):
        layout.to_params(state, model.clone(depth=3), shape)
    with pytest.raises(UserError, match=r"not used \['blocks.1"):
        layout.to_params(state, model.clone(depth=1), shape)
    with pytest.raises(UserError, match="pos_embed"):
        layout.to_params(state, model, (1, 16, 16, 3))
    with pytest.raises(UserError, match="does not fit"):
        layout.to_params(state, model.clone(num_classes=4), shape)
    with pytest.raises(UserError, match="adaln_zero"):
        layout.to_params(state, model.clone(block="adaln"), shape)


@pytest.mark.parametrize("name", ["diffusers_dit", "dit_original"])
def test_imported_parameters_are_arrays_that_work_in_and_out_of_jit(original, name):
    """Of every format: each is read back from what it writes itself."""
    _, model, shape = original
    layout = config.resolve("interop", name)
    params = models.init(model, jax.random.key(0), shape)
    again = layout.to_params(layout.to_state(params, model, shape), model, shape)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    inputs = jnp.ones((2, *shape)), jnp.zeros(2), Cond(label=jnp.array([0, 1]))
    apply = models.apply_fn(model)
    np.testing.assert_allclose(apply(again, *inputs), jax.jit(apply)(again, *inputs), atol=1e-5)


def checkpoint(original, drop=()):
    """A training checkpoint: two sets of weights that differ, an optimizer's state, arguments."""
    state = group(original[0], "weight.")
    model = {k: v if k == "pos_embed" else v + 1 for k, v in state.items()}
    moments = {"0": {"exp_avg": np.zeros(3, np.float32), "step": np.float32(1)}}
    whole = {"model": model, "ema": state, "opt": {"state": moments}}
    return {k: v for k, v in whole.items() if k not in drop}


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: np.ascontiguousarray(tree)}
    return {k: x for key, v in tree.items() for k, x in flat(v, f"{prefix}{key}.").items()}


def write_safetensors(path, tree):
    header, data = {}, b""
    for name, x in flat(tree).items():
        x = x.astype(np.float32)
        ends = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": ends}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_torch(path, tree):
    torch = pytest.importorskip("torch")

    def tensors(x):
        whole = isinstance(x, dict)
        return {k: tensors(v) for k, v in x.items()} if whole else torch.from_numpy(np.array(x))

    args = argparse.Namespace(model="DiT-XL/2", epochs=1400, results_dir="results")
    torch.save(tensors(tree) | {"args": args}, path)


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".safetensors", write_safetensors),
        pytest.param(".pt", write_torch, marks=pytest.mark.torch),
    ],
)
def test_a_training_checkpoint_is_read_by_the_set_of_weights(original, tmp_path, suffix, write):
    _, model, shape = original
    path = tmp_path / f"0400000{suffix}"
    layout = config.resolve("interop", "dit_original")

    def kernel(**kwargs):
        params = layout.to_params(files.read(path, **kwargs), model, shape)
        return np.asarray(params["final"]["linear"]["kernel"])

    write(path, checkpoint(original))
    np.testing.assert_array_equal(kernel(), kernel(weights="ema"))
    np.testing.assert_allclose(kernel(weights="model"), kernel() + 1, rtol=1e-6)
    with pytest.raises(UserError, match="did you mean 'model'"):
        kernel(weights="modle")
    write(path, checkpoint(original, drop=("ema",)))
    with pytest.raises(UserError, match=r"no weights 'ema' in .*0400000.*with model"):
        kernel()
    kernel(weights="model")
    bare = checkpoint(original)["ema"]
    write(path, bare)
    assert {*files.read(path), "args"} >= {*bare}


@pytest.mark.torch
def test_diffusers_dit():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    other = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    ).eval()
    for name, p in other.named_parameters():  # all of them: zeros would hide a swapped gate
        p.data = 0.15 * torch.randn_like(p)
        if "transformer_blocks.1.norm1.emb" in name:
            twin = name.replace("blocks.1", "blocks.0")
            p.data = dict(other.named_parameters())[twin].data.clone()
    x, t, y = torch.randn(3, 3, 4, 16), torch.tensor([0, 17, 99]), torch.tensor([2, 0, 5])
    out = other(x, timestep=t, class_labels=y).sample  # it lays the 2x8 patches out as 4x4
    loss = out.square().mean()
    loss.backward()
    state = {k: v.numpy() for k, v in other.state_dict().items()}
    expected = {k: p.grad.numpy() for k, p in other.named_parameters()}
    model = config.resolve(
        "models",
        "dit",
        depth=2,
        width=32,
        heads=4,
        in_channels=3,
        learn_sigma=True,
        num_classes=5,
        quirks="diffusers",
        position_scale=(1.0, 2.0, 0.5),  # it fits any size into its own grid of 4x4 patches
    )
    layout, shape = config.resolve("interop", "diffusers_dit"), (1, 4, 16, 3)
    params = layout.to_params(state, model, shape)
    again = layout.to_state(params, model, shape)
    assert set(again) == set(state)
    for name in state:
        np.testing.assert_array_equal(again[name], state[name], err_msg=name)
    inputs = jnp.asarray(x.numpy()), jnp.asarray(t.numpy(), jnp.float32), jnp.asarray(y.numpy())
    value, grads, got = loss_and_output(model, params, *inputs)
    rows = [
        patchify(jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None], (1, 2, 2))
        for image in (got, out.detach().numpy())
    ]
    np.testing.assert_allclose(*rows, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    grads = layout.to_state(grads, model, shape)
    copies = {k for k in expected if "norm1.emb" in k}
    for name in set(expected) - copies:
        atol = 3e-5 * np.abs(expected[name]).max() + 1e-7  # a bias of keys changes nothing
        np.testing.assert_allclose(grads[name], expected[name], atol=atol, err_msg=name)
    for name in (k for k in copies if "blocks.0" in k):  # one table here, so the sum of the copies'
        total = expected[name] + expected[name.replace("blocks.0", "blocks.1")]
        np.testing.assert_allclose(grads[name], total, atol=3e-5 * np.abs(total).max())
    plain = model.clone(time_denominator=None)
    assert np.abs(loss_and_output(plain, params, *inputs)[2] - got).max() > 1e-3
