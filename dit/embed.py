"""Embed texts by frozen encoders: ``python -m dit.embed --text=minilm --prompt="a red circle"``.

Writes an .npz file with a row for each text of ``context``, ``context_mask`` and ``pooled``, which
``dit.sample --cond=FILE`` reads. Several encoders, each in a ``--text`` of its own, are joined as in
Stable Diffusion 3: CLIPs along the channels, then the others along the sequence.

    --text=minilm                              the encoder inside a package of the extra 'text'
    --text=clip:path=DIR --text=t5:path=DIR    directories as transformers saves them
    --text=minilm:use=context,length=32        options: see dit/text/pretrained/encoder.py

On several hosts the same command runs on each of them, as for ``dit.train``; the first one writes.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from dit import cli, media, storage
from dit.config import parse_spec, resolve
from dit.draw import placed
from dit.parallel import compiler, multihost
from dit.parallel.mesh import OPTION, batch_shards, make_mesh, parse_mesh, replicated
from dit.parallel.rules import in_force, shardings
from dit.prompts import read_prompts
from dit.text import Encoded
from dit.text.pretrained.encoder import Encoder, join
from dit.types import Count, Params, UserError


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dit embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--text",
        action="append",
        required=True,
        metavar="NAME:KEY=VALUE,...",
        help="an encoder: minilm, clip, t5 (umT5 too) or bert, and how it is used; may be repeated",
    )
    add("--prompt", action="append", default=[], help="a text, perhaps empty; may be repeated")
    add(
        "--prompts",
        metavar="FILE",
        help="a UTF-8 file of more texts, one a line; blank lines count for nothing",
    )
    add(
        "--layers",
        type=cli.number(int, several=True),
        help="whose states are the context, such as -2: the last but one (default: -1). Several "
        "follow each other along the channels. A --text may have its own layers=",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--batch", type=cli.number(Count), default=32, help="texts at once (default: %(default)s)")
    add("--mesh", default="dp", help=f"of all devices: {OPTION}")
    add("--out", default="cond.npz", help="an .npz file (default: %(default)s)")
    multihost.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    texts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    if not texts:
        raise UserError('nothing to embed; expected --prompt="..." or --prompts=FILE')
    multihost.connect(args)
    with multihost.guard(storage.place(args.out).parent, writes=False), cli.full_disk():
        run(args, texts)


def open_encoders(args: argparse.Namespace) -> list[Encoder]:
    """The encoders of the command line; UserError for one that cannot be opened."""
    shared = {"dtype": args.dtype} | ({"layers": tuple(args.layers)} if args.layers else {})
    encoders = []
    for text in args.text:
        spec = shared | parse_spec(text)
        encoders.append(resolve("text.pretrained", spec.pop("name"), **spec))
    return encoders


def run(args: argparse.Namespace, texts: Sequence[str]) -> None:
    """Embed and write, on process 0 of all that have come so far."""
    if multihost.is_main():
        media.check_place(args.out, (".npz",))
    mesh = make_mesh(parse_mesh(args.mesh))
    encoders = open_encoders(args)
    tokens = []
    for encoder, text in zip(encoders, args.text, strict=True):
        found = encoder.tokens(texts)
        tokens.append({"ids": found.ids, "mask": found.mask})
        if found.cut and multihost.is_main():
            shown = ", ".join(repr(texts[i][:40]) for i in found.cut[:3])
            print(
                f"{text} reads {encoder.length} tokens and cuts {len(found.cut)} of {len(texts)} "
                f"texts: {shown}",
                file=sys.stderr,
            )
    params = [e.load(shardings(e.abstract(), e.axes(), mesh)) for e in encoders]
    shards = batch_shards(mesh)
    size = -(-min(args.batch, len(texts)) // shards) * shards
    starts = range(0, len(texts), size)
    rows = [np.minimum(np.arange(i, i + size), len(texts) - 1) for i in starts]  # the last repeats

    def batch(r):
        return [placed({k: v[r] for k, v in t.items()}, mesh) for t in tokens]

    step = jax.jit(
        functools.partial(embed, encoders, mesh),
        out_shardings=replicated(mesh),
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )
    step = step.lower(params, batch(rows[0])).compile()
    since = time.perf_counter()
    parts = [jax.device_get(step(params, batch(r))) for r in rows]
    seconds = time.perf_counter() - since
    arrays = {k: np.concatenate([part[k] for part in parts])[: len(texts)] for k in parts[0]}
    check(arrays)
    if multihost.is_main():
        media.save_arrays(args.out, arrays)
    shown = ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in arrays.items())
    multihost.say(f"{len(texts)} texts in {seconds:.2f} s after compilation: {shown} in {args.out}")


def embed(
    encoders: Sequence[Encoder], mesh: Mesh, params: Params, tokens: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    """What the encoders together make of one batch of texts; to be jitted."""
    with in_force(mesh):
        encoded = [e.encode(p, **t) for e, p, t in zip(encoders, params, tokens, strict=True)]
    groups: dict[bool, list[Encoded]] = {True: [], False: []}
    for encoder, part in zip(encoders, encoded, strict=True):
        groups[encoder.model.beside].append(part)
    return {k: x for k, x in vars(join(groups[True], groups[False])).items() if x is not None}


def check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UserError for no arrays at all, and for numbers that are not finite."""
    if not arrays:
        raise UserError(
            "the encoders give nothing: a T5 has no pooled vector, leave use=pooled out"
        )
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise UserError(f"the {name} has values that are not finite: are the weights damaged?")


if __name__ == "__main__":
    cli.run(main)
