"""A run that was never trained: a tiny model's checkpoint, to draw from."""

from random_params import random_params

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
    seed = experiment.config.seed
    params, average = (random_params(experiment.init, noise, seed) for noise in (0.2, 0.15))
    workdir.mkdir(parents=True, exist_ok=True)
    config = plain(experiment.config)
    write_config(workdir, config)
    frozen = identities(experiment.frozen, None)
    checkpoints = Checkpoints(workdir, config, 1, example=experiment.example, frozen=frozen)
    checkpoints.save(1, {"params": params, "ema": {"ema_10": average}}, {})
    checkpoints.close()
    return experiment
