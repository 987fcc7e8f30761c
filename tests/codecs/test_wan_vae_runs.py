"""From clips to clips by the command line: an autoencoder that is trained here, and one from files."""

import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_run
import wan_vae_cases as cases
from PIL import Image

from dit import config, evaluate, media, prepare, sample, train
from dit.data import records
from dit.parallel.frozen import place

pytestmark = pytest.mark.slow
WORLD = (
    *("--config=configs/world_autoencoder.py", "--config.batch_size=8", "--config.data.frames=5"),
    *("--config.data.size=16", "--config.model.width=4", "--config.model.latent_channels=4"),
    *("--config.schedule.name=constant", "--config.log.every=1", "--config.samples.every=0"),
    *("--config.samples.num=2", "--config.steps=2"),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of animations."""
    root, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for i in range(12):
        pages = [Image.fromarray(x) for x in draw.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)]
        how = {"save_all": True, "append_images": pages[1:], "duration": 125, "lossless": True}
        pages[0].save(root / f"{i}.webp", **how)
    return root


def test_clips_become_latents_that_a_model_learns_and_samples_become_clips(clips, tmp_path):
    cases.save(tmp_path / "vae", "shortcuts")
    spec = f"wan_vae:path={tmp_path / 'vae'}"
    given = [f"--source={clips}", "--size=16", "--frames=5", "--held-out=0.2", "--workers=0"]
    out = tmp_path / "records"
    prepare.main([*given, f"--codec={spec}", "--encoded=float32", f"--out={out}"])
    latents = records.read_manifest(out)["fields"]["latents"]
    assert (latents["frames"], latents["sizes"], latents["channels"]) == (2, [[2, 2]], 5)
    codec = config.resolve("codecs", "wan_vae", path=str(tmp_path / "vae"))
    params = place({"codec": codec.weights}, None)["codec"]
    prepare.main([*given, f"--out={tmp_path / 'pixels'}"])
    stored, pixels = (
        config.resolve("data.sources", "records", path=str(path)).held_out[0]["x"]
        for path in (out, tmp_path / "pixels")
    )
    want = jax.jit(codec.moments)(params, pixels[None])[0][0]
    np.testing.assert_allclose(stored, want, atol=1e-4)

    where, file = f"--workdir={tmp_path / 'run'}", tmp_path / "config.py"
    whole = {**saved_run.TINY, "data": {"name": "records", "path": str(out)}}
    whole["codec"] = {"name": "wan_vae", "path": str(tmp_path / "vae"), "chunk": 1}
    whole["schedule"] = {"name": "constant"}
    file.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({whole!r})\n"
    )
    assert train.main([f"--config={file}", where]) == 0
    sample.main([where, "--num=2", f"--out={tmp_path / 'clip.mp4'}"])
    with av.open(str(tmp_path / "clip.mp4")) as video:
        assert len(list(video.decode(video=0))) == 5
    sample.main([where, "--num=2", f"--out={tmp_path / 'clip.npz'}"])
    assert np.load(tmp_path / "clip.npz")["samples"].shape == (2, 5, 16, 16, 3)


@pytest.mark.exhaustive
def test_one_is_trained_here_drawn_judged_and_is_a_codec(tmp_path):
    assert train.main([*WORLD, f"--workdir={tmp_path}"]) == 0
    with Image.open(tmp_path / "samples" / "step_0000002.gif") as image:
        assert image.n_frames == 5
    assert "reconstructions" in media.read_recipe(tmp_path / "samples" / "step_0000002.png")["rows"]
    pairs = tmp_path / "pairs.mp4"
    evaluate.main([f"--workdir={tmp_path}", "--num=4", f"--pairs={pairs}"])
    with av.open(str(pairs)) as video:
        assert len(list(video.decode(video=0))) == 5
    figures = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert figures["ratio"] == 5 * 16 * 16 * 3 / (2 * 4 * 4 * 4)
    assert 0 < figures["psnr"] < 100
    codec = config.resolve("codecs", "wan_vae", path=str(tmp_path))
    params = place({"codec": codec.weights}, None)["codec"]
    world = config.resolve("data.sources", "world", frames=5, size=16)
    x = np.stack([world.train[i]["x"] for i in range(16)])
    z = np.asarray(jax.jit(codec.encode)(params, x, jax.random.key(0), jnp.arange(len(x))))
    assert z.shape == (16, 2, 4, 4, 4)
    np.testing.assert_allclose(z.reshape(-1, 4).std(0), 1, atol=0.3)
