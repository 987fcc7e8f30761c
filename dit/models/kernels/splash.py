"""JAX's Pallas "splash" attention for TPUs: memory linear in the sequence, for long ones.

The kernel needs whole blocks of tokens and whole lanes of channels, so both are padded; padded keys
have a segment of their own. XLA cannot split a Pallas call over devices: where a mesh and axis rules
are in force (``models/activations.py``), each device runs it on its share of batch and heads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dit.models.activations import partition
from dit.models.remat import ATTENTION
from dit.types import UserError

LANES = 128
BLOCK = 512  # rows a block; much larger ones do not fit in a chip's fast memory


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    visible,
    interpret: bool = False,
) -> Float[Array, "b q h d"]:
    """No forward-mode derivative. ``interpret`` runs it slowly anywhere, for tests.

    Raises UserError for frames that are not in order: the kernel takes no such mask as integers.
    """
    if visible is not None and (visible.q_frame is not None or visible.q_group is not None):
        raise UserError(
            "splash attention cannot mask packed tokens by their frames; build the model with "
            "attention='ring', which can"
        )
    d, n_q, shape = q.shape[-1], q.shape[1], q.shape
    block_q, block_k = (min(BLOCK, -(-x.shape[1] // LANES) * LANES) for x in (q, k))
    pad_q, pad_k = -n_q % block_q, -k.shape[1] % block_k
    ids = _segments(visible, q, k, pad_q, pad_k)
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, pad), (0, -d % LANES)))
        for x, pad in ((q * d**-0.5, pad_q), (k, pad_k), (v, pad_k))
    )
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    pairs = (q.shape[2], k.shape[2])
    mask = masks.FullMask(pairs)
    if visible is not None and visible.frame_size is not None:
        mask = FrameMask(pairs, visible.frame_size, visible.prefix)

    def run(q, k, v, ids):
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * q.shape[1]),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=ATTENTION,  # with the sums that its backward pass needs
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, ids)

    out = _on_each_device(run, shape, ids is None)(q, k, v, ids)
    return jnp.swapaxes(out[:, :, :n_q, :d], 1, 2)


def _segments(visible, q, k, pad_q: int, pad_k: int) -> splash.SegmentIds | None:
    """Segment ids that separate packed samples and hide padded keys; None if not needed."""
    ids = [jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k)]
    needed = pad_k > 0
    if visible is not None and visible.q_segment is not None:
        ids, needed = [visible.q_segment, visible.k_segment], True
    if visible is not None and visible.k_valid is not None:
        ids, needed = [ids[0], jnp.where(visible.k_valid, ids[1], -1)], True
    if not needed:
        return None
    return splash.SegmentIds(
        jnp.pad(ids[0].astype(jnp.int32), ((0, 0), (0, pad_q)), mode="edge"),
        jnp.pad(ids[1].astype(jnp.int32), ((0, 0), (0, pad_k)), constant_values=-1),
    )


def _on_each_device(run, shape: tuple[int, ...], no_ids: bool):
    """``run`` on each device's batch and heads, if a mesh and axis rules are in force."""
    spec = partition((shape[0], shape[2]), ("act_batch", "act_all_heads"))
    if spec is None:
        return run
    ids = None if no_ids else splash.SegmentIds(PartitionSpec(spec[0]), PartitionSpec(spec[0]))
    return jax.shard_map(run, in_specs=(spec, spec, spec, ids), out_specs=spec, check_vma=False)


@dataclasses.dataclass(frozen=True)
class FrameMask(masks.Mask):
    """A key's frame is not later than the query's: ``Visibility.frame_size``, a block at a time."""

    size: tuple[int, int]
    frame_size: int
    prefix: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = (
            np.maximum((np.arange(n)[i] - self.prefix) // self.frame_size, -1)
            for n, i in zip(self.size, index, strict=True)
        )
        return columns[None, :] <= rows[:, None]
