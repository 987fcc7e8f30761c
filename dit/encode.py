"""What ``dit prepare`` computes on the devices: latents of pictures and clips, texts by frozen encoders.

Each is an ``Encode`` of ``data.prepare.encode``. Batches have one size, filled up by repeating the last
example, so that one program serves each size of pictures.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from dit.config import parse_spec, resolve
from dit.data import records
from dit.data.prepare.encode import Encode
from dit.draw import placed
from dit.encoders import Encoders
from dit.parallel import compiler, frozen
from dit.parallel.mesh import batch_shards, replicated
from dit.parallel.rules import in_force
from dit.types import MASKS, Params, UserError

log = logging.getLogger(__name__)
Values = dict[str, Any]
Made = list[Values | str]  # of each example, what is added to it, or why nothing is


class Latents:
    """Mean and standard deviation of the latents of each picture, and with ``flip`` of its mirror image.

    ``spec``: ``NAME:KEY=VALUE,...`` of a codec with weights; ``sizes``: of the pictures; ``frames``: of
    clips, None for pictures.
    """

    def __init__(
        self,
        spec: str,
        mesh: Mesh,
        *,
        sizes: Sequence[tuple[int, int]],
        channels: int,
        batch: int,
        dtype: str,
        flip: bool,
        frames: int | None = None,
    ):
        given = parse_spec(spec)
        codec = resolve("codecs", given.pop("name"), **given)
        if codec.moments is None:
            raise UserError(
                f"got --codec={spec}, which has no latents of its own; expected an autoencoder, such as "
                "--codec=autoencoder_kl:path=DIR, or of clips --codec=wan_vae:path=DIR"
            )
        self._moments, self._mesh = codec.moments, mesh
        self._rows = -(-batch // batch_shards(mesh)) * batch_shards(mesh)
        self._dtype, self._names = dtype, records.latents(flip)
        self.replaces = ("image",) if frames is None else ("video",)
        self._seen = {"channels": channels} | ({} if frames is None else {"frames": frames})
        whole = [(frames or 1, *size, channels) for size in sizes]
        for shape in whole:
            codec.encoded_shape(shape)  # refuses what it cannot encode
        self._params = frozen.place({"codec": codec.weights}, mesh)["codec"]
        shapes = [self._shape(codec.weights.abstract, shape) for shape in whole]
        self._compiled: dict[tuple[int, ...], Any] = {}
        self.fields = {
            "latents": {
                "sizes": [list(shape[2:4]) for shape in shapes],
                "channels": shapes[0][-1],
                "dtype": dtype,
                "flip": flip,
                "codec": {"name": spec, "weights": frozen.identity(self._params, codec.weights)},
                **({} if frames is None else {"frames": shapes[0][1]}),
            }
        }

    def __call__(self, examples: Sequence[Values]) -> Made:
        x = [records.seen(example, self._seen) for example in examples]
        made: Made = [""] * len(x)
        for shape in dict.fromkeys(each.shape for each in x):
            mine = [i for i, each in enumerate(x) if each.shape == shape]
            for start in range(0, len(mine), self._rows):
                part = mine[start : start + self._rows]
                filled = part + part[-1:] * (self._rows - len(part))
                found = self._encoded(np.stack([x[i] for i in filled]))
                for row, i in enumerate(part):
                    kept = row if "frames" in self._seen else (row, 0)
                    made[i] = checked({name: each[kept] for name, each in found.items()})
        return made

    def _shape(self, params: Params, shape: tuple[int, ...]) -> tuple[int, ...]:
        one = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        return jax.eval_shape(self._moments, params, one)[0].shape

    def _encoded(self, x: np.ndarray) -> dict[str, np.ndarray]:
        batch = placed({"x": x}, self._mesh)
        if x.shape not in self._compiled:
            step = jax.jit(
                self._step,
                out_shardings=replicated(self._mesh),
                compiler_options=compiler.options(self._mesh.devices.flat[0].platform),
            )
            self._compiled[x.shape] = step.lower(self._params, batch["x"]).compile()
        found = jax.device_get(self._compiled[x.shape](self._params, batch["x"]))
        with np.errstate(over="ignore"):  # is found by who asks whether all are finite
            return {n: a.astype(self._dtype) for n, a in zip(self._names, found, strict=True)}

    def _step(self, params: Params, x: UInt8[Array, "b f h w c"]) -> list[Array]:
        """All that is stored, in the order of its names."""
        with in_force(self._mesh):
            sides = [x, x[:, :, :, ::-1]][: len(self._names) // 2]
            return [each for side in sides for each in self._moments(params, side)]


class Captions:
    """What text encoders make of each caption. ``names``: ``NAME:KEY=VALUE,...`` of each encoder."""

    replaces = ()

    def __init__(self, names: Sequence[str], mesh: Mesh, *, batch: int, dtype: str):
        self._encoders = Encoders.open(names, mesh)
        self._rows, self._dtype = self._encoders.rows(batch), dtype
        self._told = False
        shapes = {name: list(x.shape[1:]) for name, x in self._encoded([""]).items()}
        kinds = {name: "bool" if name in MASKS else dtype for name in shapes}
        self.fields = {
            "text": {n: {"shape": shapes[n], "dtype": kinds[n]} for n in shapes},
            "text_made_by": self._encoders.made_by,
        }

    def __call__(self, examples: Sequence[Values]) -> Made:
        captions = [[text.decode() for text in example["caption"]] for example in examples]
        ends = np.cumsum([len(each) for each in captions])
        texts = list(itertools.chain.from_iterable(captions))
        found = self._encoded(texts) if texts else {}
        rows = [slice(end - len(each), end) for each, end in zip(captions, ends, strict=True)]
        return [
            checked({name: x[row] for name, x in found.items()}) if each else "it has no caption"
            for row, each in zip(rows, captions, strict=True)
        ]

    def _encoded(self, texts: list[str]) -> dict[str, np.ndarray]:
        tokens, cut = self._encoders.tokens(texts)
        for line in cut if not self._told else ():
            log.warning("%s. This is told once", line)
        self._told = self._told or bool(cut)
        found = self._encoders(tokens, self._rows)
        if "context" in found:  # what no model looks at takes no room as zeros
            found["context"] = np.where(found["context_mask"][..., None], found["context"], 0)
        with np.errstate(over="ignore"):
            return {n: x if n in MASKS else x.astype(self._dtype) for n, x in found.items()}


class Several:
    """All that each of ``parts`` adds; where one has a reason against an example, that reason."""

    def __init__(self, parts: Sequence[Encode]):
        self._parts = parts
        self.fields = {k: v for part in parts for k, v in part.fields.items()}
        self.replaces = tuple(name for part in parts for name in part.replaces)

    def __call__(self, examples: Sequence[Values]) -> Made:
        made: Made = [{} for _ in examples]
        for part in self._parts:
            made = [
                old if isinstance(old, str) else new if isinstance(new, str) else {**old, **new}
                for old, new in zip(made, part(examples), strict=True)
            ]
        return made


def checked(values: dict[str, np.ndarray]) -> dict[str, np.ndarray] | str:
    """The values, or what is wrong with them."""
    for name, x in values.items():
        if not np.isfinite(x).all():
            return f"its {name} has values that are not finite, or do not fit into {x.dtype}"
    return values
