"""Parameters that hide nothing behind zeros, made without compiling.

To initialize a network takes longer to compile than the network itself.
"""

import jax
import numpy as np


def random_params(init, noise=0.2, seed=0):
    """Random parameters of the shapes that ``init(key)`` gives, none zero; scales are about one."""
    draw = np.random.default_rng(seed)

    def leaf(path, p):
        base = 1.0 if path[-1].key == "scale" else 0.0
        values = base + noise * draw.standard_normal(p.shape)
        return jax.device_put(values.astype(p.dtype))  # jnp.asarray compiles, once for each shape

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0)))
