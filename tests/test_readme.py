"""The examples of the READMEs run, and do what they say of them; commands are those of the parsers."""

import importlib
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import cli, models
from dit.config import resolve
from dit.experiment import build, load_config
from dit.sampling.sample import sample
from dit.scaling.costs import costs
from dit.scaling.jaxpr_flops import count_flops
from dit.training.program import program
from dit.training.step import objective
from dit.types import Cond

ROOT = pathlib.Path(__file__).parent.parent
PAGES = "".join((ROOT / name).read_text() for name in ("README.md", "dit/README.md"))
CONFIGS = dict(
    re.findall(
        r"`(\w+\.py)`:\n\n```python\n(.*?)```", (ROOT / "launch/JOURNEYS.md").read_text(), re.DOTALL
    )
)
EXAMPLES = dict(re.findall(r"<!-- executed:? ?(\S*) -->\n```python\n(.*?)```", PAGES, re.DOTALL))

WITH_COMMANDS = (
    "README.md",
    "launch/JOURNEYS.md",
    "dit/evaluation/SCORES.md",
    "dit/text/README.md",
)
PARSERS = {"preflight": "preflight.__main__", "scaling": "scaling.__main__"}


def commands():
    """(page, command, words) of every ``python -m dit.COMMAND`` in the pages, a launcher's too."""
    for page in WITH_COMMANDS:
        text = (ROOT / page).read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?:    )?((?:python|pip|dit) .*)", text, re.MULTILINE):
            for part in re.split(r" && | -- ", line):
                if found := re.match(r"python -m dit\.([\w.]+)(.*)", part):
                    yield page, found[1], tuple(shlex.split(found[2], comments=True))


COMMANDS = [each for each in commands() if "--help" not in each[2]]


@pytest.mark.parametrize(
    ("page", "command", "words"), COMMANDS, ids=[f"{p}-{i}" for i, (p, *_) in enumerate(COMMANDS)]
)
def test_a_command_of_a_page_is_one_that_its_parser_takes(
    page, command, words, tmp_path, monkeypatch
):
    module = importlib.import_module(f"dit.{PARSERS.get(command, command)}")
    args, overrides = cli.parse(module.arguments(), list(words))
    for name, text in CONFIGS.items():  # a config that the page itself shows
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    if getattr(args, "config", None):
        load_config(args.config, overrides)
    else:
        assert not overrides or command == "convert", "they belong to a config"


