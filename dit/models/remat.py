"""What of a block's forward pass is kept for its backward pass, by name.

``none`` keeps everything, ``full`` only a block's input, ``dots`` the outputs of matrix products
with weights, ``all_dots`` those of attention's products too, ``attention`` only what each attention
gives, ``dots_attention`` this and what ``dots`` keeps. What a fused kernel gives is no product: under
``dots`` and ``all_dots`` it runs twice. Of splash attention the sums that its backward pass needs are
kept with its output; of other kernels the output alone is.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from dit.config import suggest
from dit.types import UserError

ATTENTION = "attention"  # the name of what an attention gives
DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
NAMED = jax.checkpoint_policies.save_only_these_names(ATTENTION)
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": DOTS,
    "all_dots": jax.checkpoint_policies.dots_saveable,
    "attention": NAMED,
    "dots_attention": jax.checkpoint_policies.save_from_both_policies(DOTS, NAMED),
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
    """Name ``x`` for the policies that keep what an attention gives."""
    return checkpoint_name(x, ATTENTION)
