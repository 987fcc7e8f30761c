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
    """What the ``needs`` of a set of pictures ask of the networks, compiled once for all sets."""

    def __init__(self, networks: Sequence[Features], needs: Sequence[Need], mesh: Mesh):
        self.makers = {need.key: need.make for need in needs}
        used = {name for name, *_ in self.makers}
        self.networks = {one.name: one for one in networks if one.name in used}
        self.mesh, self.outputs = mesh, sorted({key[:2] for key in self.makers})
        self.run = jax.jit(self._outputs, out_shardings=replicated(mesh))

    def _outputs(self, params, x: Array):
        """The outputs that are needed, a row a frame, and each sample's fingerprint."""
        frames = x.reshape(-1, *x.shape[2:])
        if frames.shape[-1] == 1:
            frames = jnp.broadcast_to(frames, (*frames.shape[:-1], 3))
        found = {}
        for name, network in self.networks.items():
            found |= {(name, k): v for k, v in network.outputs(params[name], frames).items()}
        return [found[key] for key in self.outputs], fingerprints.of_rows(x)


class Passing:
    """``put(x)`` takes the next batch ``b f h w c`` of ``samples``, uint8, on the devices of the mesh.

    What is past ``samples`` fills the last batch and is left out. ``collected``: what the needs made,
    complete once all have gone by. ``digest()``: of their pixels in order, the same on any mesh. The
    networks are on the devices for as long as this is kept.
    """

    def __init__(self, featurise: Featurise, samples: int):
        whole, self._of = replicated(featurise.mesh), featurise
        self._params = {
            name: _everywhere(one.params, whole) for name, one in featurise.networks.items()
        }
        self.samples, self.seen = samples, 0
        self.collected: dict[Key, Collector] = {}
        self._digest = hashlib.sha256()

    def put(self, x: Array) -> None:
        """See the class. UserError for pictures of other than one or three channels."""
        count, frames = min(len(x), self.samples - self.seen), x.shape[1]
        for network in self._of.networks.values():
            network.check(x.shape[-1])
        outputs, words = self._of.run(self._params, x)
        ids = np.repeat(np.arange(self.seen, self.seen + count), frames)
        for output, value in zip(self._of.outputs, outputs, strict=True):
            rows = np.asarray(value)[: len(ids)]
            for key, make in self._of.makers.items():
                if key[:2] == output:
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
