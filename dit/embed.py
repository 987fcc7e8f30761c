"""Embed texts, and pictures, by frozen encoders: ``dit embed --text=minilm --prompt="a red circle"``.

Writes an .npz file with a row for each text of ``context``, ``context_mask`` and ``pooled``, which
``dit.sample --cond=FILE`` reads, and which encoders made them (``made_by``). Several encoders, each in
a ``--text`` of its own, are joined as in Stable Diffusion 3: CLIPs along the channels, then the others
along the sequence.

    --text=minilm                              the encoder inside a package of the extra 'text'
    --text=clip:path=DIR --text=t5:path=DIR    directories as transformers saves them
    --text=minilm:use=context,length=32        options: see dit/text/pretrained/encoder.py

``--vision=DIR --image=FILE`` adds ``image_context``, the same for each text, by the image tower of a
CLIP: what Wan 2.1's image-to-video networks are told of the first frame beside its latents (and with
``--last=FILE`` of the last one, after it). Pictures are scaled to the tower's square.

On several hosts the same command runs on each of them, as for ``dit.train``; the first one writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dit import cli, media, storage
from dit.data import pictures
from dit.encoders import Encoders
from dit.evaluation.features import clip
from dit.parallel import multihost
from dit.parallel.mesh import OPTION, make_mesh, parse_mesh
from dit.prompts import MADE_BY, read_prompts
from dit.types import Count, UserError


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
        default=[],
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
    add("--vision", metavar="DIR", help="a CLIP, or its image tower, as transformers saves it")
    add("--image", metavar="FILE", help="a picture, which --vision sees")
    add("--last", metavar="FILE", help="another one after it")
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
    if (args.vision is None) != (args.image is None) or (args.last and not args.image):
        raise UserError("expected --vision=DIR and --image=FILE together, and perhaps --last=FILE")
    if bool(texts) != bool(args.text) or not (texts or args.image):
        raise UserError(
            'nothing to embed; expected --text=NAME and --prompt="..." or --prompts=FILE, or '
            "--vision=DIR and --image=FILE"
        )
    multihost.connect(args)
    with multihost.guard(storage.place(args.out).parent, writes=False), cli.full_disk():
        run(args, texts)


def run(args: argparse.Namespace, texts: Sequence[str]) -> None:
    """Embed and write, on process 0 of all that have come so far."""
    if multihost.is_main():
        media.check_place(args.out, (".npz",))
    arrays, seconds = embedded(args, texts) if texts else ({}, 0.0)
    if args.image is not None:
        found = image_context(args.vision, args.image, args.last)
        arrays["image_context"] = found.repeat(max(1, len(texts)), 0)
    if multihost.is_main():
        media.save_arrays(args.out, arrays)
    shown = (f"{k} {'x'.join(map(str, x.shape))}" for k, x in arrays.items() if k != MADE_BY)
    did = f"{len(texts)} texts in {seconds:.2f} s after compilation" if texts else "the pictures"
    multihost.say(f"{did}: {', '.join(shown)} in {args.out}")


def embedded(args: argparse.Namespace, texts: Sequence[str]) -> tuple[dict[str, np.ndarray], float]:
    """What the encoders make of the texts, and who they were; the seconds that it took."""
    mesh = make_mesh(parse_mesh(args.mesh))
    shared = {"dtype": args.dtype} | ({"layers": tuple(args.layers)} if args.layers else {})
    encoders = Encoders.open(args.text, mesh, **shared)
    tokens, cut = encoders.tokens(texts)
    for line in cut if multihost.is_main() else ():
        print(line, file=sys.stderr)
    rows = encoders.rows(min(args.batch, len(texts)))
    encoders.compiled(rows)
    since = time.perf_counter()
    arrays = encoders(tokens, rows)
    seconds = time.perf_counter() - since
    return {**arrays, MADE_BY: np.array(json.dumps(encoders.made_by))}, seconds


def image_context(path: str, *files: str | None) -> Float[np.ndarray, "1 t d"]:
    """The states of pictures in the tower at ``path``, one after the other; UserError for no picture."""
    seen = []
    for file in files:
        if file is not None:
            with pictures.opened(file) as image:
                seen.append(np.asarray(pictures.upright(image, 3)))
    found = clip.states(path, seen)
    return found.reshape(1, -1, found.shape[-1])


if __name__ == "__main__":
    cli.run(main)
