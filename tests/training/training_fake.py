"""A stand-in for ``dit.experiment.Experiment`` around the tiny model, for tests of the loop."""

import types

from ml_collections import ConfigDict

from dit import init_from
from dit.diffusion.times import uniform
from dit.diffusion.weights import none
from dit.objectives.constant import best_constant
from dit.training import ema
from dit.training.learning import moments

DEFAULTS = {
    "seed": 0,
    "steps": 20,
    "batch_size": 16,
    "optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1, "clip": 1.0, "accumulate": 1},
    "schedule": {"name": "constant"},
    "ema": {"half_lives": (10.0, 100.0)},
    "mesh": {"data": -1},
    "checkpoint": {"every": 5, "keep": 3},
    "log": {"every": 4, "wandb": False},
    "samples": {"every": 0},
}


class Experiment:
    def __init__(self, tiny, changes=None):
        self.config = ConfigDict(DEFAULTS)
        self.config.update(changes or {})
        self.example = None
        self.codec = types.SimpleNamespace(encode=tiny.encode)
        self.frozen = {}
        self.process, self.loss, self.apply_fn = tiny.PROCESS, tiny.LOSS, tiny.apply_fn
        self.parts = (self.apply_fn, self.process, self.codec.encode)
        self.init, self.axes = tiny.init_params, tiny.AXES

    def constant(self, batches):
        found = moments(batches, self.codec.encode)
        return best_constant(self.process, uniform.build(), none.build(), found)

    def initial(self, target):
        return init_from.NOTHING

    def settings(self, section):
        values = self.config[section].to_dict()
        if section == "ema":
            return ema.build(**values)
        return values if section == "mesh" else types.SimpleNamespace(**values)
