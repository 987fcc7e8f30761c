"""The real thing, shrunken: the DiT of the digits config through the whole of training."""

import pathlib

import jax
import numpy as np
import pytest

from dit.experiment import build as build_experiment
from dit.experiment import load_config
from dit.training.logging import TIMING, read_metrics
from dit.training.loop import train
from dit.training.program import program

pytestmark = pytest.mark.slow  # the loop's and the step's own tests are quick
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
SMALL = {
    "model.depth": 2,
    "model.width": 32,
    "model.heads": 4,
    "batch_size": 16,
    "schedule.name": "constant",
    "log.every": 2,
    "samples.every": 0,
}


def build(steps=6, **more):
    return build_experiment(load_config(str(CONFIG), {**SMALL, "steps": steps, **more}))


def run(workdir, experiment, devices=1):
    outcome = train(
        experiment,
        workdir,
        batches=experiment.batches(),
        devices=jax.devices()[:devices],
        progress=False,
    )
    rows = [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(workdir)]
    return jax.device_get(outcome.state), rows


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run(tmp_path_factory.mktemp("straight"), build())


def test_six_steps_are_four_and_two_bit_for_bit(straight, tmp_path):
    run(tmp_path, build(4))
    state, rows = run(tmp_path, build(6))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, straight[0]))
    assert rows == straight[1]


def test_a_step_is_traced_once_and_compiled_while_the_rest_is_made_ready(tmp_path):
    experiment, seen = build(2), []

    def listen(event, seconds, fun_name="", **_):
        seen.append((event.rsplit("/", 1)[-1], fun_name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, experiment)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    steps = [event for event, name in seen if name == "train_step"]
    assert steps.count("jaxpr_trace_duration") == 1, seen


def test_eight_devices_give_the_losses_of_one(straight, tmp_path):
    experiment = build(**{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
    _, rows = run(tmp_path, experiment, devices=8)
    for a, b in zip(rows, straight[1], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-2)


def test_every_large_array_of_the_state_is_sharded():
    experiment = build(**{"mesh.data": 2, "mesh.fsdp": 4})
    made_program = program(experiment, experiment.batches(), jax.devices()[:8])
    leaves = zip(
        jax.tree.leaves(made_program.abstract), jax.tree.leaves(made_program.shardings), strict=True
    )
    large = [s.shard_shape(x.shape) != x.shape for x, s in leaves if x.size >= 512]
    assert len(large) > 30
    assert all(large)
