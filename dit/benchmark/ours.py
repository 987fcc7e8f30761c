"""Our train step and sampler, as the training loop and the command line run them, to be timed."""

from __future__ import annotations

from collections.abc import Callable

import jax

from dit import rng
from dit.draw import Recipe, Sampler
from dit.experiment import Experiment, build
from dit.scaling.flops import forward_flops, training_flops
from dit.training.program import program


def experiment(
    *, size: str, batch: int, side: int, channels: int, dtype: str, remat: str
) -> Experiment:
    """The paper's recipe at a size: eps on the DDPM path, AdamW without decay, one average."""
    shape = (1, side, side, channels)
    return build(
        {
            "steps": 1,
            "batch_size": batch,
            "data": {"name": "noise", "shape": shape, "num_classes": 1000},
            "codec": {"name": "latent", "scale": 1.0},
            "model": {"name": "dit", "size": size, "remat": remat},
            "precision": {"compute": dtype},
            "path": {"name": "ddpm"},
            "prediction": {"name": "eps"},
            "times": {"name": "uniform", "levels": 1000},
            "optimizer": {"name": "adamw", "lr": 1e-4},
        }
    )


def train_step(experiment: Experiment) -> tuple[Callable[[], float], int]:
    """``(step, flops)``: a step on a fixed batch, over all devices; it returns the loss."""
    batches = experiment.batches()
    parts = program(experiment, batches)
    batch = jax.device_put(next(batches), parts.batch_sharding)
    batches.close()
    key = jax.device_put(rng.root(0), parts.replicated)
    state = jax.jit(parts.create, out_shardings=parts.shardings)(key)

    def step() -> float:
        nonlocal state
        state, metrics = parts.train_step(state, batch, key)
        return float(metrics["loss"])

    flops = training_flops(experiment.model, experiment.shape, level=experiment.level)
    return step, flops * experiment.config.batch_size


def sampler(
    experiment: Experiment, *, batch: int, steps: int, guidance: float
) -> tuple[Callable[[], float], int]:
    """``(draw, flops)``: a batch of images by DDIM; the FLOPs leave out what is not the network."""
    recipe = Recipe(
        labels=tuple(range(batch)),
        solver="ddim",
        grid="ddpm",
        steps=steps,
        guidance=str(guidance),
        batch=batch,
    )
    draw, params = Sampler(experiment, recipe), jax.jit(experiment.init)(rng.root(0))
    nfe = draw(params).nfe
    flops = forward_flops(experiment.model, experiment.shape) * batch * nfe
    return (lambda: draw(params).seconds), flops
