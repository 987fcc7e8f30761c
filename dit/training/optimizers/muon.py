"""Muon for the matrices inside the layers, AdamW for all the rest (Jordan et al. 2024).

The momentum of each matrix is orthogonalised by five Newton-Schulz steps (separately for each layer of a
stack, and for query, key and value) and scaled by ``0.2 sqrt(max(fan_in, fan_out))`` to the size of an
AdamW update (Liu et al. 2025, eq. 4), so that one learning rate and one weight decay suit both.
"""

from __future__ import annotations

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from dit.parallel.rules import Axes, is_axes
from dit.training.optimizers import Make, decayed, groups, is_matrix
from dit.training.transfer import Transfer, kind, scale_rates
from dit.types import Count, Decay, Fraction, NonNegative, Positive, Tiny


def build(
    *,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    rms: Positive | None = 0.2,
    betas: tuple[Decay, Decay] = (0.9, 0.95),
    eps: Tiny = 1e-8,
    weight_decay: NonNegative = 0.0,
    mup_base_width: Count | None = None,
    mup_base_depth: Count | None = None,
    mup_depth_power: Fraction = 1.0,
) -> Make:
    """``rms``: the root mean square of an update in units of the rate, or None for Muon's own scale.

    ``betas``, ``eps``: of the AdamW for embeddings, vectors and the first and last layers.
    ``mup_base_width``, ``mup_base_depth``: the sizes at which the rate was tuned
    (``training.transfer``).
    """
    transfer = Transfer(mup_base_width, mup_base_depth, mup_depth_power)

    def make(schedule, axes):
        mask = decayed(axes)

        def each(function):
            return jax.tree.map(function, axes, is_leaf=is_axes)

        stacked = any("layers" in names for names in jax.tree.leaves(axes, is_leaf=is_axes))
        dimensions = each(lambda names: matrix_dimensions(names, stacked))
        labels = each(lambda names: "muon" if matrix_dimensions(names, stacked) else "adamw")
        powers = jax.tree.map(
            lambda label: 1.0 if label == "adamw" else (0.0 if rms is None else 0.5), labels
        )
        matrices = muon(
            1.0,
            beta=momentum,
            nesterov=nesterov,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=rms,
        )
        # Optax's Muon would use Nesterov momentum for the others too, which is NAdam and not AdamW.
        others = optax.chain(optax.scale_by_adam(*betas, eps), optax.scale(-1.0))
        return optax.chain(
            optax.partition({"muon": matrices, "adamw": others}, labels),
            *([scale_rates(transfer, axes, powers)] if transfer else []),
            # Muon's partition passes a mask of the whole tree to a part of it, so decay is added here:
            # the updates that arrive are minus the direction of descent.
            optax.add_decayed_weights(-weight_decay, mask),
            optax.scale_by_schedule(schedule),
        )

    return make


def matrix_dimensions(axes: Axes, stacked: bool = True) -> MuonDimensionNumbers | None:
    """Input and output axes of a layer's matrices; None for parameters that Muon does not update.

    ``stacked``: the network's layers are equal and held in stacks. Where they differ, Muon updates
    every matrix from width to width.
    """
    inside = "layers" in axes if stacked else kind(axes) == "hidden"
    if not inside or not is_matrix(axes) or len(groups(axes)) > 2:
        return None
    return MuonDimensionNumbers(*groups(axes))
