"""Z-Image against diffusers' network at a tiny size: values, gradients, names, steps and the count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, quick

from dit import config, models, rng
from dit.diffusion.process import Process, denoiser
from dit.sampling.sample import sample
from dit.types import Cond

pytestmark = pytest.mark.torch
SHAPE = (1, 6, 10, 4)  # f h w c: 15 patches and 17 tokens that fill them up
LENGTHS = (33, 5)  # of the texts: one that takes twice as many tokens as the other
OPTIONS = {"depth": 2, "refiner_depth": 1, "width": 24, "heads": 3, "context_dim": 7}
OPTIONS |= {"rope_axes": (2, 2, 4), "null": "zero", "in_channels": 4}


@functools.cache
def pair():
    """Theirs with random weights, ours, the format and the weights."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    other = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=7,
        axes_dims=[2, 2, 4],
        axes_lens=[128, 32, 32],
    )
    for key, p in other.named_parameters():
        p.data = 0.2 * torch.randn_like(p) + (1 if "norm" in key and p.ndim == 1 else 0)
    model = config.resolve("models", "zimage", time_scale=1000.0, **OPTIONS)
    state = {k: v.detach().numpy() for k, v in other.state_dict().items()}
    return other, model, config.resolve("interop", "diffusers_z_image"), state


def given():
    """Noise, times (of a large 1000 (1 - t) sinusoids differ by its rounding), and texts with a mask."""
    draw = np.random.default_rng(0)
    number = lambda *shape: draw.standard_normal(shape).astype(np.float32)  # noqa: E731
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    x, t = number(2, *SHAPE), np.array([0.875, 0.9921875], np.float32)
    return x, t, number(2, max(LENGTHS), 7), mask


def call(other, x, t, context, lengths=LENGTHS):
    """Theirs for ours: ``b c h w``, and texts of the lengths."""
    texts = [text[:n] for text, n in zip(context, lengths, strict=True)]
    import torch

    return -torch.stack(other(list(x.unsqueeze(2)), 1 - t, texts).sample).squeeze(2)


def test_outputs_and_gradients_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    other, model, layout, state = pair()
    x, t, context, mask = given()
    theirs = torch.tensor(x[:, 0]).permute(0, 3, 1, 2).requires_grad_()
    text = torch.tensor(context).requires_grad_()
    out = call(other, theirs, torch.tensor(t), text)
    other.zero_grad()
    out.square().mean().backward()
    params = layout.to_params(state, model, SHAPE)

    def loss(params, x, context, mask):
        out = models.apply_fn(model)(
            params, x, jnp.asarray(t), Cond(context=context, context_mask=mask)
        )
        return jnp.square(out).mean(), jnp.moveaxis(out[:, 0], -1, 1)

    run = quick(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, found), (grads, slope_x, slope_text) = run(params, x, context, mask)
    want = out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=2e-5 * max(1, np.abs(want).max()))
    grad = theirs.grad.permute(0, 2, 3, 1).numpy()[:, None]
    np.testing.assert_allclose(slope_x, grad, atol=1e-4 * np.abs(grad).max())
    grad = text.grad.numpy()
    np.testing.assert_allclose(slope_text, grad, atol=1e-4 * np.abs(grad).max())
    assert not np.asarray(slope_text)[1, LENGTHS[1] :].any()
    back = layout.to_state(grads, model, SHAPE)
    for key, p in other.named_parameters():
        grad = p.grad.numpy()
        assert np.abs(grad).max() > 0, key
        np.testing.assert_allclose(back[key], grad, atol=1e-4 * np.abs(grad).max(), err_msg=key)
    left = np.stack([np.roll(c, len(c) - n, 0) for c, n in zip(context, LENGTHS, strict=True)])
    # padding in front changes nothing
    (_, same), _ = run(params, x, left, mask[:, ::-1])
    np.testing.assert_allclose(same, found, atol=1e-5 * np.abs(want).max())


def test_weights_come_out_as_they_went_in():
    _, model, layout, state = pair()
    again = layout.to_state(layout.to_params(state, model, SHAPE), model, SHAPE)
    assert set(again) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_ten_steps_are_those_of_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    other, model, layout, state = pair()
    x, _, context, mask = given()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10, sigmas=np.linspace(1, 0.1, 10))
    z = torch.tensor(x[:, 0]).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            velocity = call(other, z, t.expand(2) / 1000, torch.tensor(context))
            z = scheduler.step(velocity, t, z).prev_sample
    path = config.resolve("diffusion.paths", "linear", time_scale=1000.0)
    process = Process(path, config.resolve("diffusion.predictions", "velocity"))
    grid = config.resolve("sampling.grids", "shifted", shift=3.0)(path, 10)
    np.testing.assert_allclose(grid, scheduler.sigmas.numpy(), atol=1e-6)
    apply = models.apply_fn(model.clone(time_scale=1.0))
    params = layout.to_params(state, model, SHAPE)

    @quick
    def draw(params, x, cond):
        solver = config.resolve("sampling.solvers", "euler")
        return sample(rng.root(0), denoiser(process, apply, params, cond), path, solver, grid, x)

    cond = Cond(context=jnp.asarray(context), context_mask=jnp.asarray(mask))
    found = draw(params, jnp.asarray(x), cond)
    want = z.permute(0, 2, 3, 1).numpy()[:, None]
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


def test_the_published_size_has_the_parameters_of_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        other = diffusers.ZImageTransformer2DModel()
    own = config.resolve("models", "zimage", size="Z-Image", in_channels=16)
    count = models.count_params(abstract(own, (1, 16, 16, 16)))
    assert count == sum(p.numel() for p in other.parameters()) == 6_154_908_736
