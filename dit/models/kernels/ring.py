"""Ring attention: every device keeps its queries, and the keys and values go round (Liu et al. 2023).

The tokens are split over the devices of ``act_length``. There are as many steps as devices: in each, a
device attends from its queries to the keys that it holds, block by block, and passes them on.
Softmax is accumulated as in FlashAttention (Dao et al. 2022): with ``m`` the running maximum of the
scores, ``l`` the sum of ``exp(s - m)`` and ``o`` the weighted values, a further block changes them to
``m' = max(m, max s)``, ``l' = l e^(m - m') + sum e^(s - m')``, and ``o`` like ``l``. No device holds
scores of more than ``BLOCK`` keys, nor keys of more than its share. Without a mesh there is one device.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dit.models.activations import WHOLE_HEADS, mesh_axes, shards
from dit.models.activations import partition as partition_of
from dit.models.kernels.xla import HIDDEN

BLOCK = 1024  # keys a block

Ids = dict[str, Array]  # segment and frame of queries (or keys), and group if there is one: b n


def attend(
    q: Float[Array, "b q h d"], k: Float[Array, "b k h d"], v: Float[Array, "b k h d"], visible
) -> Float[Array, "b q h d"]:
    """Products are in the inputs' type, all else in float32. No forward-mode derivative."""
    n_q, size = q.shape[1], shards("act_length")
    ids = _ids(visible, q, k)
    q, q_ids = _pad(q, ids[0], size, hidden=0)
    (k, k_ids), (v, _) = (_pad(x, ids[1], size, hidden=-1) for x in (k, v))
    axes = mesh_axes("act_length")
    run = partial(_ring, axes, size)
    spec = partition_of(q.shape, WHOLE_HEADS)
    if spec is not None:
        rows = PartitionSpec(*spec[:2])
        run = jax.shard_map(
            run, in_specs=(spec, spec, spec, rows, rows), out_specs=spec, check_vma=False
        )
    return run(q, k, v, q_ids, k_ids)[:, :n_q]


def _ids(visible, q: Array, k: Array) -> list[Ids]:
    """Segment (-1: hidden) and frame of each query and key; see ``_scores`` for their use."""
    frames = None if visible is None else visible.frames(q.shape[1], k.shape[1])
    found = []
    for i, (x, side) in enumerate(((q, "q"), (k, "k"))):
        b, n = x.shape[:2]
        segment, frame = jnp.zeros((b, n), jnp.int32), jnp.zeros((b, n), jnp.int32)
        if visible is not None and visible.q_segment is not None:
            segment = getattr(visible, f"{side}_segment").astype(jnp.int32)
        if visible is not None and visible.k_valid is not None and side == "k":
            segment = jnp.where(visible.k_valid, segment, -1)
        if frames is not None:
            frame = jnp.broadcast_to(frames[i], (b, n)).astype(jnp.int32)
        found.append({"segment": segment, "frame": frame})
        if visible is not None and visible.q_group is not None:
            group = getattr(visible, f"{side}_group")
            found[-1]["group"] = jnp.broadcast_to(group, (b, n)).astype(jnp.int32)
    return found


def _pad(x: Array, ids: Ids, size: int, hidden: int) -> tuple[Array, Ids]:
    """Pad to whole blocks on every device; the segment of padding is ``hidden``.

    All padding is with zeros, and ``hidden`` is put in afterwards. Where one array is padded twice and
    then split over devices, XLA takes the first pad's value for both: two equal arrays of ids gave
    visible padding.
    """
    n = x.shape[1]
    unit = size * min(BLOCK, -(-n // size))
    extra = -n % unit
    ids = {k: jnp.pad(i, ((0, 0), (0, extra))) for k, i in ids.items()}
    if extra:
        real = (jnp.arange(n + extra) < n)[None]
        ids["segment"] = jnp.where(real, ids["segment"], hidden)
    return jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))), ids


