"""Every network, and one that is not in the package, answers for itself: what all else relies on."""

import functools
import importlib
import pathlib

import captions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from random_params import random_params

from dit import config, models
from dit.experiment import build as build_experiment
from dit.models import Network
from dit.parallel.mesh import batch_sharding, make_mesh
from dit.parallel.rules import RULES, in_force, is_axes, shardings
from dit.parallel.topology import find
from dit.preflight import __main__ as command
from dit.preflight import programs
from dit.preflight.account import POLICIES, Choice, account
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.scaling.ladder import ladder
from dit.sections import HOW
from dit.text.network import TextConditioned
from dit.training.program import program
from dit.training.transfer import Transfer, init_multipliers, kind
from dit.types import UserError

READ = "text and "  # a network behind a text encoder
PLAIN = [*config.names("models"), "toy"]
READERS = [n for n in PLAIN[:-1] if "context_dim" in config.keywords(config.builder("models", n))]
NETWORKS = [*PLAIN, *(READ + name for name in READERS)]
# To be compiled. The encoder is the same before every network; a network that is slow has a quick
# one of its kind beside it (convolutions, one stream, two) and is compiled by tests of its own.
LATER = {"autoencoder", "wan", "wan_vae", "zimage"}


def few(*later):
    names = *PLAIN, READ + "dit"
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in later)) for name in names]


FEW = few(*LATER)
TEXT = {"name": "bytes", "length": 8, "width": 16, "depth": 2, "heads": 2, "gives": "both"}
SHAPE = (2, 8, 8, 3)
SMALL = {"depth": 1, "width": 32, "heads": 2, "multipliers": (1, 2), "num_classes": 3}
LEAST = SMALL | {"multipliers": (1,)}  # to be compiled


@pytest.fixture(scope="module", autouse=True)
def toy():
    """Makes ``networks/toy.py`` a file of the package, and a source of captions."""
    package = importlib.import_module("dit.models")
    package.__path__.append(str(pathlib.Path(__file__).parent / "networks"))
    with captions.installed():
        yield
    package.__path__.pop()


def taken(name, **given):
    """The keywords that a network's ``build`` has."""
    takes = config.keywords(config.builder("models", name.removeprefix(READ)))
    return {k: v for k, v in given.items() if k in takes}


def text_of(name):
    """The encoder's section, which gives what the network takes."""
    return TEXT | {"gives": "both" if taken(name, pooled_dim=1) else "context"}


@functools.cache
def build(name, **more):
    given = taken(name, in_channels=SHAPE[-1], **(SMALL | more))
    if not name.startswith(READ):
        return config.resolve("models", name, **given)
    text = config.resolve("text", **text_of(name), **{k: v for k, v in more.items() if k in HOW})
    told = taken(name, context_dim=text.context_dim, pooled_dim=text.pooled_dim)
    model = config.resolve("models", name.removeprefix(READ), **given, **told)
    return TextConditioned(text, model)


def abstract(model, shape=SHAPE):
    return jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))


def batch_of(model, n, shape=SHAPE, level="sample"):
    """The network's own example with ``n`` random samples at different times."""
    x, _, cond = model.example(shape)
    cond = jax.tree.map(lambda a: jax.device_put(np.repeat(a, n, axis=0)), cond)
    if cond.tokens is not None:
        tokens = np.arange(cond.tokens.size, dtype=np.int32).reshape(cond.tokens.shape)
        shown = jax.device_put(tokens % TEXT["length"] < 5)
        cond = cond.replace(tokens=jax.device_put(tokens), tokens_mask=shown)
    times = (n, shape[0]) if level == "frame" else (n,)
    t = jax.random.uniform(jax.random.key(2), times)
    return jax.random.normal(jax.random.key(1), (n, *x.shape[1:])), t, cond


@pytest.mark.first
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_a_description_whose_parameters_name_their_axes(name):
    model = build(name)
    assert isinstance(model, Network)
    assert hash(model) == hash(build.__wrapped__(name))
    axes, shapes = models.logical_axes(model, SHAPE), abstract(model)
    names = jax.tree.leaves(axes, is_leaf=is_axes)
    assert {n for axis in names for n in axis} - {None} <= RULES.keys()
    for axis, array in zip(names, jax.tree.leaves(shapes), strict=True):
        assert len(axis) == array.ndim
        assert array.dtype == jnp.float32
    assert abstract(model.plain(unrolled=True)) == shapes
    for how in ({"remat": "full"}, {"unroll": 1}, {"attention": "xla"}):  # may change on resume
        assert abstract(build(name, **how)) == shapes
    assert model.tokens(SHAPE) > 0
    assert model.stream(SHAPE) >= 0


