"""Stages of equal blocks over named streams of tokens, their parameters stacked along ``layers``.

``{"image": x}`` has one stream, ``{"image": x, "text": y}`` two. A stage's blocks see all streams, or
one row of tokens into which the stage merges them (from double to single stream: FLUX). Blocks are
functions of what they see and of one condition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.activations import constrain
from dit.models.attention import platform
from dit.models.remat import remat_layer, remat_scanned
from dit.types import Params

Streams = dict[str, Float[Array, "b _ d"]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """``depth`` times the block that a module has as its attribute ``name``, the parameters' name too.

    ``merge``: the streams that the blocks see as one row of tokens, in this order; they are cut apart
    again after the stage. Without it the blocks map all streams, a dict, to streams.
    """

    name: str
    depth: int
    merge: tuple[str, ...] = ()


def run(module: Any, stages: Iterable[Stage], streams: Streams, condition: Any) -> Streams:
    """The streams after all ``stages``, each by the ``unroll`` and ``remat`` of ``module``."""
    for stage in stages:
        if not stage.merge:
            streams = layers(module, stage, streams, condition)
            continue
        parts = [streams[name] for name in stage.merge]
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        x, begin = layers(module, stage, x, condition), 0
        for name, part in zip(stage.merge, parts, strict=True):
            end = begin + part.shape[1]
            streams = streams | {name: x if len(parts) == 1 else x[:, begin:end]}
            begin = end
    return streams


def layers(module: Any, stage: Stage, x: Any, condition: Any) -> Any:
    """All blocks of one stage in turn, on an array or a dict of arrays.

    The parameters are stacked, whether the loop is unrolled or not. Unrolled in full it is a Python
    loop over slices of them, or over the parameters of each layer if ``unstack`` took them apart: no
    loop carries what the backward pass needs. On GPUs that loop copies it: DiT-B/2 at batch 256 took
    136 ms a step and 54 GiB on an H200, and 87 ms and 30 GiB unrolled, for half again the compilation.
    """
    stacked = module.variables.get("params", {}).get(stage.name, {})
    unroll = platform() != "tpu" if module.unroll == "auto" else module.unroll
    unroll = {True: stage.depth, False: 1}[unroll] if isinstance(unroll, bool) else unroll
    unroll = min(unroll, stage.depth)
    if "0" in stacked:
        stacked = [stacked[str(i)] for i in range(stage.depth)]
    if stacked and (isinstance(stacked, list) or unroll >= stage.depth):
        block = getattr(module, stage.name).clone(parent=None)

        def layer(params, x, condition):
            return block.apply({"params": params}, placed(x), condition)

        layer = remat_layer(layer, module.remat)
        each = stacked if isinstance(stacked, list) else split(stacked, stage.depth)
        for params in each:
            x = layer(params, x, condition)
        return x

    def body(block, x, condition):
        return block(placed(x), condition), None

    body = remat_scanned(body, module.remat, unrolled=unroll > 1)
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=stage.depth,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(getattr(module, stage.name), x, condition)[0]


def continued(
    module: Any, stage: Stage, x: Float[Array, "b n d"], condition: Any
) -> tuple[Float[Array, "b n d"], tuple[Array, Array]]:
    """All blocks of a stage in turn, each with its layer of ``condition.past``.

    Also the new keys and values of all layers, ``l b n h e``: what the module ``attention`` has sown.
    """
    stacked = module.variables["params"][stage.name]
    block, past = getattr(module, stage.name).clone(parent=None), condition.past

    def layer(x, now):
        params, k, v = now
        told = condition.replace(past=past.replace(k=k, v=v))
        x, sown = block.apply({"params": params}, placed(x), told, mutable=["new"])
        return x, sown["new"]["attention"]["kv"]

    if "0" not in stacked:
        return jax.lax.scan(layer, x, (stacked, past.k, past.v))
    made = []
    for i in range(stage.depth):
        x, new = layer(x, (stacked[str(i)], past.k[i], past.v[i]))
        made.append(new)
    return x, jax.tree.map(lambda *each: jnp.stack(each), *made)


def placed(x: Any) -> Any:
    """Every stream where tokens lie on a mesh."""
    return jax.tree.map(lambda x: constrain(x, "act_batch", "act_length", "act_embed"), x)


def split(stacked: Params, depth: int) -> list[Params]:
    """The parameters of each layer; the gradient of it all is one concatenation an array."""
    parts = [
        [part[0] for part in jax.lax.split(array, (1,) * depth)]
        for array in jax.tree.leaves(stacked)
    ]
    tree = jax.tree.structure(stacked)
    return [jax.tree.unflatten(tree, layer) for layer in zip(*parts, strict=True)]


def unstack(params: Params, stages: Iterable[Stage]) -> Params:
    """Parameters with each layer of the stages by itself, for a loop that runs them many times.

    Cutting layers out of the stack costs a tenth of a pass at batch 2.
    """
    apart = {}
    for stage in stages:
        leaves, tree = jax.tree.flatten(params[stage.name])
        apart[stage.name] = {
            str(i): tree.unflatten([p[i] for p in leaves]) for i in range(stage.depth)
        }
    return {**params, **apart}
