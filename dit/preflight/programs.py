"""Compile a run's programs for devices that need not exist, and read off what they would do there."""

from __future__ import annotations

import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dit import rng
from dit.draw import Sampler
from dit.experiment import Experiment
from dit.parallel import hlo
from dit.parallel.estimate import kernel_flops, step_time
from dit.parallel.flags import GPU
from dit.parallel.frozen import shapes as shapes_of
from dit.parallel.hlo import Collective
from dit.parallel.mesh import batch_shards
from dit.parallel.rules import is_axes
from dit.parallel.topology import Topology
from dit.preflight.account import activations, step_flops
from dit.preflight.report import Report
from dit.recipe import recipe_from
from dit.scaling.flops import sampling_flops
from dit.scaling.jaxpr_flops import count
from dit.training.feed import bucket_shapes
from dit.training.program import Program, program
from dit.types import UserError, masks

OVERFLOW = re.compile(r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)")
TRAIN = "train step"
DIRECT = 32  # chips of a large 3-D torus over which libtpu still gathers directly
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def train_step(experiment: Experiment, where: Topology) -> Report:
    """The report on the train step that ``dit.train`` would run on these devices."""
    batches = experiment.batches()
    try:
        run = program(experiment, batches, where.devices)
        shapes, examples = bucket_shapes(batches)[0], batches.examples
    finally:
        batches.close()
    state = placed(run.abstract, run.shardings)
    batch = placed(shapes, jax.tree.map(lambda _: run.batch_sharding, shapes))
    key = placed(jax.eval_shape(lambda: rng.root(0)), run.replicated)
    size = experiment.config.batch_size
    accumulate = experiment.config.optimizer.get("accumulate", 1)
    with jax.default_device(target(where)):
        kept = activations(experiment, run, batch)
        traced = run.train_step.trace(state, batch, key)
    others = state.networks.values()
    trained = [state.params, *(each.params for each in others)]
    return report(
        TRAIN,
        experiment,
        where,
        run,
        traced,
        images=size,
        each=examples / size,
        flops=round(examples * step_flops(experiment)),
        memory={
            "parameters": per_device((trained, run.train_step.frozen)),
            "optimizer": per_device([state.opt_state, *(each.opt_state for each in others)]),
            "EMA": per_device(state.ema),
            "batch": per_device(batch),
        },
        within={
            "gradients": per_device(trained),
            "activations": kept // run.mesh.size // accumulate,
        },
    )