@pytest.mark.first
@pytest.mark.parametrize(
    ("shape", "level"),
    [
        ((1, 8, 8, 3), "sample"),
        ((2, 8, 16, 3), "frame"),
        pytest.param((1, 8, 8, 3), "frame", marks=pytest.mark.slow),
        pytest.param((2, 8, 16, 3), "sample", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_its_multiply_adds_are_those_of_the_program(name, shape, level):
    model = build(name).plain()

    x, t, cond = batch_of(model, 1, shape, level)

    @jax.jit  # traced once
    def total(params):
        return models.apply_fn(model)(params, x, t, cond).sum()

    found, params = costs(model, shape, level=level), abstract(model, shape)
    assert found.forward == count_flops(total, params)
    assert found.training == count_flops(jax.grad(total), params)
    assert found.parameters == models.count_params(params)


EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
LONG = {"fsdp": 2, "context": 4}  # tokens of the data are split; those of a text are not
READERS = [
    ("adaln_cross", "auto"),
    ("adaln_cross", "ring"),
    pytest.param("cross_attention", "auto", marks=pytest.mark.slow),
    pytest.param("in_context", "auto", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
]


@pytest.mark.first
@pytest.mark.parametrize("name", FEW)
def test_eight_devices_give_the_loss_and_gradient_of_one(name):
    equal_on_eight_devices(build(name, **LEAST), EIGHT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not divide")
@pytest.mark.parametrize(("block", "kernel"), READERS)
def test_a_text_is_read_by_tokens_that_are_split_over_devices(block, kernel):
    equal_on_eight_devices(build(READ + "dit", **LEAST, block=block, attention=kernel), LONG)


MERGED = {"depth": 2, "dual_depth": 1, "single_depth": 1, "guidance_input": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (EIGHT, {"depth": 1, "single_depth": 1}),
        pytest.param(LONG, MERGED, marks=pytest.mark.slow),
        pytest.param(
            {"fsdp": 8},
            {"depth": 1, "single_depth": 1, "shared_modulation": True, "bias": False},
            marks=[pytest.mark.slow, pytest.mark.exhaustive],
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_two_streams_and_one_row_of_both_are_split_over_devices(sizes, options):
    equal_on_eight_devices(build(READ + "mmdit", **LEAST | options), sizes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_a_text_and_an_image_are_read_by_tokens_that_are_split_over_devices():
    more = {"image_context": (3, 6), "concat_channels": 2}
    equal_on_eight_devices(build(READ + "wan", **LEAST | more), LONG)


@pytest.mark.slow
def test_angles_of_every_heads_own_are_split_over_devices():
    equal_on_eight_devices(build(READ + "wan", **LEAST, size="LTX-Video-0.9-2B"), EIGHT)


def equal_on_eight_devices(model, sizes):
    x, t, cond = batch_of(model, 8)
    params = random_params(lambda key: models.init(model, key, SHAPE))
    mesh = make_mesh(sizes, jax.devices()[:8])
    where, rows = shardings(params, models.logical_axes(model, SHAPE), mesh), batch_sharding(mesh)

    def loss(model, params, x, t, cond):
        return jnp.square(models.apply_fn(model)(params, x, t, cond) - x).mean()

    def split(*args):
        with in_force(mesh):
            return jax.value_and_grad(functools.partial(loss, model))(*args)

    plain = functools.partial(loss, model.plain())
    want, want_grads = jax.jit(jax.value_and_grad(plain))(params, x, t, cond)
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(split, in_shardings=(where, rows, rows, rows), out_shardings=(whole, where))
    params = jax.device_get(params)  # to split arrays of a device compiles
    got, grads = step(jax.device_put(params, where), *jax.device_put((x, t, cond), rows))
    grads, want_grads = jax.device_get((grads, want_grads))
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    least = 1e-7 * max(
        np.linalg.norm(b) for b in jax.tree.leaves(want_grads)
    )  # zero but for rounding
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + least


@pytest.mark.first
@pytest.mark.parametrize("name", FEW)
def test_its_initial_spread_obeys_mup(name):
    """Twice as wide: hidden maps shrink as one over the root of their fan-in, inputs not at all."""
    found = []
    for width in (32, 64):
        model = build(name, **LEAST | {"width": width})
        init = jax.jit(lambda key, model=model: models.init(model, key, SHAPE))
        params = jax.device_get(init(jax.random.key(0)))  # np.std compiles of jax.Array
        axes = models.logical_axes(model, SHAPE)
        factors = init_multipliers(Transfer(base_width=32), axes, params)
        found.append(jax.tree.map(lambda p, f: float(np.std(p)) * f, params, factors))
    kinds = jax.tree_util.tree_map_with_path(
        lambda path, names: "input" if path[0].key == "text" else kind(names),  # of one size
        axes,
        is_leaf=is_axes,
    )
    for what, sizes, a, b in zip(*map(jax.tree.leaves, (kinds, params, *found)), strict=True):
        if a and what in ("hidden", "input") and sizes.size > 1000:
            assert b / a == pytest.approx(0.5**0.5 if what == "hidden" else 1.0, rel=0.1)


def settings(name):
    given = taken(name, **LEAST)
    if name.startswith(READ):
        classes = given.pop("num_classes", None)
        data = {"name": "captioned", "shape": SHAPE, "num_classes": classes}
        more = {
            "data": data,
            "text": text_of(name),
            "model": {"name": name.removeprefix(READ), **given},
        }
        return {**settings("toy"), "codec": {"name": "pixel"}, **more}
    return {
        "steps": 1,
        "batch_size": 8,
        "data": {"name": "noise", "shape": SHAPE, "num_classes": given.pop("num_classes", None)},
        "codec": {"name": "latent", "scale": 1.0},
        "model": {"name": name, **given},
        "path": {"name": "linear"},
        "prediction": {"name": "velocity"},
    }


@pytest.mark.first
@pytest.mark.parametrize("name", few(*LATER, "unet"))
def test_it_trains_and_preflight_accounts_for_it(name):
    experiment = build_experiment(settings(name) | {"mesh": {"preset": "fsdp"}})
    batches = experiment.batches()
    run = program(experiment, batches, jax.devices()[:8])
    state = jax.jit(run.create, out_shardings=run.shardings)(jax.random.key(0))
    batch = jax.device_put(next(batches), run.batch_sharding)
    batches.close()
    before = jax.device_get(state.params)
    state, metrics = run.train_step(state, batch, jax.device_put(jax.random.key(1), run.replicated))
    assert np.isfinite(float(metrics["loss"]))
    after = jax.tree.leaves(jax.device_get(state.params))
    assert any((a != b).any() for a, b in zip(after, jax.tree.leaves(before), strict=True))

    own = account(lambda policy: experiment, find("cpu:8", 1))
    assert own.parameters == 4 * models.count_params(run.abstract.params)
    assert own.flops == 6 * sum(experiment.model.macs(experiment.shape).values())
    assert own.policies == (tuple(POLICIES) if "remat" in experiment.config.model else ("none",))
    assert min(own.parts(Choice({"fsdp": 8}, own.policies[-1], 8))) > 0
    sizes = programs.expected_sizes(experiment.axes, run.abstract.params, run.mesh, 8)
    assert {p.size for p in jax.tree.leaves(run.abstract.params)} <= sizes


@pytest.mark.first
@pytest.mark.parametrize("name", PLAIN)
def test_a_ladder_makes_it_larger_or_says_what_its_build_lacks(name):
    given = {"smallest": 3e4, "largest": 3e6, "count": 2, "head_dim": 32}
    own = taken(name, multipliers=(1, 2), num_classes=3)
    if not {"depth", "width"} <= set(taken(name, **SMALL)):
        with pytest.raises(UserError, match="takes no depth"):
            ladder(SHAPE, network=name, **given, **own)
        return
    for size in ladder(SHAPE, network=name, by="parameters", slack=8.0, **given, **own):
        model = config.resolve("models", name, in_channels=3, **size.kwargs, **own)
        assert models.count_params(abstract(model)) == size.N


@pytest.mark.parametrize("format", config.names("interop"))
def test_weights_of_another_network_are_refused(format):
    for name, known in (("toy", "Toy"), (READ + "dit", "TextConditioned")):
        model = build(name)
        weights = config.resolve("interop", format)
        holds = weights.network.__name__
        with pytest.raises(UserError, match=f"got a {known} for weights of an? {holds}"):
            weights.to_state(abstract(model), model, SHAPE)


def test_a_network_is_wired_by_its_signature():
    plain = settings("toy")
    labelled = plain | {"data": {**plain["data"], "num_classes": 3}}
    with pytest.raises(UserError, match="have 3 classes, and network 'toy' takes no num_classes"):
        build_experiment(labelled)
    with pytest.raises(UserError, match="takes no dtype"):
        build_experiment(plain | {"precision": {"compute": "bfloat16"}})


def test_preflight_reports_on_a_network_without_policies_or_classes():
    experiment = build_experiment(settings("toy"))
    found = programs.train_step(experiment, find("cpu:8", 1))
    assert found.fits
    assert (found.remat, found.tokens) == ("none", 8 * 2 * 8 * 8)
    over = found.program_flops - 8 * costs(experiment.model, SHAPE).training
    assert 0 <= over < 1000  # the losses by time
    assert found.model_flops == 8 * 3 * costs(experiment.model, SHAPE).forward
    with pytest.raises(UserError, match="network 'toy' has no such choice"):
        command.chosen(experiment.config, None, None, "full")
