"""Scaled dot-product attention: one function, its kernel chosen by platform.

``softmax(q k^T / sqrt(d)) v`` (Vaswani et al. 2017), the softmax in float32. The kernels are files
in ``kernels/``: ``xla`` (plain, and the only one for forward-mode derivatives), ``cpu``, ``cudnn``,
``splash`` and ``ring``. Who sees whom is one predicate over integer arrays; without any there is no
mask. Where a mesh splits the tokens (``context``), they are exchanged for heads and back by two
all-to-alls (DeepSpeed-Ulysses, Jacobs et al. 2023), or with fewer heads than devices go round a ring.
"""

from __future__ import annotations

import contextlib
import importlib

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dit.config import suggest
from dit.models.activations import WHOLE_HEADS, WHOLE_LENGTH, constrain, mesh_axes, shards
from dit.models.remat import mark_attention
from dit.types import UserError

KERNELS = ("auto", "xla", "cpu", "cudnn", "splash", "ring")
LONG = 2048  # tokens from which a TPU's splash kernel is worth its set-up


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``: that of ``jax.default_device``, else the default backend."""
    device = jax.config.jax_default_device
    name = device if isinstance(device, str) else getattr(device, "platform", None)
    name = name or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


@struct.dataclass
class Visibility:
    """Which keys a query sees: those for which every part that is given says yes.

    ``q_segment``, ``k_segment``: equal (packed samples). ``k_valid``: true (padding).
    ``frame_size``, ``prefix``: tokens after the first ``prefix`` lie in frames of ``frame_size``
    tokens, and a key's frame is not later than the query's (the prefix is before all frames).
    ``q_frame``, ``k_frame``: the frame of every token, where they lie in no such order.
    ``q_group``, ``k_group``: a key with a group, 0 or more, is seen by the queries of that group alone.
    """

    q_segment: Int[Array, "b q"] | None = None
    k_segment: Int[Array, "b k"] | None = None
    k_valid: Bool[Array, "b k"] | None = None
    q_frame: Int[Array, "b q"] | None = None
    k_frame: Int[Array, "b k"] | None = None
    q_group: Int[Array, "b q"] | None = None
    k_group: Int[Array, "b k"] | None = None
    frame_size: int | None = struct.field(pytree_node=False, default=None)
    prefix: int = struct.field(pytree_node=False, default=0)

    def frames(self, q: int, k: int) -> tuple[Int[Array, "_ q"], Int[Array, "_ k"]] | None:
        """The frames of the queries and of the keys, ``b`` or 1 in front; -1 in the prefix.

        None where nothing depends on them.
        """
        if self.q_frame is not None:
            return self.q_frame, self.k_frame
        if self.frame_size is None:
            return None
        frames = [jnp.maximum((jnp.arange(n) - self.prefix) // self.frame_size, -1) for n in (q, k)]
        return frames[0][None], frames[1][None]

    def after(self, prefix: int) -> Visibility:
        """The same with so many tokens put before all others, which see only each other."""
        if self.q_frame is None:
            return self.replace(prefix=prefix)
        frame = jnp.pad(self.q_frame, ((0, 0), (prefix, 0)), constant_values=-1)
        return self.replace(q_frame=frame, k_frame=frame)

    def only_valid(self) -> bool:
        """Whether nothing but ``k_valid`` hides a key."""
        ordered = self.q_frame is not None or self.frame_size is not None
        return self.q_segment is None and not ordered and self.q_group is None

    def dense(self, q: int, k: int) -> Bool[Array, "b q k"] | None:
        """The predicate on all pairs, ``b`` or 1 in front; None where everything is visible."""
        parts = []
        if self.q_segment is not None:
            parts.append(self.q_segment[:, :, None] == self.k_segment[:, None, :])
        if self.k_valid is not None:
            parts.append(jnp.broadcast_to(self.k_valid[:, None, :], (len(self.k_valid), q, k)))
        if self.q_group is not None:
            own = self.q_group[:, :, None] == self.k_group[:, None, :]
            parts.append(own | (self.k_group < 0)[:, None, :])
        frames = self.frames(q, k)
        if frames is not None:
            parts.append(frames[1][:, None, :] <= frames[0][:, :, None])
        mask = None
        for part in parts:
            mask = part if mask is None else mask & part
        return mask


def attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    visible: Visibility | None = None,
    implementation: str = "auto",
) -> Float[Array, "b q h d"]:
    """Attend from ``q`` to ``k`` and ``v``. A query that sees no key at all has no defined output.

    What comes out, or for splash what its backward pass needs, is named for ``models/remat.py``.
    Raises UserError for an unknown kernel, one that cannot run here, and (at once under ``jax.jvp``,
    from ``apply_fn`` where the call is inside a scan) for forward mode through a fused kernel.
    """
    check(implementation)
    if implementation == "auto":
        implementation = choose(q, k, visible)
    kernel = importlib.import_module(f"dit.models.kernels.{implementation}")
    with forward_mode_message():
        if implementation == "ring":
            return mark_attention(kernel.attend(q, k, v, visible))
        heads = q.shape[2]
        extra = -heads % shards("act_all_heads") if mesh_axes("act_length") else 0
        q, k, v = (
            constrain(jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))), *WHOLE_LENGTH)
            for x in (q, k, v)
        )
        out = constrain(kernel.attend(q, k, v, visible), *WHOLE_LENGTH)
        out = constrain(out[:, :, :heads], *WHOLE_HEADS)
        return out if implementation == "splash" else mark_attention(out)  # it names its own


def check(implementation: str) -> None:
    """Raise UserError for a kernel that does not exist."""
    if implementation not in KERNELS:
        raise UserError(
            f"no attention kernel {implementation!r}: {suggest(implementation, list(KERNELS))}"
        )


def choose(q: Array, k: Array, visible: Visibility | None = None) -> str:
    """The kernel for these arrays on this platform and mesh."""
    where = platform()
    if mesh_axes("act_length") and q.shape[2] < shards("act_all_heads"):
        return "ring"
    if where == "gpu" and q.dtype.itemsize == 2 and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return "cudnn"
    if where == "tpu" and min(q.shape[1], k.shape[1]) >= LONG:
        return "splash" if visible is None or visible.q_frame is None else "ring"
    return "cpu" if where == "cpu" else "xla"


@contextlib.contextmanager
def forward_mode_message():
    """Turn JAX's complaint about forward mode through a fused kernel into a UserError."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise UserError(
            "forward-mode differentiation (jax.jvp) does not work through a fused attention kernel; "
            "build the model with attention='xla'"
        ) from error
