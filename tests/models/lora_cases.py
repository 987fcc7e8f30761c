"""LoRAs of tiny networks, in files and added to weights, for the tests of every family's formats."""

import json
import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dit import carry, models
from dit.interop import lora as layouts
from dit.training import lora
from dit.training.lora import LoraSettings

EVERY = "*kernel"


def lora_of(model, shape, settings):
    """The LoRA of a rank, an alpha and targets."""
    given = {k: getattr(settings, k) for k in ("rank", "alpha", "targets")}
    axes = models.logical_axes(model, shape)
    return lora.build(LoraSettings(**given), models.abstract(model, shape), axes)


def adapted(model, shape, params, targets=EVERY):
    """A LoRA of rank 2 with random numbers, and the parameters with it added."""
    found = lora_of(model, shape, LoraSettings(rank=2, alpha=3.0, targets=targets))
    draw = np.random.default_rng(1)
    shapes = flatten_dict(jax.eval_shape(found.init, jax.random.key(0)), sep="/")
    pairs = {
        name: (0.5 * draw.standard_normal(x.shape)).astype(np.float32) for name, x in shapes.items()
    }
    return found, pairs, merged(found, params, pairs)


def merged(found, params, pairs):
    """The parameters with the pairs added, by NumPy: ``W + A B alpha / r``."""
    sums = flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    for module, pair in found.pairs.items():
        lead, (inputs, stack, outputs) = math.prod(pair.sizes(pair.layers)), pair.size
        a = pairs[f"{module}/lora_a"].reshape(lead, inputs, stack, found.rank)
        b = pairs[f"{module}/lora_b"].reshape(lead, stack, found.rank, outputs)
        delta = np.einsum("lisr,lsro->liso", a, b).reshape(pair.shape)
        sums[f"{module}/kernel"] = sums[f"{module}/kernel"] + np.float32(found.scale) * delta
    return unflatten_dict(sums, sep="/")


def added(state, file, told, part="transformer"):
    """What PEFT makes of weights: ``W + B A alpha / r``, with alpha as the header has it."""
    told = {k.removeprefix(f"{part}."): v for k, v in json.loads(told).items()}
    state = dict(state)
    for name in [n for n in file if n.endswith(layouts.A)]:
        module = name.removesuffix(layouts.A).removeprefix(f"{part}.")
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


def check_format(model, params, shape, form, computed=()):
    """A LoRA of every map is written and adds up to the merged weights, and is read back; so is one made
    elsewhere, of every map of the file, with its ranks and numbers.

    ``computed``: modules there whose numbers come back but for rounding."""
    names = carry.names_of(form, model, shape)
    found, pairs, sum_of_both = adapted(model, shape, params)
    before = form.to_state(params, model, shape)
    after = form.to_state(sum_of_both, model, shape)
    file = layouts.to_state(pairs, names)
    part = form.part
    told = layouts.metadata(2, 3.0, file, part)
    close(added(before, file, told[layouts.METADATA], part), after)
    changed = {n for n, x in before.items() if not np.array_equal(x, after[n])}
    assert {f"{part}.{n.removesuffix('.weight')}{layouts.A}" for n in changed} < file.keys()

    again = layouts.read(file, told, names)
    assert np.isclose(again.alpha / again.rank, 1.5)
    close(
        form.to_state(merged(lora_of(model, shape, again), params, again.pairs), model, shape),
        after,
    )

    draw = np.random.default_rng(2)
    other = {}
    for key in (n for n in file if n.endswith(layouts.A)):
        there = names.shapes[key.removeprefix(f"{part}.").replace(layouts.A, ".weight")]
        one = (1,) * (len(there) - 2)
        other[key] = draw.standard_normal((2, *there[1:])).astype(np.float32)
        other[key.replace("_A", "_B")] = draw.standard_normal((there[0], 2, *one)).astype(
            np.float32
        )
    told = layouts.metadata(2, 3.0, other, part)
    read = layouts.read(other, told, names)
    assert (read.rank, read.alpha) == (2, 3.0)
    wanted = added(before, other, told[layouts.METADATA], part)
    assert set(read.targets) == {f"{module}/kernel" for module in found.pairs}
    close(form.to_state(merged(found, params, read.pairs), model, shape), wanted)
    written = layouts.to_state(read.pairs, names)
    assert written.keys() == other.keys()
    for key, value in other.items():
        exact = not any(f".{module}.lora" in key for module in computed)
        np.testing.assert_allclose(written[key], value, 0, 0 if exact else 1e-6, err_msg=key)
    return other, read
