"""Two convolutions of every frame, without a condition: as little as a network can be."""

import flax.linen as nn
from jax.nn import initializers

from dit.models.network import Network


class Toy(Network):
    width: int
    in_channels: int

    @nn.compact
    def __call__(self, x, t, cond):
        def conv(features, name, *axes, stride=1):
            boxed = nn.with_logical_partitioning
            kernel = boxed(initializers.xavier_uniform(), ("spatial", "spatial", *axes))
            bias = boxed(initializers.zeros, axes[-1:])
            options = {"strides": stride, "kernel_init": kernel, "bias_init": bias, "name": name}
            return nn.Conv(features, (3, 3), **options)

        h = nn.silu(conv(self.width, "embed", "patch", "embed")(x))
        h = nn.silu(conv(2 * self.width, "down", "embed", "mlp", stride=2)(h))
        h = h.repeat(2, axis=2).repeat(2, axis=3)
        h = h * (1 + t.reshape(*t.shape, *(1,) * (h.ndim - t.ndim)))
        return conv(self.in_channels, "final", "mlp", "patch")(h)

    def macs(self, shape, context_len=0, level="sample"):
        f, h, w, c = shape
        return {
            "embed": f * h * w * 9 * c * self.width,
            "down": f * h * w // 4 * 9 * self.width * 2 * self.width,
            "final": f * h * w * 9 * 2 * self.width * c,
        }


def build(*, width: int = 32, in_channels: int) -> Toy:
    return Toy(width, in_channels)
