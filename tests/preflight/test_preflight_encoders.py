"""Text encoders and codecs that are not here: their published sizes stand in for them."""

import pathlib

import jax
import pytest

from dit.config import resolve
from dit.experiment import build, load_config
from dit.models import count_params
from dit.parallel.mesh import make_mesh
from dit.parallel.topology import find
from dit.preflight import programs
from dit.preflight.__main__ import stand_in
from dit.text.pretrained.published import SIZES
from dit.types import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
COUNTS = {  # of the published text encoders
    "clip-l": 123_060_480,
    "clip-bigg": 694_659_840,
    "t5-xxl": 4_762_310_656,
    "umt5-xxl": 5_680_910_336,
}


@pytest.mark.parametrize("size", SIZES)
def test_they_have_the_published_number_of_parameters_and_no_weights(size):
    encoder = resolve("text.pretrained", "published", size=size)
    assert count_params(encoder.abstract()) == COUNTS[size]
    with pytest.raises(UserError, match="give the encoder's own name and path=DIR"):
        encoder.load()


@pytest.mark.parametrize(
    ("name", "sizes", "context", "pooled"),
    [
        ("flux1_finetune_pod", "clip-l,t5-xxl", (512, 4096), 768),
        ("sd35_finetune_pod", "clip-l,clip-bigg,t5-xxl", (77 + 256, 4096), 2048),
        ("wan_14b_pod", "umt5-xxl", (512, 4096), None),
    ],
)
def test_a_config_is_built_without_its_files(name, sizes, context, pooled):
    """The shapes are those that the published networks take."""
    config, where = load_config(str(CONFIGS / f"{name}.py")), find("cpu:8", 1)
    made = build(stand_in(config, where, sizes))
    told = made.text
    assert (told.context_len, told.context_dim, told.pooled_dim) == (*context, pooled)
    assert made.shape == tuple(config.data.shape)
    large = [x for x in jax.tree.leaves(told.weights.abstract) if x.size > 2**24]
    assert all(x.dtype == made.model.dtype for x in large)
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    expected = programs.gathered(made, jax.eval_shape(made.init, jax.random.key(0)), mesh, 8)
    assert {x.size for x in large} <= expected
    both = load_config(str(CONFIGS / f"{name}.py"), {"mesh.whole": ("codec", "text")})
    assert stand_in(both, where, sizes).mesh.whole == ("text",)  # its codec has no weights
    with pytest.raises(UserError, match="expected a size for each"):
        stand_in(config, where, "t5-xxl,t5-xxl,t5-xxl,t5-xxl")
    with pytest.raises(UserError, match=r"did you mean '(um)?t5-xxl'"):
        build(stand_in(config, where, sizes.replace("t5-xxl", "t5-xl")))
