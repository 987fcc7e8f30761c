"""Weights in and out: from files of a known format to a workdir, and from a workdir to files.

``--from=FORMAT --weights=FILE_OR_DIR --workdir=DIR`` makes a workdir that ``dit.sample`` and
``dit.evaluate`` take, and ``--config.init_from.path`` of ``dit.train``. The sizes of the network come
from the ``config.json`` beside the weights or, where the format allows it, from their shapes; all else,
and the sizes of other weights, from ``--config=FILE`` and ``--config.SECTION.FIELD=VALUE``, as for
``dit.train``. Of latents it must say the codec. Of a pipeline's directory with ``transformer`` and
``transformer_2`` (Wan 2.2 A14B) both come in, the second in the workdir ``low`` of the first: see
``dit.experts``.

``--to=FORMAT --workdir=DIR --out=FILE_OR_DIR`` writes the weights of a run: a ``.safetensors`` file, or
a directory with ``config.json`` and, above ``--largest`` gigabytes, parts and an index.

A LoRA (``--config.lora.rank``) is written alone, as PEFT and diffusers lay it out, or with ``--merge``
as a whole network; ``--merge`` without ``--to`` makes a workdir of it. A file of a LoRA is read with
``--base=WORKDIR``, the run or converted weights that it is for.

Tensors are read and written one at a time: memory is needed for the largest, and not for the network.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import ml_dtypes
import numpy as np

from dit import carry, cli, config_file, experts, storage
from dit.config import names, resolve
from dit.draw import load_experiment
from dit.experiment import Experiment, build
from dit.interop import autoencoder, diffusers_wan_vae, files, folder
from dit.interop import lora as layouts
from dit.interop.mapping import Format, State
from dit.reconstruct import LATENTS
from dit.sections import HOW, complete, override
from dit.training.weights import check_new
from dit.types import Range, UserError, Whole

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
OPTIONS = {  # what belongs to which way
    "in": ("weights", "config", "base", "which"),
    "out": ("out", "which", "step", "merge", "kohya", "dtype", "largest"),
    "merge": ("out", "which", "step", "merge"),
}


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit convert", description=__doc__)
    add, known = parser.add_argument, ", ".join(names("interop"))
    add("--from", dest="source", metavar="FORMAT", help=f"the format that is read: {known}")
    add("--to", metavar="FORMAT", help="the format that is written, one of the same")
    add("--workdir", required=True, help="the run that is made, or that is written or merged")
    add("--weights", help="a file, an index of parts, or a directory")
    add("--config", help="a Python file with get_config(), or the name of a config of this package")
    add("--base", help="of a LoRA's file: the workdir of the network that it is for")
    add("--out", help="a .safetensors file or a directory; of --merge alone, a workdir")
    add(
        "--which",
        help="of a run: params, or an average (default: of the longest half-life); of a training "
        "checkpoint in a file: ema (default) or model",
    )
    add("--step", type=cli.number(Whole), help="which checkpoint (default: the latest)")
    add("--merge", action="store_true", help="add a LoRA to the network that it was trained on")
    add("--kohya", action="store_true", help="write a LoRA under kohya's names (lora_unet_...)")
    add("--dtype", choices=DTYPES, help="of the numbers that are written (default: float32)")
    add(
        "--largest",
        type=cli.number(Annotated[float, Range(1e-6, 1e6)]),
        help="gigabytes of a file that is written into a directory (default: 5)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    storage.workdir(args.workdir)
    ways = [way for way, on in (("in", args.source), ("out", args.to)) if on]
    if len(ways) == 2 or not (ways or args.merge):
        raise UserError("expected one of --from=FORMAT, --to=FORMAT and --merge; see --help")
    way = ways[0] if ways else "merge"
    given = {k for k, v in vars(args).items() if v not in (None, False)}
    given -= {"source", "to", "workdir", *OPTIONS[way]}
    if given or (overrides and way != "in"):
        odd = min(given) if given else f"config.{next(iter(overrides))}"
        raise UserError(
            f"--{odd} is of no effect with {'--from' if way == 'in' else '--to, --merge'}"
        )
    needed = "weights" if way == "in" else "out"
    if getattr(args, needed) is None:
        raise UserError(f"--{needed} is missing; see --help")
    with cli.full_disk():
        {"in": bring_in, "out": bring_out, "merge": merge}[way](args, overrides)


# --- in ------------------------------------------------------------------------------------------


def bring_in(args: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    """Make a workdir of weights in a foreign format."""
    workdir, form = storage.workdir(args.workdir), resolve("interop", args.source)
    check_new(workdir)
    if layouts.is_lora(folder.opened(args.weights, None)[0]):
        bring_in_lora(args, form, workdir, overrides)
        return
    if args.base is not None:
        raise UserError(f"got --base, and no LoRA in {args.weights!r}; leave it out")
    state, settings, place = folder.opened(args.weights, args.which or "ema")
    if form.latents is not None and autoencoder.statistics(state):
        raise UserError(
            "these weights have statistics of their latents (FLUX.2), which no workdir keeps; a codec "
            f"takes them: --config.codec.name=autoencoder_kl --config.codec.path={args.weights}"
        )
    told = {}
    if settings or args.config is None:
        told = form.sections(dict(form.only(state)), settings) if form.sections else {}
    if "samples" in told:
        told["samples"] = told["samples"] | solver_of(place)
    experiment = described(args.config, overrides, told, vae_of(place))
    form.check(experiment.model)
    second = second_of(args.weights, place)
    count = carry.save(workdir, experiment, carry.of_state(form, state, experiment))
    scale = None
    if form.latents is not None:
        scale = form.latents.read(experiment.model, folder.with_statistics(settings, place))
    if scale is not None:
        storage.write(workdir / LATENTS, json.dumps(scale, indent=2) + "\n")
    print(f"{count:,} parameters of {args.weights} are in {workdir}, {summary(experiment)}")
    if second is not None:
        folder_of, boundary = second
        below = workdir / experts.FOLDER
        state = folder.opened(str(folder_of))[0]
        count = carry.save(below, experiment, carry.of_state(form, state, experiment))
        experts.keep(workdir, boundary)
        print(f"{count:,} parameters of {folder_of}, for times below {boundary}, are in {below}")


def second_of(weights: str, place: pathlib.Path) -> tuple[pathlib.Path, float] | None:
    """Where a pipeline's directory has a second network, and the time below which it draws."""
    found = place.parent / folder.SECOND
    if place.name not in folder.PARTS or place == pathlib.Path(weights) or not found.is_dir():
        return None
    boundary = folder.read_json(place.parent / "model_index.json").get("boundary_ratio")
    if not isinstance(boundary, float) or not 0 < boundary < 1:
        raise UserError(
            f"there is a {folder.SECOND} beside {place}, and model_index.json says boundary_ratio="
            f"{boundary!r}; expected a time between 0 and 1, or give --weights={place} alone"
        )
    return found, boundary


