"""Pictures go by, a batch at a time on all devices, and collectors keep what scores need of them.

Each device passes its own pictures through the networks. Their features, which are small, travel to all
hosts, and every host sums them in the same order: all come to the same scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dit.evaluation.collect import Collector
from dit.evaluation.features import Features
from dit.evaluation.scores import Key, Need
from dit.parallel import fingerprints
from dit.parallel.mesh import replicated


class Featurise:
    """``put(x)`` takes the next batch ``b f h w c`` of ``samples``, uint8, on the devices of ``mesh``.

    What is past ``samples`` fills the last batch and is left out. ``collected``: what the ``needs`` of
    one set of pictures made, complete once all have gone by. ``digest()``: of their pixels in order,
    the same on any mesh.
    """

    def __init__(
        self, networks: Sequence[Features], needs: Sequence[Need], samples: int, mesh: Mesh
    ):
        self._makers = {need.key: need.make for need in needs}
        used = {name for name, *_ in self._makers}
        self._networks = {one.name: one for one in networks if one.name in used}
        whole = replicated(mesh)
        self._params = {
            name: _everywhere(one.params, whole) for name, one in self._networks.items()
        }
        self._run = jax.jit(self._outputs, out_shardings=whole)
        self.samples, self.seen = samples, 0
        self.collected: dict[Key, Collector] = {}
        self._digest = hashlib.sha256()

    def _outputs(self, params, x: Array):
        """The outputs that are needed, a row a frame, and each sample's fingerprint."""
        frames = x.reshape(-1, *x.shape[2:])
        if frames.shape[-1] == 1:
            frames = jnp.broadcast_to(frames, (*frames.shape[:-1], 3))
        found = {}
        for name, network in self._networks.items():
            outputs = network.outputs(params[name], frames)
            found |= {(name, k): v for k, v in outputs.items() if self._wanted(name, k)}
        return [found[key] for key in sorted(found)], fingerprints.of_rows(x)

    def _wanted(self, name: str, output: str) -> bool:
        return any(key[:2] == (name, output) for key in self._makers)

    def put(self, x: Array) -> None:
        """See the class. UserError for pictures of other than one or three channels."""
        count, frames = min(len(x), self.samples - self.seen), x.shape[1]
        for network in self._networks.values():
            network.check(x.shape[-1])
        outputs, words = self._run(self._params, x)
        names = sorted({key[:2] for key in self._makers})
        ids = np.repeat(np.arange(self.seen, self.seen + count), frames)
        for (name, output), value in zip(names, outputs, strict=True):
            rows = np.asarray(value)[: len(ids)]
            for key, make in self._makers.items():
                if key[:2] == (name, output):
                    if key not in self.collected:
                        self.collected[key] = make(self.samples, rows.shape[1], frames)
                    self.collected[key].add(ids, rows)
        self._digest.update(np.asarray(words)[:count].tobytes())
        self.seen += count

    def digest(self) -> str:
        """Sixteen hex digits."""
        return self._digest.hexdigest()[:16]


def _everywhere(params, whole):
    """The parameters on all devices."""

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, whole, x.__getitem__)

    return jax.tree.map(put, params)
