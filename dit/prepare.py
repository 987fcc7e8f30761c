"""Turn pictures or videos into records: ``python -m dit.prepare --source=DIR --size=256 --out=RECORDS``.

    --source=pictures/                          a folder: sub-folders are classes, or captions in a
                                                .txt beside each picture or in captions.jsonl
    --source='webdataset:crawl/*.tar'           tars of .jpg with .txt, .json or .cls
    --source=parquet:DIR,image=image            columns of pictures, captions, labels
    --source=tfds:imagenet2012,held_out=validation
    --source=videos/ --frames=16 --fps=8        a folder, or tars, of videos and animations

With --codec=autoencoder_kl:path=DIR, or wan_vae:path=DIR of clips, the records hold latents, and with
--text=minilm, for one, what text encoders make of the captions.

Then ``python -m dit.train --config=... --config.data.name=records --config.data.path=RECORDS``. They are
ArrayRecord shards, which ``tfds.builder_from_directory(RECORDS)`` reads too, with a ``manifest.json``.
Killed and started again, the same command goes on, and the records are the same. What cannot be used is
listed in ``broken.jsonl`` with the reason. On several machines with one directory, each runs the command
with a ``--share`` of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import importlib.util
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dit import cli
from dit.config import builder, keywords, literal, names, resolve
from dit.data import pictures, records
from dit.data.clips import Taking
from dit.data.prepare import MOST_PIXELS, Input, run, shards
from dit.data.prepare.convert import Options
from dit.data.prepare.inputs.webdataset import SUFFIXES
from dit.data.prepare.parts import Job
from dit.encode import Captions, Latents, Several
from dit.parallel.mesh import OPTION, make_mesh, parse_mesh
from dit.types import Count, Fraction, Positive, UserError, Whole

INPUTS = "data.prepare.inputs"


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dit prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", metavar="[KIND:]PATH,KEY=VALUE,...", help="the raw data; see above")
    add("--out", required=True, metavar="DIR", help="where to: a new directory, local or mounted")
    add(
        "--size",
        metavar="N | HxW,HxW,...",
        help="of the pictures; of several, each picture has the one with the nearest aspect ratio",
    )
    add(
        "--frames",
        type=cli.number(Count),
        help="make clips of N frames, each one from a video's beginning; without, pictures",
    )
    add(
        "--fps",
        type=cli.number(Positive),
        help="frames a second of a clip, found by the times of the video's own (default: the video's "
        "frames as they are, which must come at an even rate)",
    )
    add("--stride", type=cli.number(Count), help="take each N-th of the video's own frames")
    add(
        "--clips",
        type=cli.number(Count),
        help="up to so many of a video, one after the other (default: 1)",
    )
    add("--channels", type=int, choices=sorted(pictures.MODES), default=3, help="3 or 1 (grey)")
    add(
        "--held-out",
        type=cli.number(Fraction),
        default=0.01,
        help="the fraction kept out of training, chosen by id, unless the source has splits "
        "(default: %(default)s)",
    )
    add(
        "--codec",
        metavar="NAME:KEY=VALUE,...",
        help="store latents, as mean and standard deviation, in place of pictures: "
        "autoencoder_kl:path=DIR, or wan_vae:path=DIR for clips",
    )
    add(
        "--flip", action="store_true", help="with --codec: store the mirrored pictures' latents too"
    )
    add(
        "--text",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="store what a frozen text encoder makes of each caption, as dit embed does: minilm, "
        "clip:path=DIR, t5:path=DIR; may be repeated",
    )
    add(
        "--encoded",
        choices=("float16", "float32"),
        default="float16",
        help="how numbers of encoders are stored (default: %(default)s)",
    )
    add(
        "--batch", type=cli.number(Count), default=32, help="encoded at once (default: %(default)s)"
    )
    add("--mesh", default="dp", help=f"of all devices, for encoders: {OPTION}")
    add("--classes", type=cli.number(Count), help="how many; larger labels are broken")
    add(
        "--fields",
        help="label, caption or both (or none): what every record has; examples without are listed as "
        "broken (default: what at least half of them have)",
    )
    add("--drop-copies", action="store_true", help="drop pictures that are near-copies of others")
    add(
        "--shard-mb",
        type=cli.number(Count),
        default=256,
        help="of a shard (default: %(default)s)",
    )
    add(
        "--most-pixels",
        type=cli.number(Count),
        default=MOST_PIXELS,
        help="larger pictures are broken (default: %(default)s)",
    )
    add(
        "--workers",
        type=cli.number(Whole),
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        help="processes here, 0 for this one alone (default: %(default)s)",
    )
    add("--share", default="0/1", metavar="I/N", help="the I-th of N machines, from 0")
    add("--check", action="store_true", help="read finished records whole and compare the hashes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dit").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    out = pathlib.Path(args.out).expanduser()
    if args.check:
        return check(out)
    if args.source is None or args.size is None:
        raise UserError("expected --source=... and --size=..., or --check of finished records")
    share = share_of(args.share)
    options = Options(
        sizes=sizes_of(args.size),
        channels=args.channels,
        held_out=args.held_out,
        classes=args.classes,
        fields=None if args.fields is None else fields_of(args.fields),
        drop_copies=args.drop_copies,
        shard_bytes=args.shard_mb * 2**20,
        most_pixels=args.most_pixels,
        taking=taking_of(args),
    )
    kind, given = parse_source(args.source)
    source = resolve(INPUTS, kind, **given, **videos(kind, options))
    if source.classes is not None:
        options = dataclasses.replace(options, classes=len(source.classes))
    facts = facts_of(kind, given, source, options)
    encode = encoders(args, options)
    facts |= {"encoded": {"text": args.text, **encode.fields} if encode else None}
    job = Job(source, options, out, encoded=encode is not None)
    with cli.full_disk():
        made = run.run(job, facts, encode=encode, workers=args.workers, share=share)
    print(summary(out, made))
    return 0


def encoders(args: argparse.Namespace, options: Options) -> Several | None:
    """What is to be encoded on the devices; UserError for what cannot be."""
    if args.flip and args.codec is None:
        raise UserError("got --flip without --codec: pixels are mirrored in training, by data.flip")
    if args.text and options.fields is not None and "caption" not in options.fields:
        raise UserError("got --text, which needs captions, and --fields without caption")
    if not args.text and args.codec is None:
        return None
    mesh = make_mesh(parse_mesh(args.mesh))
    shared = {"batch": args.batch, "dtype": args.encoded}
    found: list[Latents | Captions] = []
    if args.codec is not None:
        given = {"sizes": options.sizes, "channels": options.channels, "flip": args.flip}
        given |= options.clips
        found.append(Latents(args.codec, mesh, **given, **shared))
    if args.text:
        found.append(Captions(args.text, mesh, **shared))
    return Several(found)


def parse_source(text: str) -> tuple[str, dict[str, Any]]:
    """``KIND:PATH,KEY=VALUE`` as (kind, options); without a kind, what is in the directory says it."""
    kinds = names(INPUTS)
    kind, colon, rest = text.partition(":")
    if not colon or kind not in kinds:
        kind, rest = kind_of(text), text.replace(",", "\0")  # a path with commas stays whole
    first, *pairs = rest.split(",")
    options: dict[str, Any] = {"path": first.replace("\0", ",")}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in options:
            raise UserError(f"got --source={text!r}; expected KIND:PATH,KEY=VALUE,...")
        options[key] = literal(value)
    return kind, options


def kind_of(path: str) -> str:
    """What a directory, a file or a pattern holds, by the suffixes of the files."""
    path = os.path.expanduser(path)
    found = glob.glob(path, recursive=True)
    if os.path.isdir(path):
        found = os.listdir(path)
    for kind, suffixes in (("webdataset", SUFFIXES), ("parquet", (".parquet",))):
        if any(name.endswith(suffixes) for name in found):
            return kind
    return "folder"


def sizes_of(text: str) -> tuple[tuple[int, int], ...]:
    """``"256"`` or ``"256x256,192x320"`` as (height, width) each."""
    sizes = []
    for item in text.lower().split(","):
        sides = [literal(side) for side in item.split("x")]
        whole = all(isinstance(side, int) and 0 < side < 2**15 for side in sides)
        if not whole or len(sides) not in (1, 2):
            raise UserError(
                f"got --size={text!r}; expected 256, or HEIGHTxWIDTH, several with commas"
            )
        sizes.append((sides[0], sides[-1]))
    if len({height / width for height, width in sizes}) < len(sizes):
        raise UserError(f"got --size={text!r}; expected sizes of different aspect ratios")
    return tuple(sizes)


def taking_of(args: argparse.Namespace) -> Taking | None:
    """Which frames make clips; None for pictures. UserError for options that do not go together."""
    rest = {name: getattr(args, name) for name in ("fps", "stride", "clips")}
    given = {name: value for name, value in rest.items() if value is not None}
    if args.frames is None:
        if given:
            raise UserError(f"got --{next(iter(given))} without --frames, by which clips are made")
        return None
    if {"fps", "stride"} <= set(given):
        raise UserError("got --fps and --stride, which both say how far apart frames are: give one")
    return Taking(args.frames, **given)


def videos(kind: str, options: Options) -> dict[str, bool]:
    """What an input is told where it is to be videos; UserError for one of pictures alone."""
    if options.taking is None:
        return {}
    if "videos" not in keywords(builder(INPUTS, kind)):
        raise UserError(f"got --frames and --source of kind {kind}, which gives pictures alone")
    if importlib.util.find_spec("av") is None:
        raise UserError("videos need the package av: pip install av, or the extra 'video'")
    return {"videos": True}


def fields_of(text: str) -> tuple[str, ...]:
    """``"label,caption"`` or ``"none"``."""
    found = () if text == "none" else tuple(text.split(","))
    if set(found) - {"label", "caption"} or len(set(found)) < len(found):
        raise UserError(f"got --fields={text!r}; expected label, caption, label,caption or none")
    return found


def share_of(text: str) -> tuple[int, int]:
    """``"0/4"`` as (0, 4)."""
    own, slash, of = text.partition("/")
    if not slash or not own.isdecimal() or not of.isdecimal() or not int(own) < int(of):
        raise UserError(f"got --share={text!r}; expected I/N with 0 <= I < N, such as 0/4")
    return int(own), int(of)


def facts_of(kind: str, given: dict[str, Any], source: Input, options: Options) -> dict[str, Any]:
    """What the records depend on, as the manifest says it: not where the raw data lie."""
    shown = {
        "sizes": [list(size) for size in options.sizes],
        "fields": None if options.fields is None else list(options.fields),
    }
    plain = ("channels", "held_out", "classes", "drop_copies", "shard_bytes", "most_pixels")
    return {
        "source": {"kind": kind, **{k: v for k, v in given.items() if k != "path"}},
        "content": source.facts,
        **({} if options.taking is None else {"taking": dataclasses.asdict(options.taking)}),
        **shown,
        **{name: getattr(options, name) for name in plain},
    }


def summary(out: pathlib.Path, made: dict[str, Any]) -> str:
    """What has been made, in a few lines."""
    fields, counts = made["fields"], made["counts"]
    kept = ", ".join(f"{split['records']} {name}" for name, split in made["splits"].items())
    what = f"{fields['classes']} classes" if fields["classes"] else "no labels"
    what += f", clips of {fields['frames']} frames" if "frames" in fields else ""
    if "latents" in fields:
        sizes = " or ".join("x".join(map(str, size)) for size in fields["latents"]["sizes"])
        what += f", latents {sizes} of {fields['latents']['channels']} channels"
    what += ", captions" if fields["captions"] else ", no captions"
    for name, given in fields.get("text", {}).items():
        what += f", {name} {'x'.join(map(str, given['shape']))}"
    lines = [f"{kept} records in {len(made['shards'])} shards ({what}): {out}"]
    if counts["broken"]:
        lines.append(f"{counts['broken']} broken inputs are listed in {out / 'broken.jsonl'}")
    if counts["copies"]:
        lines.append(f"{counts['copies']} copies are listed in {out / 'copies.jsonl'}")
    lines.append(
        f"to train: dit train --config=... --config.data.name=records --config.data.path={out}"
    )
    return "\n".join(lines)


def check(out: pathlib.Path) -> int:
    """Compare all bytes of finished records with the manifest; the exit status."""
    made = records.read_manifest(out)
    changed = shards.check(out, made)
    for name in changed:
        print(f"{name} is not what {records.MANIFEST} says: copy it again")
    print(f"{len(made['shards']) - len(changed)} of {len(made['shards'])} shards are whole")
    return 1 if changed else 0


if __name__ == "__main__":
    cli.run(main)
