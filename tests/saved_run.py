"""A run that was never trained: a tiny model's checkpoint, to draw from."""

import jax
import jax.numpy as jnp

from dit import rng
from dit.experiment import build
from dit.parallel.frozen import identities
from dit.training.checkpoint import Checkpoints
from dit.training.workdir import plain, write_config

TINY = {
    "steps": 1,
    "batch_size": 8,
    "model": {"name": "dit", "depth": 1, "width": 16, "heads": 2, "patch": 2},
    "path": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "samples": {"num": 4, "solver": "euler", "steps": 2},
}


def save(workdir, data, **changes):
    """The experiment of a config with this ``data``; its checkpoint of step 1 is in ``workdir``.

    The parameters are those of a model that has learnt a little: every layer does something.
    """
    experiment = build({**TINY, "data": data, **changes})
    params = jax.jit(experiment.init)(rng.root(0))

    def moved(scale):
        return jax.tree.map(
            lambda p: p + scale * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )

    workdir.mkdir(parents=True, exist_ok=True)
    config = plain(experiment.config)
    write_config(workdir, config)
    frozen = identities(experiment.frozen, None)
    checkpoints = Checkpoints(workdir, config, 1, example=experiment.example, frozen=frozen)
    checkpoints.save(1, {"params": moved(0.1), "ema": {"ema_10": moved(0.05)}}, {})
    checkpoints.close()
    return experiment
