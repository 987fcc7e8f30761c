"""The causal video autoencoder against an implementation that nobody here wrote, at random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.interop import diffusers_wan_vae, wan_vae

pytestmark = pytest.mark.torch
LEVELS = {"num_res_blocks": 1, "base_dim": 8, "dim_mult": [1, 2, 2, 2]}
KINDS = {
    "Wan2.1": LEVELS | {"z_dim": 4},
    "Wan2.2": LEVELS
    | {"decoder_base_dim": 12, "z_dim": 6, "is_residual": True}
    | {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
    "Qwen-Image": LEVELS | {"z_dim": 4},
}


def theirs(kind):
    """The other library's autoencoder, with all parameters random."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    name = "AutoencoderKLQwenImage" if kind == "Qwen-Image" else "AutoencoderKLWan"
    model = getattr(diffusers, name)(**KINDS[kind])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_encodes_and_decodes_as_diffusers_does(kind):
    torch = pytest.importorskip("torch")
    other = theirs(kind)
    state = {name: x.numpy() for name, x in other.state_dict().items()}
    model = wan_vae.describe(state, diffusers_wan_vae.NAMES, dict(other.config))
    form = config.resolve("interop", "diffusers_wan_vae")
    params = form.to_params(state, model, (1, 16, 16, 3))

    @jax.jit
    def run(x):
        mean, logvar = model.apply({"params": params}, x, method="encode")
        std = jnp.exp(logvar / 2)
        y = model.apply({"params": params}, mean + 0.5 * std, method="decode")
        return mean, std, jnp.clip(y, -1, 1)

    for frames in (1,) if kind == "Qwen-Image" else (1, 5, 9):
        x = np.random.default_rng(frames).uniform(-1, 1, (2, 3, frames, 16, 32)).astype(np.float32)
        with torch.no_grad():
            posterior = other.encode(torch.from_numpy(x)).latent_dist
            z = posterior.mean + 0.5 * posterior.std
            want = [posterior.mean, posterior.std, other.decode(z).sample]
        for got, right in zip(run(jnp.moveaxis(x, 1, -1)), want, strict=True):
            right = np.moveaxis(right.numpy(), 1, -1)
            assert right.std() > 0.05
            np.testing.assert_allclose(got, right, atol=1e-4)


@pytest.mark.parametrize("kind", ["Wan2.1", "Wan2.2"])
def test_what_is_written_is_what_diffusers_reads(kind):
    """Names and shapes of the published sizes, and the file beside them."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from dit import models
    from dit.interop import mapping
    from dit.models.wan_vae import build

    model = build(size=kind)
    entries = list(wan_vae.entries(model, diffusers_wan_vae.NAMES))
    found = mapping.layout(entries, models.abstract(model, (1, 16, 16, 3)))
    told = wan_vae.settings(model, (1, 16, 16, 3))
    with torch.device("meta"):
        other = diffusers.AutoencoderKLWan.from_config(told)
    want = {name: tuple(x.shape) for name, x in other.state_dict().items()}
    assert {name: x.shape for name, x in found.items()} == want
