"""LoRAs of MMDiT and Z-Image in files whose maps are ours in parts: exact both ways, of every map."""

import copy

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from lora_cases import adapted, added, check_format, close, lora_of, merged
from mmdit_families import FAMILIES, SHAPE, family
from models_cases import params_of

from dit import carry, config, models
from dit.interop import files, writing
from dit.interop import lora as layouts
from dit.interop.views import regions
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


@pytest.mark.first
@pytest.mark.parametrize(("name", "format"), CASES)
def test_what_is_written_adds_up_to_the_merged_weights_and_is_read_back(name, format):
    model, params = network(name)
    check_format(model, params, SHAPE, config.resolve("interop", format))


def test_a_pair_of_some_parts_of_a_map_is_zero_in_the_others():
    """Queries, keys and values of FLUX.2's single blocks share a map with their MLP's input."""
    model, params = network("flux.2")
    form = config.resolve("interop", "diffusers_flux2")
    names = carry.names_of(form, model, SHAPE)
    _, pairs, both = adapted(model, SHAPE, params, "single/attention/*")
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
    usual = lora_of(model, SHAPE, LoraSettings(rank=1)).pairs
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
    _, pairs, both = adapted(model, SHAPE, params)
    file = layouts.to_state(pairs, names)
    shapes = {n: x.shape for n, x in file.items()}
    how = {"dtype": np.float32, "largest": 10**9, "metadata": layouts.metadata(2, 3.0, file)}
    writing.write(str(tmp_path / "lora"), layouts.STEM, shapes, regions(file.items(), {}), **how)
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
    close(
        form.to_state(merged(lora_of(model, SHAPE, read), params, read.pairs), model, SHAPE),
        expected,
    )