def described(
    file: str | None,
    overrides: Mapping[str, Any],
    told: Mapping[str, Any],
    vae: dict[str, str] | None,
) -> Experiment:
    """The experiment that a config, or else the weights themselves (``told``), and overrides name.

    ``vae``: the codec of an autoencoder that lies beside them. Raises UserError for what nothing names.
    """
    if file is None:
        config = {"steps": 1, "batch_size": 1, **told}
        if vae is None:  # known channels are made of what is encoded
            config.pop("concat", None)
        latents = "objective" not in told and told["data"]["shape"][-1] not in (1, 3)
        if vae is not None:
            config["codec"] = vae
        elif latents and "codec.name" not in overrides:
            raise UserError(
                f"the weights are of latents of {told['data']['shape'][-1]} channels, and nothing says "
                "of which autoencoder: give --config.codec.name=autoencoder_kl --config.codec.path=VAE "
                "(and --config.codec.family=sd), to draw pictures, or --config.codec.name=latent "
                "--config.codec.scale=0.18215, to draw latents"
            )
    else:
        config = config_file.plain(config_file.overlay(config_file.read(file), overrides))
        if "model" in told:
            how = {k: v for k, v in config.get("model", {}).items() if k in HOW}
            config["model"] = {**told["model"], **how}
    config = override(config, overrides)
    if config.get("text"):  # it says these; where the weights say others, they do not fit
        said = {"context_dim", "pooled_dim"} & set(told.get("model", {})) - {
            key.removeprefix("model.") for key in overrides
        }
        config["model"] = {k: v for k, v in config["model"].items() if k not in said}
    config = complete(config)
    try:
        return build(config)
    except UserError:  # the data need not be there
        data = {**config.data, **told.get("data", {})}
        if data.get("shape") is None:
            raise
        example = {"shape": list(data["shape"]), "classes": data.get("num_classes")}
        return build(config.to_dict(), example)


def vae_of(place: pathlib.Path) -> dict[str, str] | None:
    """The codec of the autoencoder of a pipeline, beside its network."""
    folder_of, file = place.parent / "vae", place.parent / "vae" / "config.json"
    if place.name not in (*folder.PARTS, folder.SECOND) or not file.exists():
        return None
    causal = folder.read_json(file).get("_class_name") in diffusers_wan_vae.CLASSES
    return {"name": "wan_vae" if causal else "autoencoder_kl", "path": str(folder_of.absolute())}