def test_the_pages_show_every_journey():
    shown = {(page, command) for page, command, _ in COMMANDS}
    for command in ("train", "sample", "convert", "prepare", "preflight", "evaluate"):
        assert ("launch/JOURNEYS.md", command) in shown


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Put the example for ``path`` where ``resolve`` finds it, as if it were a file of the package."""

    def put(path):
        import importlib

        package = importlib.import_module(".".join(path.split("/")[:-1]))
        (tmp_path / path.split("/")[-1]).write_text(EXAMPLES[path])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    return put


def test_the_library_example():
    scope = {}
    with jax.numpy_rank_promotion("allow"):
        exec(EXAMPLES[""], scope)
    assert scope["latents"].shape == (2, 1, 32, 32, 4)
    assert bool(jnp.isfinite(scope["latents"]).all())


def test_the_solver_example_is_of_second_order(install):
    install("dit/sampling/solvers/midpoint.py")
    path, solver = resolve("diffusion.paths", "linear"), resolve("sampling.solvers", "midpoint")

    def posterior_mean(x, t):  # of data N(1, 0.5^2)
        alpha, sigma = (v.reshape(-1, 1) for v in (path.alpha(t), path.sigma(t)))
        return 1 + 0.25 * alpha * (x - alpha) / (0.25 * alpha**2 + sigma**2)

    with jax.enable_x64(True):
        x_T = jnp.linspace(-2.0, 2.0, 5, dtype=jnp.float64).reshape(5, 1)
        errors = []
        for steps in (32, 64, 128):
            grid = jnp.linspace(1.0, 0.0, steps + 1, dtype=jnp.float64)
            x_0 = sample(jax.random.key(0), posterior_mean, path, solver, grid, x_T)
            errors.append(float(jnp.abs(x_0 - (1 + 0.5 * x_T)).max()))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (orders > 1.75).all(), errors


def test_the_block_example_is_a_block(install):
    install("dit/models/blocks/parallel.py")
    sizes = {"depth": 2, "width": 32, "heads": 2, "patch": 2, "in_channels": 1, "num_classes": 2}
    outs = []
    for unroll in (True, False):
        model = resolve("models", "dit", block="parallel", unroll=unroll, **sizes)
        params = models.init(model, jax.random.key(0), (1, 8, 8, 1))
        params = jax.tree.map(lambda p: p + 0.1, params)  # past the zero gates
        x = jax.random.normal(jax.random.key(1), (2, 1, 8, 8, 1))
        cond = Cond(label=jnp.array([0, 1]))
        outs.append(jax.jit(models.apply_fn(model))(params, x, jnp.array([0.1, 0.9]), cond))
    np.testing.assert_allclose(outs[0], outs[1], rtol=2e-4, atol=2e-4)
    assert float(jnp.abs(outs[0]).max()) > 0


@pytest.mark.parametrize("path", [p for p in EXAMPLES if re.fullmatch(r"dit/models/\w+.py", p)])
def test_the_network_example_trains_and_its_costs_are_exact(install, path):
    install(path)
    root = pathlib.Path(__file__).parent.parent
    overrides = {"model.name": pathlib.Path(path).stem, "batch_size": 8}
    experiment = build(load_config(str(root / "configs/digits.py"), overrides))
    batches = experiment.batches()
    run = program(experiment, batches)
    batch = jax.device_put(next(batches), run.batch_sharding)
    batches.close()
    state = jax.jit(run.create, out_shardings=run.shardings)(jax.random.key(0))
    _, metrics = run.train_step(state, batch, jax.device_put(jax.random.key(1), run.replicated))
    assert np.isfinite(float(metrics["loss"]))
    x, _, cond = experiment.model.example(experiment.shape)
    for level, shape in {
        "sample": (1,),
        "frame": (1, 1),
        "token": (1, *experiment.shape[:3]),
    }.items():

        def total(params, shape=shape):
            return experiment.apply_fn(params, x, jnp.zeros(shape), cond).sum()

        found = costs(experiment.model, experiment.shape, level=level)
        params = jax.eval_shape(experiment.init, jax.random.key(0))
        assert found.forward == count_flops(total, params)
        assert found.training == count_flops(jax.grad(total), params)


def test_the_condition_example_reaches_the_loss(install):
    install("dit/data/sources/slanted_digits.py")
    root = pathlib.Path(__file__).parent.parent
    changes = {"data.name": "slanted_digits", "model.pooled_dim": 1, "batch_size": 8}
    experiment = build(load_config(str(root / "configs/digits.py"), {**changes, "model.depth": 1}))
    batch = next(experiment.batches())
    parts = experiment.loss, experiment.apply_fn, experiment.process, experiment.codec.encode
    loss_fn = jax.jit(objective(*parts))
    params = jax.tree.map(lambda p: p + 0.1, experiment.init(jax.random.key(0)))
    losses = []
    for slant in (0, 1):
        changed = {**batch, "pooled": batch["pooled"] + np.float32(slant)}
        losses.append(float(loss_fn(params, changed, jax.random.key(1))[0]))
    assert losses[0] != losses[1]


def test_the_data_example_trains(install):
    install("dit/data/sources/discs.py")
    root = pathlib.Path(__file__).parent.parent
    overrides = {"data.name": "discs", "batch_size": 8}
    experiment = build(load_config(str(root / "configs/digits.py"), overrides))
    batch = next(experiment.batches())
    assert batch["x"].shape == (8, 1, 8, 8, 1)
    assert set(batch["label"]) <= {0, 1}
    assert experiment.num_classes == 2
