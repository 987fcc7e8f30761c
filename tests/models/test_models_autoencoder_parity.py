"""The autoencoder against an implementation that nobody here wrote, from its own random weights."""

import autoencoder_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.interop import autoencoder_diffusers as layout
from dit.interop.autoencoder import describe

pytestmark = pytest.mark.torch
SHAPES = [(2, 16, 16), (1, 24, 8), (1, 8, 40)]


def theirs(kind):
    """The other library's autoencoder of this kind."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    ours = cases.KINDS[kind]
    levels = range(len(ours["widths"]))
    down = ours.get("attention_levels", ())
    up = ours.get("decoder_attention_levels", down)
    given = {
        "block_out_channels": ours["widths"],
        "down_block_types": tuple(f"{'Attn' * (i in down)}DownEncoderBlock2D" for i in levels),
        "up_block_types": tuple(f"{'Attn' * (i in up)}UpDecoderBlock2D" for i in levels[::-1]),
        "layers_per_block": ours["depth"],
        "norm_num_groups": ours["norm_groups"],
        "latent_channels": ours["latent_channels"],
    }
    if kind == "flux2":
        more = {"decoder_block_out_channels": ours["decoder_widths"]}
        model = diffusers.AutoencoderKLFlux2(**given, **more)
    else:
        quant = {name: ours.get(name.removeprefix("use_"), True) for name in QUANT}
        model = diffusers.AutoencoderKL(**given, **quant)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


QUANT = ("use_quant_conv", "use_post_quant_conv")


@pytest.mark.parametrize("kind", cases.KINDS)
def test_it_encodes_and_decodes_as_diffusers_does(kind):
    torch = pytest.importorskip("torch")
    other = theirs(kind)
    state = {name: x.numpy() for name, x in other.state_dict().items()}
    model = describe(state, layout.names(state), dict(other.config))
    assert model == cases.make(kind)
    params = config.resolve("interop", "autoencoder_diffusers").to_params(
        state, model, cases.shape_of(model)
    )

    @jax.jit
    def run(x):
        mean, logvar = model.apply({"params": params}, x, method="encode")
        std = jnp.exp(logvar / 2)
        return mean, std, model.apply({"params": params}, mean + 0.5 * std, method="decode")

    for b, h, w in SHAPES:
        x = np.random.default_rng(b + h).uniform(-1, 1, (b, 3, h, w)).astype(np.float32)
        with torch.no_grad():
            posterior = other.encode(torch.from_numpy(x)).latent_dist
            z = posterior.mean + 0.5 * posterior.std
            want = [posterior.mean, posterior.std, other.decode(z).sample]
        frames = jnp.moveaxis(x, 1, -1)[:, None]
        for got, right in zip(run(frames), want, strict=True):
            right = np.moveaxis(right.numpy(), 1, -1)
            assert right.std() > 0.05
            np.testing.assert_allclose(got[:, 0], right, atol=1e-4)
