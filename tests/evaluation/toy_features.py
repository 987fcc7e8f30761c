"""A feature network of a few sums, in place of those that take seconds a picture."""

import jax.numpy as jnp
import numpy as np

from dit import scoring
from dit.evaluation.features import Features

WEIGHTS = np.random.default_rng(0).normal(size=(192, 6)).astype(np.float32)


def apply(params, x):
    x = x.reshape(len(x), -1) / 255
    found = jnp.tanh(0.1 * x @ params["w"])
    return {"features": found, "logits": 3 * found, "spatial": found[:, :2]}


def network(name="inception_v3"):
    return Features(name, {"w": WEIGHTS}, apply, side=8, origin="toy", others=("logits", "spatial"))


def install():
    """For the command line of this process: ``--features=NAME`` is the toy of that name."""
    scoring.networks = lambda names: tuple(network(name) for name in names)
