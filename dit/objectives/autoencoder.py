"""The autoencoder's objective: reconstruction, a little KL, perceptual distance and a discriminator.

``L = |x - y| + l_p LPIPS(x, y) + l_kl KL(q(z|x) || N(0, 1)) - w D(y)`` with ``y = decode(z)`` and z
drawn from the encoder's Gaussian (Rombach et al. 2022, appendix G; Esser et al. 2021, eqs. 5 to 7). The
discriminator D is a network of its own, trained in the same step by the hinge loss
``(relu(1 - D(x)) + relu(1 + D(y))) / 2``. Its part in the autoencoder's loss has the adaptive weight of
Esser et al., eq. 7: at the decoder's last layer its gradient has the norm of that of the first two
parts, times ``adversarial``. Before step ``start`` there is no discriminator: it would only see that
the first reconstructions are blurred.

All parts are means over the numbers of a picture, where the code of those papers has sums: the
autoencoder's loss is divided by that number, as is the KL, so that ``kl`` means the same. Their learned
variance of the reconstruction is left out: no optimizer of theirs trains it.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from dit import lpips as perceptual
from dit import rng
from dit.config import parse_spec, resolve
from dit.objectives import Phase, Phased
from dit.types import Cond, Key, NonNegative, Params, UserError, Video, Whole

LAST = "decoder/final/kernel"  # of the autoencoder's parameters
MOST, EPS = 1e4, 1e-4  # of the adaptive weight; added to the norm that it divides by
NAME = "discriminator"


def build(
    *,
    model: Any,
    dtype: str = "float32",
    reconstruction: Literal["l1", "l2"] = "l1",
    kl: NonNegative = 1e-6,
    lpips: NonNegative = 1.0,
    lpips_net: perceptual.Net = "vgg",
    adversarial: NonNegative = 0.5,
    discriminator: str = "patch",
    start: Whole = 50_000,
) -> Phased:
    """The objective of ``model``, a network with ``encode`` and ``decode``.

    ``reconstruction``: the mean absolute or squared error. ``kl``, ``lpips``, ``adversarial``: weights;
    nothing is computed, or needed, for one that is 0. ``discriminator``: a name in
    ``models.discriminators`` with its keywords, such as ``patch:width=32,depth=2``; from step ``start``
    it is trained, and counts. Of a batch in micro-batches, each has an adaptive weight of its own.

    Metrics: ``loss``; its parts without their weights, ``reconstruction``, ``kl`` (nats a number of the
    latents), ``lpips``, ``generator`` (the mean of ``-D(y)``); ``adaptive_weight``; and of the
    discriminator its loss, ``discriminator``, and its mean logits ``real`` and ``fake``. Those that have
    to do with it are 0 before it starts. Raises UserError for a model of another kind.
    """
    if not (hasattr(model, "encode") and hasattr(model, "decode")):
        raise UserError(
            f"got a {type(model).__name__} for objective 'autoencoder'; expected a network that encodes "
            "and decodes: --config.model.name=autoencoder, or wan_vae for clips"
        )
    judge = resolve("models.discriminators", **parse_spec(discriminator), dtype=dtype)
    frozen = {"lpips": perceptual.frozen(lpips_net)} if lpips else {}
    away = {"l1": jnp.abs, "l2": jnp.square}[reconstruction]

    def latents(key: Key, params: Params, batch: dict[str, Array]) -> tuple[Video, Video, Video]:
        """Mean, log-variance and a draw."""
        mean, logvar = model.apply({"params": params}, batch["x"], method="encode")
        keys = rng.per_sample(rng.stream(key, "noise"), batch["id"])
        eps = rng.normal(keys, mean.shape[1:], mean.dtype)
        return mean, logvar, mean + jnp.exp(0.5 * logvar) * eps

    def decode(params: Params, z: Video) -> Float[Array, "b f2 h2 w2 d"]:
        return model.apply({"params": params}, z, method="decode")

    def logits(networks: dict[str, Params], x: Video) -> Float[Array, "b n"]:
        found = judge.apply({"params": networks[NAME]}, x, jnp.zeros(len(x)), Cond())
        return found.reshape(len(x), -1)

    def unlike(networks: dict[str, Params], x: Video, y: Video) -> dict[str, Float[Array, " b"]]:
        parts = {"reconstruction": _mean(away(x - y))}
        if lpips:
            parts["lpips"] = perceptual.distance(networks["lpips"], lpips_net, x, y)
        return parts

    def total(parts: dict[str, Float[Array, " b"]]) -> Float[Array, " b"]:
        return parts["reconstruction"] + (lpips * parts["lpips"] if lpips else 0)

    def loss(
        key: Key,
        params: Params,
        apply_fn: Any,
        process: None,
        batch: dict[str, Array],
        networks: dict[str, Params] | None = None,
        step: Any = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, " b"]]]:
        x, networks = batch["x"], networks or {}
        mean, logvar, z = latents(key, params, batch)
        y = decode(params, z)
        metrics = unlike(networks, x, y)
        nats = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)
        metrics["kl"] = _mean(nats)
        each = total(metrics) + kl * metrics["kl"] * (nats[0].size / x[0].size)
        if adversarial:
            norm, pull = norm_at_last(params, z, lambda y: total(unlike(networks, x, y)).mean())

            def fooled(y: Video) -> Float[Array, " b"]:
                return -logits(networks, y).mean(1)

            def now():
                towards = pull(jax.grad(lambda y: fooled(y).mean())(jax.lax.stop_gradient(y)))
                weight = jnp.clip(norm / (_norm(*towards) + EPS), 0, MOST)
                return fooled(y), jax.lax.stop_gradient(jnp.broadcast_to(weight, (len(x),)))

            def not_yet():
                return jnp.zeros(len(x), y.dtype), jnp.zeros(len(x), y.dtype)

            found = jax.lax.cond(step >= start, now, not_yet)
            metrics["generator"], metrics["adaptive_weight"] = found
            each += adversarial * metrics["adaptive_weight"] * metrics["generator"]
        return each.mean(), {"loss": each, **metrics}

    def norm_at_last(params: Params, z: Video, part: Any) -> tuple[Float[Array, ""], Any]:
        """The norm of the gradient of ``part(y)`` at the last layer, and the pullback to that layer."""
        params, z = jax.lax.stop_gradient((params, z))
        flat = flatten_dict(params, sep="/")
        y, pull = jax.vjp(
            lambda last: decode(unflatten_dict({**flat, LAST: last}, sep="/"), z), flat[LAST]
        )
        return _norm(*pull(jax.grad(part)(y))), pull

    def judging(
        key: Key,
        params: Params,
        apply_fn: Any,
        process: None,
        batch: dict[str, Array],
        networks: dict[str, Params],
        step: Any,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, " b"]]]:
        y = decode(params, latents(key, params, batch)[2])
        real, fake = logits(networks, batch["x"]), logits(networks, jax.lax.stop_gradient(y))
        each = 0.5 * (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)).mean(1)
        return each.mean(), {NAME: each, "real": real.mean(1), "fake": fake.mean(1)}

    phases = {NAME: Phase(judge, judging, start)} if adversarial else {}
    return Phased(loss, phases, frozen)


def _mean(x: Video) -> Float[Array, " b"]:
    return x.reshape(len(x), -1).mean(1)


def _norm(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.square(x).sum())