def solver_of(place: pathlib.Path) -> dict[str, str]:
    """PNDM for ``samples``, where the scheduler of a pipeline, beside its network, is that one."""
    file = place.parent / "scheduler" / "scheduler_config.json"
    if place.name not in folder.PARTS or not file.exists():
        return {}
    found = folder.read_json(file)
    if found.get("_class_name") != "PNDMScheduler":
        return {}
    return {"solver": "pndm" if found.get("skip_prk_steps") else "pndm:runge_kutta=true"}


def bring_in_lora(
    args: argparse.Namespace, form: Format, workdir: storage.Place, overrides: Mapping[str, Any]
) -> None:
    """Make a workdir of a LoRA in the layout of PEFT or diffusers."""
    if args.base is None or args.config is not None or overrides:
        raise UserError(
            f"{args.weights!r} holds a LoRA; expected --base=WORKDIR, the run or converted weights that "
            "it is for, and no --config"
        )
    state, _, place = folder.opened(args.weights, None)
    header = header_of(args, place)
    experiment, parts, beside = carry.with_lora(form, state, header, args.base, args.which)
    count = carry.save(workdir, experiment, parts)
    print(
        f"{count:,} parameters of a LoRA of rank {experiment.lora.rank} are in {workdir}, for the "
        f"network in {args.base}"
    )
    if beside:
        print(
            f"left out: {len(beside)} tensors of its text encoders, such as {beside[0]}; what it draws "
            "is not what it draws with them"
        )


def header_of(args: argparse.Namespace, place: pathlib.Path) -> Mapping[str, str]:
    """The metadata of a LoRA's file; PEFT keeps them in a file of their own."""
    if (place / "adapter_config.json").exists():
        return {layouts.METADATA: (place / "adapter_config.json").read_text(encoding="utf-8")}
    whole = pathlib.Path(args.weights).expanduser()
    found = [whole] if whole.is_file() else sorted(whole.glob("*.safetensors"))
    return files.metadata(found[0]) if found else {}


def summary(experiment: Experiment) -> str:
    """What a workdir draws, in words."""
    classes = (
        "no classes" if experiment.num_classes is None else f"{experiment.num_classes} classes"
    )
    shape = "x".join(map(str, experiment.codec.decoded_shape(experiment.shape)))
    return f"for examples of {shape}, {classes}, codec {experiment.config.codec.name}"


# --- out -----------------------------------------------------------------------------------------


def bring_out(args: argparse.Namespace, _: Mapping[str, Any]) -> None:
    """Write the weights of a run in a foreign format."""
    form, experiment = resolve("interop", args.to), load_experiment(args.workdir, args.step)
    how = {
        "dtype": DTYPES[args.dtype or "float32"],
        "largest": int((args.largest or 5) * 1e9),
    }
    lora = experiment.lora is not None
    form.check(experiment.model)
    check_merge(args, experiment)
    if lora and not args.merge:
        pairs = carry.pairs_of(experiment, args.workdir, args.which, args.step)
        written = carry.write_lora(form, experiment, pairs, args.out, args.kohya, **how)
    else:
        if lora:
            carry.fingerprints_of(experiment)  # the frozen network must be the one that it was
        read = carry.of_run(experiment, args.workdir, args.which, args.step)
        settings = None
        if form.settings is not None and not args.out.endswith(".safetensors"):
            settings = form.settings(experiment.model, experiment.shape)
            settings |= scale_of(form, args.workdir)
        written = carry.write(form, experiment, read, args.out, settings=settings, **how)
    size = sum(file.stat().st_size for file in written)
    print(f"{size / 1e9:.3g} GB in {len(written)} files: {written[0]}")


def scale_of(form: Format, workdir: str) -> State:
    """How the latents of an autoencoder are scaled, as ``config.json`` says it."""
    file = storage.workdir(workdir) / LATENTS
    if form.latents is None or not file.is_file():
        return {}
    return form.latents.written(json.loads(file.read_text()))


def merge(args: argparse.Namespace, _: Mapping[str, Any]) -> None:
    """Make a workdir of a LoRA run's network."""
    out, experiment = storage.workdir(args.out), load_experiment(args.workdir, args.step)
    check_merge(args, experiment)
    check_new(out)
    carry.fingerprints_of(experiment)
    read = carry.of_run(experiment, args.workdir, args.which, args.step)
    count = carry.save(out, carry.merged(experiment), read)
    print(f"{count:,} parameters, the LoRA of {args.workdir} added, are in {out}")


def check_merge(args: argparse.Namespace, experiment: Experiment) -> None:
    """Raise UserError for a run that trained no LoRA, where one is to be merged."""
    given = "--merge" if args.merge else "--kohya"
    if (args.merge or args.kohya) and experiment.lora is None:
        raise UserError(f"got {given}, and the run in {args.workdir} trained no LoRA; leave it out")
    if args.merge and args.kohya:
        raise UserError(
            "got --merge and --kohya, which names a LoRA's maps alone; give one of them"
        )


if __name__ == "__main__":
    cli.run(main)