def _wide(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _product(dtype):
    """``einsum`` that sums in float32 or better."""
    return partial(jnp.einsum, preferred_element_type=_wide(dtype))


def _scores(q: Array, k: Array, q_ids: Ids, k_ids: Ids) -> Float[Array, "b h q k"]:
    score = _product(q.dtype)("bqhd,bkhd->bhqk", q, k)
    seen = q_ids["segment"][:, :, None] == k_ids["segment"][:, None, :]
    seen &= k_ids["frame"][:, None, :] <= q_ids["frame"][:, :, None]
    if "group" in k_ids:
        own = k_ids["group"][:, None, :]
        seen &= (own < 0) | (own == q_ids["group"][:, :, None])
    return jnp.where(seen[:, None], score * q.shape[-1] ** -0.5, HIDDEN)


def _blocks(tree, inverse: bool = False):
    """``b n ...`` as ``n / BLOCK`` leading blocks, and back."""

    def one(x: Array) -> Array:
        if inverse:
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(x.shape[0], -1, *x.shape[3:])
        b, n = x.shape[:2]
        return jnp.moveaxis(x.reshape(b, -1, min(BLOCK, n), *x.shape[2:]), 1, 0)

    return jax.tree.map(one, tree)


def _pass_on(axes: tuple[str, ...], size: int, tree):
    """Send ``tree`` to the next device of the ring."""
    if size == 1:
        return tree
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, ring), tree)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(axes, size, q, k, v, q_ids, k_ids):
    return _forward(axes, size, q, k, v, q_ids, k_ids)[0]


def _forward(axes, size, q, k, v, q_ids, k_ids):
    b, n, h, d = q.shape

    def block(carry, kv):
        m, total, out = carry
        s = _scores(q, kv[0], q_ids, kv[2])
        new = jnp.maximum(m, s.max(-1))
        p, keep = jnp.exp(s - new[..., None]), jnp.exp(m - new)
        weighted = _product(v.dtype)("bhqk,bkhd->bhqd", p.astype(v.dtype), kv[1])
        return (new, total * keep + p.sum(-1), out * keep[..., None] + weighted), None

    def step(carry, _):
        sums, kv = carry
        sums, _ = jax.lax.scan(block, sums, _blocks(kv))
        return (sums, _pass_on(axes, size, kv)), None

    wide = _wide(q.dtype)
    start = (
        jnp.full((b, h, n), 2 * HIDDEN, wide),
        jnp.zeros((b, h, n), wide),
        jnp.zeros((b, h, n, d), wide),
    )
    ((m, total, out), _), _ = jax.lax.scan(step, (start, (k, v, k_ids)), length=size)
    out = jnp.swapaxes(out / total[..., None], 1, 2).astype(q.dtype)
    return out, (q, k, v, q_ids, k_ids, out, m + jnp.log(total))


def _backward(axes, size, residuals, g):
    """With ``p = exp(s - lse)``: ``dv = p^T g``, ``ds = p (g v^T - rowsum(g out))``."""
    q, k, v, q_ids, k_ids, out, lse = residuals
    wide = lse.dtype
    delta = jnp.einsum("bqhd,bqhd->bhq", g.astype(wide), out.astype(wide))
    einsum = _product(q.dtype)

    def block(dq, kv):
        k, v, ids, dk, dv = kv
        p = jnp.exp(_scores(q, k, q_ids, ids) - lse[..., None])
        ds = p * (einsum("bqhd,bkhd->bhqk", g, v) - delta[..., None])
        ds, p = ((x * scale).astype(q.dtype) for x, scale in ((ds, q.shape[-1] ** -0.5), (p, 1)))
        dq = dq + einsum("bhqk,bkhd->bqhd", ds, k)
        dk = dk + einsum("bhqk,bqhd->bkhd", ds, q)
        dv = dv + einsum("bhqk,bqhd->bkhd", p, g)
        return dq, (k, v, ids, dk, dv)

    def step(carry, _):
        dq, kv = carry
        dq, blocks = jax.lax.scan(block, dq, _blocks(kv))
        return (dq, _pass_on(axes, size, _blocks(blocks, inverse=True))), None

    zeros = [jnp.zeros(x.shape, wide) for x in (q, k, v)]
    start = (zeros[0], (k, v, k_ids, *zeros[1:]))
    (dq, (_, _, _, dk, dv)), _ = jax.lax.scan(step, start, length=size)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring.defvjp(_forward, _backward)
