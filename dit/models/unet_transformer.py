"""What a U-Net of latent diffusion has in place of attention: a transformer on the pixels of a frame.

``x + out(blocks(in(norm(x))))`` (Rombach et al. 2022, appendix E.2.1), where a block is self-attention
within the frame, cross-attention to a text and a GEGLU MLP, each behind a LayerNorm and added. Stable
Diffusion 1 and 2 have one block wherever they have attention, SDXL up to ten (Podell et al. 2023).
"""

from __future__ import annotations

import flax.linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from dit.models import stack
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.layers import Linear, Mlp, Norm, mlp_macs, zeros
from dit.models.multihead import CrossAttention, SelfAttention, self_macs
from dit.models.stack import Stage
from dit.models.unet_blocks import PIXELS, Conv, GroupNorm, Style
from dit.types import Params

GROUP_EPS, LAYER_EPS = 1e-6, 1e-5
RATIO = 4.0  # of the MLP's hidden size to the width
BIAS = (False, True)  # none of queries, keys and values


@struct.dataclass
class Told:
    """The text of every sample, if there is one; ``mask``: true on its real tokens (None: all)."""

    context: Float[Array, "b m e"] | None = None
    mask: Bool[Array, "b m"] | None = None


class TransformerBlock(nn.Module):
    """One block on the frames of all samples, those of a sample next to each other."""

    heads: int
    dtype: str
    kernel: str

    @nn.compact
    def __call__(self, x: Float[Array, "k n d"], c: Told) -> Float[Array, "k n d"]:
        how = {"kernel": self.kernel, "bias": BIAS}
        norm = Norm("layer", True, LAYER_EPS, name="norm_attention")
        attend = SelfAttention(self.heads, self.dtype, name="attention", **how)
        x = (x + attend(norm(x))).astype(x.dtype)
        if c.context is not None:
            norm = Norm("layer", True, LAYER_EPS, name="norm_cross")
            read = CrossAttention(self.heads, self.dtype, source="context", name="cross", **how)
            visible = None if c.mask is None else Visibility(k_valid=c.mask)
            clips = norm(x).reshape(len(c.context), -1, x.shape[-1])
            x = (x + read(clips, c.context, visible).reshape(x.shape)).astype(x.dtype)
        norm = Norm("layer", True, LAYER_EPS, name="norm_mlp")
        mlp = Mlp("geglu", RATIO, self.dtype, name="mlp")
        return (x + mlp(norm(x))).astype(x.dtype)


class SpaceTransformer(nn.Module):
    """``depth`` blocks on every frame, their parameters stacked. What is added is zero at first."""

    depth: int
    heads: int
    style: Style
    remat = "none"  # a U-Net's layer is kept or computed again as a whole

    @property
    def unroll(self) -> str | int | bool:
        """How many blocks are one step of the loop over them."""
        return self.style.unroll

    def setup(self):
        style = self.style
        self.norm = GroupNorm(style.groups, GROUP_EPS)
        self.blocks = TransformerBlock(self.heads, style.dtype, style.attention, parent=None)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        context: Float[Array, "b m e"] | None,
        mask: Bool[Array, "b m"] | None,
    ) -> Float[Array, "b f h w c"]:
        b, f, h, w, c = x.shape
        y = self.project("in", self.norm(x)).reshape(b * f, h * w, c)
        y = stack.run(self, stages(self.depth), {"image": y}, Told(context, mask))["image"]
        y = self.project("out", y.reshape(x.shape), zeros)
        return constrain((x + y).astype(x.dtype), *PIXELS)

    @nn.nowrap
    def project(self, name: str, x: Float[Array, "b f h w c"], init=None):
        """A map of every pixel: a matrix, or a convolution of 1x1, whose kernel has two axes more."""
        style, axes = self.style, ("embed", "embed_out")
        if style.linear_projection:
            return Linear(x.shape[-1:], axes, style.dtype, init, name=name)(x)
        more = {} if init is None else {"kernel_init": init}
        return Conv(x.shape[-1], axes, style.dtype, size=1, pad=(0, 0), name=name, **more)(x)


def stages(depth: int) -> tuple[Stage, ...]:
    """The one stage of a transformer's blocks."""
    return (Stage("blocks", depth, ("image",)),)


def unstack(params: Params, depth: int) -> Params:
    """The parameters of a transformer with each block by itself; see ``models.unstack``."""
    return stack.unstack(params, stages(depth))


def transformer_macs(
    depth: int, frames: int, n: int, d: int, context: tuple[int, int] | None
) -> dict[str, int]:
    """Multiply-adds by part, for frames of ``n`` pixels; ``context``: tokens and their channels."""
    parts = {
        "projection": 2 * frames * n * d * d,
        "attention": depth * frames * self_macs(n, d),
        "mlp": depth * mlp_macs("geglu", d, RATIO, frames * n),
    }
    if context is not None:
        m, e = context
        parts["cross"] = depth * (2 * frames * n * d * (d + m) + 2 * m * e * d)
    return parts
