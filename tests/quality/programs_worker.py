"""What the shipped programs of configs compute, and the plain ``jax.jit`` of the same functions.

The plain ones are compiled with next to no optimisation, as programs are that run once: in a third of
the time, and whatever an optimisation got wrong would not be wrong in both.

    python programs_worker.py OUT.npz CONFIG [CONFIG ...]

``OUT.npz`` holds ``config|shipped|leaf`` and ``config|plain|leaf``: the loss and the optimizer's moments
after one train step, which are the gradient and its square, and the first samples. A process of its
own, so that the instruction set and the compilation cache can be chosen.
"""

import os
import pathlib
import sys
import tempfile

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from shrunken import CONFIGS, shrunken

from dit.draw import Sampler
from dit.experiment import build
from dit.parallel import compiler
from dit.parallel.frozen import place
from dit.recipe import recipe_from
from dit.training.program import program


def stirred(params):
    """Parameters with noise on all of them: gates that start at zero would hide what they gate."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.05) * rng.standard_normal(x.shape, "f"), params)


def flat(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in paths}


def plain(fn, **kwargs):
    """``jax.jit``, with what is left of XLA's passes where least is to be optimised."""
    return jax.jit(fn, compiler_options=compiler.options("cpu", once=True), **kwargs)


def train_step(experiment):
    """``(shipped, plain)``: the loss and the moments after one step from the same state."""
    batches = experiment.batches()
    parts = program(experiment, batches, jax.devices()[:1])
    batch = jax.device_put(next(batches), parts.batch_sharding)
    batches.close()
    key = jax.random.key(experiment.config.seed)
    results = []
    state = plain(parts.create, out_shardings=parts.shardings)(key)
    first = jax.device_get(state.replace(params=stirred(state.params)))
    for step in (parts.train_step, plain(parts.train_step.__wrapped__)):
        state = jax.device_put(first, parts.shardings)
        after, metrics = step(state, batch, key)
        moments = [
            x for x in jax.tree.leaves(after.opt_state) if np.issubdtype(x.dtype, np.floating)
        ]
        results.append(flat({"metrics": metrics, "moments": moments}))
    return results


def samples(experiment):
    """``(shipped, plain)``: what the sampler draws, and its function under plain ``jax.jit``."""
    guided = experiment.config.objective.get("condition_dropout", 0) > 0
    settings = experiment.config.samples.to_dict()
    settings |= {"num": 4, "steps": 3, "batch": 4, "guidance": 2 if guided else 1}
    if settings.get("prompts"):  # of which small encoders read the beginning
        settings["prompts"] = tuple(prompt[:12] for prompt in settings["prompts"])
    sampler = Sampler(experiment, recipe_from(settings, experiment.num_classes))
    params = stirred(plain(experiment.init)(jax.random.key(0)))
    batch = {"id": np.arange(4), "label": sampler.labels, **sampler.words}
    batch = {name: x for name, x in batch.items() if x is not None}
    frozen = place(experiment.sampled_with, None)
    shipped = sampler.jitted(None)(params, None, batch, frozen)[0]
    expected = plain(sampler.run)(params, None, batch, frozen)[0]
    return [{"samples": np.asarray(x, np.float32)} for x in (shipped, expected)]


def main():
    out, *names = sys.argv[1:]
    found = {}
    # XLA cannot read float16 on a CPU without F16C, of which the last were sold in 2012.
    latents = np.float32 if "SSE4_2" in os.environ.get("XLA_FLAGS", "") else np.float16
    for file in CONFIGS:
        if names and file.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            experiment = build(shrunken(file, pathlib.Path(folder), latents))
            parts = (train_step,) if experiment.process is None else (train_step, samples)
            for part in parts:
                for kind, arrays in zip(("shipped", "plain"), part(experiment), strict=True):
                    found |= {f"{file.stem}|{kind}|{leaf}": x for leaf, x in arrays.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