def sampler(experiment: Experiment, where: Topology) -> Report:
    """The report on drawing one batch of samples with the config's recipe, a share on every device."""
    batches = experiment.batches()
    run, shapes = program(experiment, batches, where.devices), batches.shapes()
    batches.close()
    settings = {**experiment.config.samples.to_dict(), "num": experiment.config.samples.batch}
    if experiment.text is not None:
        settings["prompts"] = ("",)
    draw = Sampler(experiment, recipe_from(settings, experiment.num_classes))
    shards = batch_shards(run.mesh)
    size = -(-draw.n // shards) * shards
    params = placed(run.abstract.params, run.shardings.params)
    ids = {"id": jax.ShapeDtypeStruct((size,), "int32")}
    if experiment.num_classes:
        ids["label"] = jax.ShapeDtypeStruct((size,), "int32")
    for name in shapes.keys() & {*experiment.arrays, *masks(experiment.arrays)}:
        shape, dtype = shapes[name]
        ids[name] = jax.ShapeDtypeStruct((size, *shape[1:]), dtype)
    for name, x in draw.words.items():
        ids[name] = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
    batch = placed(ids, jax.tree.map(lambda _: run.batch_sharding, ids))
    frozen = shapes_of(experiment.sampled_with, run.mesh)
    with jax.default_device(target(where)):
        traced = draw.jitted(run.mesh).trace(params, None, batch, frozen)
    return report(
        f"sampler, {draw.recipe.steps} steps",
        experiment,
        where,
        run,
        traced,
        images=size,
        flops=size
        * (
            sampling_flops(
                experiment.model, experiment.shape, draw.evaluations(), experiment.context_len
            )
            + experiment.text_flops
        ),
        memory={"parameters": per_device((params, frozen)), "batch": per_device(batch)},
        within={},
    )


def target(where: Topology) -> Any:
    """The device to trace for: it decides which attention kernel is taken."""
    return where.devices[0]


def placed(shapes: Any, where: Any) -> Any:
    """Shapes with shardings, in place of arrays. ``where``: one sharding, or a tree of them."""
    if not isinstance(where, jax.sharding.Sharding):
        return jax.tree.map(placed, shapes, where)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


def per_device(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device, without padding."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def report(
    what: str,
    experiment: Experiment,
    where: Topology,
    run: Program,
    traced: Any,
    *,
    images: int,
    flops: int,
    memory: dict[str, int],
    within: dict[str, int],
    each: float = 1.0,
) -> Report:
    """Lower, compile and read. A program that the compiler refuses for want of memory does not fit."""
    params = run.abstract.params
    tokens = experiment.model.tokens(experiment.shape)
    length = experiment.config.packing.tokens if experiment.packed and what == TRAIN else tokens
    on_tpu = where.platform == "tpu"
    common = {
        "what": what,
        "topology": where.name,
        "mesh": {k: n for k, n in run.mesh.shape.items() if n > 1},
        "devices": run.mesh.size,
        "chips": where.chips,
        "steps": experiment.config.steps,
        "within": within,
        "images": images,
        "each": each,
        "tokens": images * length,
        "model_flops": flops,
        "program_flops": count(traced.jaxpr.jaxpr),
        "peak_flops": where.peak,
        "hbm": where.hbm,
        "remat": experiment.remat or "none",
        "expected_sizes": gathered(experiment, params, run.mesh, images),
        "advice": lanes(experiment.axes, params) if on_tpu else [],
        "flags": os.environ.get("LIBTPU_INIT_ARGS", "") if on_tpu else None,
    }
    start = time.perf_counter(), time.process_time()
    try:
        with jax.default_device(target(where)):
            compiled, text = compile_and_read(traced.lower(), where)
    except jax.errors.JaxRuntimeError as error:
        found = OVERFLOW.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not found:
            raise
        needed, hbm = (float(found[i]) * UNITS[found[i + 1]] for i in (1, 3))
        memory |= {"needed": int(needed)}
        return Report(**common | {"hbm": hbm}, memory=memory, fits=False)
    used = compiled.memory_analysis()
    total = (
        used.argument_size_in_bytes
        + used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
        + used.generated_code_size_in_bytes
    )
    memory |= {
        "temporaries": used.temp_size_in_bytes,
        "program": used.generated_code_size_in_bytes,
        "needed": total,
    }
    program_text = hlo.read(text)
    found = hlo.collectives(program_text, run.mesh)
    common["advice"] += reduced(found, run.mesh.shape) if on_tpu else []
    attention = experiment.model.attention_macs(experiment.shape) * (length / tokens) ** 2
    pairs = 2 * attention * images / run.mesh.size
    return Report(
        **common,
        memory=memory,
        fits=common["hbm"] is None or total <= common["hbm"],
        collectives=found,
        kernels=hlo.kernels(program_text),
        kernel_flops=kernel_flops(program_text, pairs) * run.mesh.size,
        time=step_time(program_text, found, where, pairs),
        compile_seconds=time.perf_counter() - start[0],
        cpu_seconds=time.process_time() - start[1],
    )


def compile_and_read(lowered: Any, where: Topology) -> tuple[Any, str]:
    """The compiled program and its text.

    A TPU's compiler writes the text into a directory: libtpu knows forms that jaxlib, which would write
    it otherwise, cannot read.
    """
    options = compiler_options(where)
    if where.platform != "tpu":
        compiled = lowered.compile(options)
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({**options, "xla_dump_to": folder})
        found = list(pathlib.Path(folder).glob("*.after_codegen.txt"))
        if len(found) != 1:
            raise UserError(
                f"libtpu wrote {len(found)} texts of the compiled program; expected one, as versions "
                'about 0.0.52 write it: pip install -U "dit-jax[preflight]"'
            )
        return compiled, found[0].read_text()


def compiler_options(where: Topology) -> dict[str, bool]:
    """What a compiler is told beside its flags: for GPUs that are not there, nothing to be tuned on."""
    if where.platform != "cuda":
        return {}
    return {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0, **gpu_options()}


def gpu_options() -> dict[str, bool]:
    """The flags that GPUs are launched with, as options."""
    return {name.removeprefix("--"): text == "true" for name, text in GPU.items()}


def gathered(experiment: Experiment, params: Any, mesh: Mesh, images: int) -> frozenset[int]:
    """The ``expected_sizes`` of the network and of all that is frozen beside it."""
    trees = [(experiment.axes, params)]
    trees += [(each.axes, each.abstract) for each in experiment.frozen.values()]
    return frozenset().union(*(expected_sizes(*tree, mesh, images) for tree in trees))


def expected_sizes(axes: Any, params: Any, mesh: Mesh, images: int) -> frozenset[int]:
    """Elements of every parameter, of one layer of it, and of a device's share along ``tensor``.

    And of the conditions of adaLN, which go to the devices that hold its columns.
    """
    whole, conditions = set(), set()
    for sizes in named_sizes(axes, params):
        size = math.prod(n for _, n in sizes)
        named = dict(sizes)
        whole |= {size, size // named.get("layers", 1)}
        if "condition" in named:
            conditions.add(images // mesh.shape["data"] * named["condition"])
    return frozenset(whole | {size // mesh.shape["tensor"] for size in whole} | conditions)


def lanes(axes: Any, params: Any) -> list[str]:
    """Widths and head sizes that leave lanes of a TPU's 128-wide matrix unit empty."""
    named = [dict(sizes) for sizes in named_sizes(axes, params)]
    heads = {(n["heads"], n["head_dim"]) for n in named if {"heads", "head_dim"} <= n.keys()}
    widths = {n["embed"] for n in named if "embed" in n}
    said = []
    for number, head in sorted(heads):
        if head % 128 and 128 % head:
            width = number * head
            best, filled = max(1, width // 128), head / (-(-head // 128) * 128)
            said.append(
                f"head size {head} fills {filled:.0%} of the lanes in attention; heads={best} has head "
                f"size {width // best}"
            )
    for width in sorted(widths):
        if width % 128:
            said.append(
                f"width {width} is not a multiple of 128; {max(1, round(width / 128)) * 128} is"
            )
    return said


def reduced(found: Sequence[Collective], sizes: Mapping[str, int]) -> list[str]:
    """What to do where weights are gathered by all-reduces; ``sizes``: of the mesh's axes.

    A TPU's compiler has no gather over all of a torus of 4x4x4 chips or more (its pass
    ``all_gather_decomposer``): each device adds its part to zeros, and twice the bytes travel. Gathers
    over 32 chips of it are gathers.
    """
    group = sizes["fsdp"] * sizes["context"]
    moved = {kind: 0 for kind in ("all-gather", "all-reduce")}
    for c in found:
        if c.kind in moved and c.group == group and not {"data", "slices"} & set(c.axes):
            moved[c.kind] += c.total
    if group <= DIRECT or moved["all-gather"] >= moved["all-reduce"]:
        return []
    return [
        f"weights are gathered over {group} chips by all-reduces, which send twice as much; state split "
        f"over {DIRECT} or fewer, such as --mesh=hsdp, is gathered directly"
    ]


def named_sizes(axes: Any, params: Any) -> list[list[tuple[str | None, int]]]:
    """For each parameter its axes' names with their sizes."""
    names = jax.tree.leaves(axes, is_leaf=is_axes)
    shapes = [x.shape for x in jax.tree.leaves(params)]
    return [list(zip(n, s, strict=True)) for n, s in zip(names, shapes, strict=True)]
