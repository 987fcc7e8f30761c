"""The coordinate check of muP (Yang et al. 2022, app. D.1): does a parametrisation do what it should?

Models of several widths are trained for a few steps at one learning rate. The root mean square by which
training changes each activation must not grow with the width. In the standard parametrisation it does,
so the best learning rate falls as models grow. The parametrisation itself is in
``training/transfer.py`` and follows from the ``optimizer`` section of a config: ``mup_base_width``,
``mup_base_depth``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dit import models, rng
from dit.diffusion.process import Process, corrupt, network_input
from dit.models import Network
from dit.training import optimizer as optimizers
from dit.training.ema import Ema
from dit.training.state import creator
from dit.training.step import objective, unchanged, unguarded_step
from dit.training.transfer import of_section, scale_init
from dit.types import Cond, Key, Params

Array = np.ndarray


def activations(
    model: Network, params: Params, x: Any, t: Any, cond: Cond
) -> dict[str, Float[jax.Array, "..."]]:
    """The output of every module but norms in one forward pass, by path and layer. Can be jitted.

    The output of a norm has unit size whatever its input, so its change saturates and says nothing.
    """
    found: dict[str, jax.Array] = {}

    def record(run, args, kwargs, context):
        out, module = run(*args, **kwargs), context.module
        left_out = isinstance(module, Network) or "norm" in (module.name or "")
        if context.method_name == "__call__" and not left_out and hasattr(out, "shape"):
            name = "/".join(module.path) or "block"
            layer = sum(key.split(" ")[0] == name for key in found)
            found[f"{name} {layer}"] = out
        return out

    plain = model.plain(unrolled=True)  # a loop would hide what is in it
    with nn.intercept_methods(record):
        models.apply_fn(plain)(params, x, t, cond)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """The root-mean-square change of every activation, ``(widths, seeds, activations)``."""

    widths: tuple[int, ...]
    names: tuple[str, ...]
    change: Float[Array, "w s a"]
    loss: Float[Array, "w s"]

    @property
    def slopes(self) -> dict[str, float]:
        """The exponent of each activation's change as a power of the width, by least squares in logs."""
        return dict(zip(self.names, map(float, self._fit(self.change.mean(1))), strict=True))

    def seed_slopes(self, name: str) -> Float[Array, " s"]:
        """The exponent of one activation, for each seed."""
        return self._fit(self.change[..., self.names.index(name)])

    def _fit(self, change: Float[Array, "w n"]) -> Float[Array, " n"]:
        return np.polyfit(np.log(self.widths), np.log(np.maximum(change, 1e-30)), 1)[0]

    @property
    def steepest(self) -> tuple[str, float]:
        """The activation that grows fastest with the width, and its exponent."""
        return max(self.slopes.items(), key=lambda item: item[1])


def coordinate_check(
    make_model: Callable[[int], Network],
    *,
    loss: Callable,
    process: Process,
    batch: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    widths: Sequence[int] = (32, 64, 128, 256),
    seeds: int = 3,
    steps: int = 4,
    open_gates: bool = True,
) -> Coordinates:
    """Train ``make_model(width)`` for ``steps`` on ``batch`` and compare activations before and after.

    ``optimizer``: a config section; its rate is the same at all widths. Zero-initialised gates hide what
    a branch does in the first steps, so ``open_gates`` starts modulations at random numbers, of the same
    size at every width.
    """
    changes, losses, names, ema = [], [], (), Ema(half_lives=())
    batch = {name: jnp.asarray(column) for name, column in batch.items()}
    shape = tuple(np.shape(batch["x"])[1:])
    for width in widths:
        model = make_model(width)
        axes = models.logical_axes(model, shape)
        built = optimizers.build(optimizer, {"name": "constant"}, steps=steps, axes=axes)
        loss_fn = objective(loss, models.apply_fn(model), process, unchanged)

        def measure(key, model=model, axes=axes, built=built, loss_fn=loss_fn):
            params = models.init(model, rng.stream(key, "init"), shape)
            params = scale_init(of_section(optimizer), axes, params)
            if open_gates:
                params = with_open_gates(params, rng.stream(key, "gates"))
            keys = rng.per_sample(rng.stream(key, "probe"), batch["id"])
            t = rng.uniform(keys)
            x, time = network_input(
                process, corrupt(process, batch["x"], rng.normal(keys, shape), t), t
            )
            cond = Cond.of(batch)
            before = activations(model, params, x, time, cond)

            def step(state, _):
                return unguarded_step(loss_fn, built, ema, state, batch, key)

            state = creator(lambda _: params, built, ema, metrics=())(key)
            state, values = jax.lax.scan(step, state, length=steps)
            after = activations(model, state.params, x, time, cond)
            moved = {k: jnp.sqrt(jnp.square(after[k] - before[k]).mean()) for k in before}
            return moved, values[-1]

        run = jax.jit(measure)
        found = [jax.device_get(run(rng.root(seed))) for seed in range(seeds)]
        moving = [k for k in found[0][0] if found[0][0][k] > 0]
        names = tuple(moving) if not names else tuple(n for n in names if n in moving)
        changes.append([moved for moved, _ in found])
        losses.append([float(value) for _, value in found])
    table = [[[float(moved[n]) for n in names] for moved in row] for row in changes]
    return Coordinates(tuple(widths), names, np.array(table), np.array(losses))


def with_open_gates(params: Params, key: Key, scale: float = 0.5) -> Params:
    """Draw modulation biases at random, so that every block acts from the first step at every width."""

    def one(path, p):
        names = [part.key for part in path]
        if "modulation" not in names or names[-1] != "bias":
            return p
        return p + scale * jax.random.normal(rng.stream(key, "/".join(names)), p.shape, p.dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def plot_coordinates(checks: Mapping[str, Coordinates], path: str) -> None:
    """One panel per parametrisation: the change of every activation against the width, on log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(checks), 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(checks), sharey=True))
    for panel, (title, check) in zip(panels, checks.items(), strict=True):
        means = check.change.mean(1)
        for i, name in enumerate(check.names):
            steep = name == check.steepest[0]
            style = (
                {"color": "#D55E00", "lw": 2, "zorder": 3} if steep else {"color": "0.7", "lw": 0.8}
            )
            panel.plot(check.widths, means[:, i], label=name if steep else None, **style)
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="width",
            title=f"{title}: steepest slope {check.steepest[1]:.2f}",
        )
        panel.set_xticks(check.widths, [str(w) for w in check.widths])
        panel.minorticks_off()
        panel.legend(frameon=False)
    panels[0].set_ylabel("change of an activation (root mean square)")
    figure.savefig(path, dpi=150)
