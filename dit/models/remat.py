"""What of a block's forward pass is kept for its backward pass, by name.

``none`` keeps everything, ``full`` only a block's input, ``dots`` the outputs of matrix products
with weights, ``all_dots`` those of attention too, ``attention`` only each attention's output.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from dit.config import suggest
from dit.types import UserError

POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all_dots": jax.checkpoint_policies.dots_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
}


def check_remat(name: str) -> None:
    """Raise UserError for a policy that does not exist."""
    if name not in POLICIES:
        raise UserError(f"no remat policy {name!r}: {suggest(name, list(POLICIES))}")


def remat_layer(function: Callable, name: str) -> Callable:
    """A pure ``function`` under the policy."""
    return function if name == "none" else jax.checkpoint(function, policy=POLICIES[name])


def remat_scanned(function: Callable, name: str, unrolled: bool) -> Callable:
    """``function(module, *args)`` under the policy; when unrolled, XLA must not merge the copies."""
    if name == "none":
        return function
    return nn.remat(function, policy=POLICIES[name], prevent_cse=unrolled)


def mark_attention(x: jax.Array) -> jax.Array:
    """Name ``x`` for the policy ``attention``."""
    return checkpoint_name(x, "attention")
