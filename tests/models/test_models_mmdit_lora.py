"""LoRAs of MMDiT and Z-Image in files whose maps are ours in parts: exact both ways, of every map."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from mmdit_families import FAMILIES, SHAPE, family
from models_cases import params_of

from dit import carry, config, models
from dit.interop import files, writing
from dit.interop import lora as layouts
from dit.training import lora
from dit.training.lora import LoraSettings

TINY = {"width": 24, "heads": 3, "in_channels": 4, "context_dim": 7}
CASES = [(name, FAMILIES[name][1]) for name in FAMILIES]
CASES += [("sd3.5", "sd3_original"), ("flux.1", "flux_original"), ("flux.2", "flux_original")]
CASES += [("z-image", "diffusers_z_image")]


def network(name):
    """A tiny network of a family, and parameters none of which is zero."""
    if name == "z-image":
        model = config.resolve("models", "zimage", depth=2, refiner_depth=1, null="zero", **TINY)
        return model, params_of(model, SHAPE, noise=0.2)
    options, takes = FAMILIES[name][2:]
    pooled = {"pooled_dim": 5} if "pooled" in takes else {}
    model = config.resolve("models", "mmdit", **{**options, **TINY, **pooled})
    return model, params_of(model, SHAPE, noise=0.2)


def lora_of(model, settings):
    """The LoRA of a rank, an alpha and targets."""
    given = {k: getattr(settings, k) for k in ("rank", "alpha", "targets")}
    axes = models.logical_axes(model, SHAPE)
    return lora.build(LoraSettings(**given), models.abstract(model, SHAPE), axes)


def adapted(model, params, targets="*kernel"):
    """A LoRA of rank 2 with random numbers, and the parameters with it added."""
    found = lora_of(model, LoraSettings(rank=2, alpha=3.0, targets=targets))
    draw = np.random.default_rng(1)
    shapes = flatten_dict(jax.eval_shape(found.init, jax.random.key(0)), sep="/")
    pairs = {
        name: (0.5 * draw.standard_normal(x.shape)).astype(np.float32) for name, x in shapes.items()
    }
    return found, pairs, merged(found, params, pairs)


def merged(found, params, pairs):
    """The parameters with the pairs added."""
    pairs = jax.tree.map(jnp.asarray, unflatten_dict(pairs, sep="/"))
    each = flatten_dict(params, sep="/").items()
    return unflatten_dict({n: lora.merge(found, n, x, pairs) for n, x in each}, sep="/")


def added(state, file, told):
    """What PEFT makes of weights: ``W + B A alpha / r``, with alpha as the header has it."""
    told = {k.removeprefix("transformer."): v for k, v in json.loads(told).items()}
    state = dict(state)
    for name in [n for n in file if n.endswith(layouts.A)]:
        module = name.removesuffix(layouts.A).removeprefix("transformer.")
        a, b = file[name].astype(np.float64), file[name.replace("_A", "_B")].astype(np.float64)
        alpha = told["alpha_pattern"].get(module, told["lora_alpha"])
        assert told["rank_pattern"].get(module, told["r"]) == len(a)
        delta = b.reshape(len(b), -1) @ a.reshape(len(a), -1) * alpha / len(a)
        weight = state[f"{module}.weight"]
        state[f"{module}.weight"] = weight + delta.reshape(weight.shape)
    return state


def close(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("name", "format"), CASES)
def test_what_is_written_adds_up_to_the_merged_weights_and_is_read_back(name, format):
    """And an adapter made elsewhere, of every map of the file, comes back with its ranks and numbers."""
    model, params = network(name)
    form = config.resolve("interop", format)
    names = carry.names_of(form, model, SHAPE)
    found, pairs, sum_of_both = adapted(model, params)
    before = form.to_state(params, model, SHAPE)
    after = form.to_state(sum_of_both, model, SHAPE)
    file = layouts.to_state(pairs, names)
    told = layouts.metadata(2, 3.0, file)
    close(added(before, file, told[layouts.METADATA]), after)
    changed = {n for n, x in before.items() if not np.array_equal(x, after[n])}
    assert {f"transformer.{n.removesuffix('.weight')}{layouts.A}" for n in changed} < file.keys()

    again = layouts.read(file, told, names)
    assert again.alpha / again.rank == pytest.approx(1.5)
    close(form.to_state(merged(lora_of(model, again), params, again.pairs), model, SHAPE), after)

    draw = np.random.default_rng(2)
    other = {}
    for key in (n for n in file if n.endswith(layouts.A)):
        shape = names.shapes[key.removeprefix("transformer.").replace(layouts.A, ".weight")]
        one = (1,) * (len(shape) - 2)
        other[key] = draw.standard_normal((2, *shape[1:])).astype(np.float32)
        other[key.replace("_A", "_B")] = draw.standard_normal((shape[0], 2, *one)).astype(
            np.float32
        )
    told = layouts.metadata(2, 3.0, other)
    read = layouts.read(other, told, names)
    assert (read.rank, read.alpha) == (2, 3.0)
    wanted = added(before, other, told[layouts.METADATA])
    assert set(read.targets) == {f"{module}/kernel" for module in found.pairs}
    close(form.to_state(merged(found, params, read.pairs), model, SHAPE), wanted)
    written = layouts.to_state(read.pairs, names)
    assert written.keys() == other.keys()
    for key, value in other.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_a_pair_of_some_parts_of_a_map_is_zero_in_the_others():
    """Queries, keys and values of FLUX.2's single blocks share a map with their MLP's input."""
    model, params = network("flux.2")
    form = config.resolve("interop", "diffusers_flux2")
    names = carry.names_of(form, model, SHAPE)
    _, pairs, both = adapted(model, params, "single/attention/*")
    file = layouts.to_state(pairs, names)
    module = "transformer.single_transformer_blocks.0.attn"
    assert len(file[f"{module}.to_qkv_mlp_proj{layouts.A}"]) == 3 * 2
    assert not file[f"{module}.to_qkv_mlp_proj{layouts.B}"][3 * 24 :].any()
    assert not file[f"{module}.to_out{layouts.A}"][:, 24:].any()
    told = layouts.metadata(2, 3.0, file)[layouts.METADATA]
    before = form.to_state(params, model, SHAPE)
    close(added(before, file, told), form.to_state(both, model, SHAPE))


@pytest.mark.parametrize("name", [*FAMILIES, "z-image"])
def test_attention_is_adapted_where_nothing_is_said(name):
    model, _ = network(name)
    usual = lora_of(model, LoraSettings(rank=1)).pairs
    axes = models.logical_axes(model, SHAPE)
    heads = {
        n for n, a in flatten_dict(axes, sep="/").items() if "heads" in a and n.endswith("kernel")
    }
    assert {f"{module}/kernel" for module in usual} == heads


@pytest.mark.torch
@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_and_peft_merge_it_to_the_same_weights(name, tmp_path):
    pytest.importorskip("peft")
    other, _, model, form, state = family(name)
    other = copy.deepcopy(other)
    params = form.to_params(state, model, SHAPE)
    names = carry.names_of(form, model, SHAPE)
    _, pairs, both = adapted(model, params)
    file = layouts.to_state(pairs, names)
    shapes = {n: x.shape for n, x in file.items()}
    how = {"dtype": np.float32, "largest": 10**9, "metadata": layouts.metadata(2, 3.0, file)}
    writing.write(str(tmp_path / "lora"), layouts.STEM, shapes, file.items(), **how)
    whole = f"{layouts.STEM}.safetensors"
    other.load_lora_adapter(tmp_path / "lora", prefix="transformer", weight_name=whole)
    other.save_lora_adapter(tmp_path / "theirs", adapter_name="default_0")
    other.fuse_lora()
    other.unload_lora()
    theirs = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    expected = form.to_state(both, model, SHAPE)
    close({k: theirs[k] for k in expected}, expected)
    (saved,) = (tmp_path / "theirs").glob("*.safetensors")
    read = layouts.read(dict(files.read(saved)), files.metadata(saved), names)
    close(form.to_state(merged(lora_of(model, read), params, read.pairs), model, SHAPE), expected)
