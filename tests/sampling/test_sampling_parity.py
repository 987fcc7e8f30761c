"""Whole trajectories against diffusers' schedulers, with the same model outputs and the same noise.

The model is a fixed nonlinear function of (x, timestep) with eps prediction on DDPM's path; 20
steps, float64 on both sides where the scheduler keeps it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, rng
from dit.diffusion.process import Process, denoiser
from dit.sampling.nfe import nfe
from dit.sampling.sample import sample_keys, solve, step_keys
from dit.types import Cond

pytestmark = pytest.mark.torch
STEPS, SHAPE = 20, (2, 1, 3, 3, 4)
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def eps_model(xp, x, timestep):
    """Bounded slope in x and dependence on the timestep, so that solvers take different ways."""
    return 0.8 * xp.tanh(1.3 * x) + 0.15 * xp.sin(3 * x + timestep / 150) + 0.2 * x


def ours(solver, grid, learned=False, **kwargs):
    """Our trajectory (steps + 1, ...) and the noise of every step."""
    path = config.resolve("diffusion.paths", "ddpm")
    process = Process(path, config.resolve("diffusion.predictions", "eps"))

    def apply_fn(params, x, timestep, cond):
        eps = eps_model(jnp, x, timestep[:, None, None, None, None])
        return jnp.concatenate([eps, jnp.cos(2 * x)], -1) if learned else eps

    built = config.resolve("sampling.solvers", solver, **kwargs)
    times = config.resolve("sampling.grids", "ddpm", **grid)(path, STEPS)
    keys = sample_keys(jax.random.key(7), SHAPE[0])
    x_T = rng.normal(keys, SHAPE[1:], times.dtype)
    denoise = denoiser(process, apply_fn, {}, Cond())
    run = jax.jit(lambda x: solve(keys, denoise, path, built, times, x, trajectory=True))
    noise = [rng.normal(step_keys(keys, n), SHAPE[1:], times.dtype) for n in range(STEPS)]
    return np.asarray(run(x_T).trajectory), [np.asarray(z) for z in noise]


def theirs(scheduler, x_T, noise, learned=False, patch=None, **step_kwargs):
    import torch

    scheduler.set_timesteps(STEPS)
    x = torch.from_numpy(np.array(x_T))
    trajectory = [x.numpy()]
    for n, timestep in enumerate(scheduler.timesteps):
        out = eps_model(torch, x, timestep.to(x.dtype))
        if learned:
            out = torch.cat([out, torch.cos(2 * x)], -1)
        z = torch.from_numpy(noise[n].copy())
        if patch:
            patch(z)
            x = channels_last(scheduler, out, timestep, x)
        else:
            extra = {"variance_noise": z} if step_kwargs.get("noisy") else {}
            extra |= {k: v for k, v in step_kwargs.items() if k != "noisy"}
            x = scheduler.step(out, timestep, x, **extra).prev_sample
        trajectory.append(x.numpy())
    return np.stack(trajectory)


def channels_last(scheduler, out, timestep, x):
    """A DDPM step on channels first, where that scheduler splits off the variance channels."""
    first = [a.movedim(-1, 1) for a in (out, x)]
    return scheduler.step(first[0], timestep, first[1]).prev_sample.movedim(1, -1)


@pytest.fixture(autouse=True)
def wide():
    pytest.importorskip("diffusers")
    with jax.enable_x64(True):
        yield


def check(mine, reference, nodes=STEPS + 1):
    """Equal at every node of the grid, or at the first ``nodes`` of them."""
    assert mine.shape == reference.shape == (STEPS + 1, *SHAPE)
    mine, reference = mine[:nodes], reference[:nodes]
    assert np.abs(mine - reference).max() < 1e-4
    assert np.abs(np.diff(reference, axis=0)).max() > 0.1  # it went somewhere


@pytest.mark.parametrize(
    ("eta", "spacing"), [(0.0, "leading"), (0.0, "trailing"), (0.6, "leading"), (1.0, "trailing")]
)
def test_ddim(eta, spacing):
    import diffusers

    mine, noise = ours("ddim", {"spacing": spacing}, eta=eta)
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing)
    check(mine, theirs(scheduler, mine[0], noise, noisy=True, eta=eta))


@pytest.mark.parametrize(("spacing", "clip"), [("linspace", None), ("leading", 1.0)])
@pytest.mark.parametrize(
    ("variance", "kind"),
    [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")],
)
def test_ddpm(variance, kind, clip, spacing, monkeypatch):
    import diffusers
    from diffusers.schedulers import scheduling_ddpm

    learned = variance == "learned"
    mine, noise = ours("ddpm", {"spacing": spacing}, learned, variance=variance, clip=clip)
    scheduler = diffusers.DDPMScheduler(
        **BETAS, variance_type=kind, clip_sample=clip is not None, timestep_spacing=spacing
    )

    def patch(z):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: z.movedim(-1, 1))

    check(mine, theirs(scheduler, mine[0], noise, learned, patch))


@pytest.mark.parametrize(
    ("solver", "order", "kind"), [("dpmpp_2m", 2, "midpoint"), ("dpmpp_3m", 3, "heun")]
)
def test_dpm_solver(solver, order, kind):
    import diffusers

    mine, noise = ours(solver, {"spacing": "trailing"})
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, solver_order=order, solver_type=kind, timestep_spacing="trailing"
    )
    check(mine, theirs(scheduler, mine[0], noise))


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("runge_kutta", [False, True])
def test_pndm(runge_kutta, steps):
    """As Stable Diffusion 1 has it, to the noise of the first timestep, where its scheduler ends."""
    import diffusers
    import torch

    own = {"beta_start": 0.00085, "beta_end": 0.012}
    scheduler = diffusers.PNDMScheduler(
        **own, beta_schedule="scaled_linear", skip_prk_steps=not runge_kutta, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    path = config.resolve("diffusion.paths", "ddpm", betas="scaled_linear", **own)
    process = Process(path, config.resolve("diffusion.predictions", "eps"))
    built = config.resolve("sampling.solvers", "pndm", runge_kutta=runge_kutta)
    grid = config.resolve("sampling.grids", "ddpm", spacing="leading", offset=1)(path, steps)
    grid = jnp.append(grid.at[-1].set(path.t_min), 0.0)
    keys = sample_keys(jax.random.key(7), SHAPE[0])
    x_T = rng.normal(keys, SHAPE[1:], grid.dtype)

    def apply_fn(params, x, timestep, cond):
        return eps_model(jnp, x, timestep[:, None, None, None, None])

    denoise = denoiser(process, apply_fn, {}, Cond())
    mine = jax.jit(lambda x: solve(keys, denoise, path, built, grid, x, trajectory=True))(x_T)
    x = torch.from_numpy(np.array(x_T))
    reference = [x.numpy()]
    for timestep in scheduler.timesteps:
        x = scheduler.step(eps_model(torch, x, timestep.to(x.dtype)), timestep, x).prev_sample
        reference.append(x.numpy())
    # Of a first step, taken twice or in four parts, the end is where the scheduler is after it.
    many, each = (3, 4) if runge_kutta else (1, 2)
    at = [0, *range(each, many * each + 1, each)]
    at += range(at[-1] + 1, len(reference))
    reference = np.stack([reference[i] for i in at])
    assert len(scheduler.timesteps) == nfe(built, steps)
    assert np.abs(np.asarray(mine.trajectory)[: steps + 1] - reference).max() < 2e-5
    assert np.abs(np.diff(reference, axis=0)).max() > 0.1


@pytest.mark.parametrize(("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_dpm_solver_sde(order, variant):
    import diffusers

    mine, noise = ours("dpmpp_sde", {"spacing": "trailing"}, order=order, variant=variant)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        algorithm_type="sde-dpmsolver++",
        solver_order=order,
        solver_type=variant,
        timestep_spacing="trailing",
    )
    noise = [z.astype(np.float32) for z in noise]
    check(mine, theirs(scheduler, mine[0], noise, noisy=True))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc(order, variant):
    import diffusers

    mine, noise = ours(
        "unipc", {"spacing": "trailing"}, order=order, variant=variant, lower_order_final=True
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS, solver_order=order, solver_type=variant, timestep_spacing="trailing"
    )
    reference = theirs(scheduler, mine[0], noise)
    # Its bh1 multiplies 0 by the last step's h, which is infinite: NaN where ours is x0_hat.
    check(mine, reference, STEPS if variant == "bh1" else STEPS + 1)
