"""A LoRA beside MMDiT and Wan by command: trained, gone on with, written alone and read back."""

import captions
import jax
import numpy as np
import pytest
from models_cases import params_of
from weights_files import write_safetensors

from dit import config, convert, experiment, train
from dit.interop import folder
from dit.interop import lora as layouts
from dit.training.checkpoint import read_meta

NETWORKS = {
    "sd3": (
        "diffusers_sd3",
        {
            **{"size": "SD3.5-medium", "depth": 3, "dual_depth": 1, "position_table": (6, 4)},
            "pooled_dim": 5,
        },
    ),
    "flux": (
        "diffusers_flux",
        {
            **{"size": "FLUX.1-dev", "depth": 1, "single_depth": 2, "rope_axes": (2, 2, 4)},
            "pooled_dim": 5,
        },
    ),
    "wan": ("diffusers_wan", {"name": "wan", "size": "Wan2.1-T2V-1.3B", "depth": 2}),
}
SIZES = {"width": 16, "heads": 2, "context_dim": 7}


def settings(name):
    """The config of a network that is told what an encoder said."""
    model = {"name": "mmdit", **NETWORKS[name][1], **SIZES}
    return {
        "data": {"name": "encoded", "guidance": name == "flux", "pooled": model.get("pooled_dim")},
        "model": model,
        "path": {"name": "linear", "time_scale": 1000.0},
        "prediction": {"name": "velocity"},
        "steps": 2,
        "batch_size": 8,
        "optimizer": {"lr": 0.01},
        "schedule": {"name": "constant"},
        "samples": {"every": 0, "num": 0},
        "ema": {"half_lives": (1.0,)},
        "checkpoint": {"every": 1},
    }


def weights(file):
    return {k: np.asarray(v) for k, v in folder.opened(str(file))[0].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_trained_gone_on_with_written_and_read_back(name, tmp_path):
    format = NETWORKS[name][0]
    told = settings(name)
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {told!r}\n")
    with captions.installed():
        made = experiment.build(told)
        params = jax.tree.map(np.asarray, params_of(made.model, made.shape, noise=0.1))
        state = config.resolve("interop", format).to_state(params, made.model, made.shape)
        write_safetensors(tmp_path / "whole.safetensors", state)
        base, source = f"{tmp_path}/base", [f"--from={format}", f"--config={tmp_path}/config.py"]
        convert.main([*source, f"--weights={tmp_path}/whole.safetensors", f"--workdir={base}"])

        def run(to, steps):
            asked = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path / to}"]
            asked += ["--config.lora.rank=2", f"--config.init_from.path={base}"]
            assert train.main([*asked, "--config.lora.alpha=3", f"--config.steps={steps}"]) in (
                0,
                None,
            )
            return read_meta(tmp_path / to)["arrays"]

        arrays = run("lora", 2)
        run("twice", 1)
        assert run("twice", 2) == arrays
        ours = [n for n in arrays if n.startswith(("params/", "ema/"))]
        optimised = [
            n for n in arrays if n.startswith("opt_state/") and n.split("/")[-1] != "count"
        ]
        assert {n.split("/")[-1] for n in ours} == {"lora_a", "lora_b"}
        kept = [n for n in optimised if "lora_" in n]
        assert len(kept) == 2 * len([n for n in ours if n.startswith("params/")])

        def write(run, to, *more):
            convert.main(
                [f"--to={format}", f"--workdir={tmp_path / run}", f"--out={tmp_path / to}", *more]
            )
            return weights(tmp_path / to)

        file = write("lora", "alone")
        merged = write("lora", "merged", "--merge")
        asked = [f"--weights={tmp_path}/alone", f"--base={base}", f"--workdir={tmp_path}/back"]
        convert.main([f"--from={format}", *asked])
        back = write("back", "again", "--merge")
    changed = set()
    for key, value in merged.items():
        np.testing.assert_allclose(back[key], value, atol=1e-6, err_msg=key)
        module = f"transformer.{key.removesuffix('.weight')}"
        if module + layouts.A in file:
            delta = 3 / 2 * file[module + layouts.B] @ file[module + layouts.A]
            np.testing.assert_allclose(state[key] + delta, value, atol=1e-6, err_msg=key)
            changed |= {key} if np.abs(delta).max() > 1e-4 else set()
        else:
            np.testing.assert_array_equal(state[key], value, err_msg=key)
    assert changed
