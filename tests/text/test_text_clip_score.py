"""The CLIP score against the logits of a whole CLIP of ``transformers``, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_cases import CLIP, bpe_files

from dit import config
from dit.evaluation.features import clip
from dit.evaluation.scores import About

pytestmark = pytest.mark.torch


def test_it_is_the_cosine_that_the_logits_of_a_whole_clip_hold(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"intermediate_size": 48, "image_size": 42, "patch_size": 14}
    settings = transformers.CLIPConfig(text_config=CLIP, vision_config=vision, projection_dim=10)
    torch.manual_seed(0)
    there = transformers.CLIPModel(settings).eval()
    for p in there.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    there.save_pretrained(tmp_path)
    bpe_files(tmp_path)
    network = clip.build(path=str(tmp_path))
    captions = ["the red cat", "in the long", "the red cat", "cat"]
    x = np.random.default_rng(0).integers(0, 256, (4, 42, 42, 3), np.uint8)
    score = config.resolve("evaluation.scores", "clip_score", path=str(tmp_path))
    plan = score(About((network,), 4, captions=captions))
    (need,) = plan.needs
    collector = need.make(4, 10, 1)
    features = network.outputs(network.params, jnp.asarray(x))["features"]
    for i in (2, 0, 3, 1):
        collector.add(np.array([i]), np.asarray(features[i : i + 1]))
    found = plan.measure({"samples": {need.key: collector}})

    tokens = config.resolve("text.pretrained", "clip", path=str(tmp_path)).tokens(captions)
    mean, std = np.array(clip.MEAN), np.array(clip.STD)
    pixels = ((x / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        logits = there(
            input_ids=torch.from_numpy(np.asarray(tokens.ids, np.int64)),
            pixel_values=torch.from_numpy(pixels),
        ).logits_per_image
    cosines = np.diag(logits.numpy()) / float(there.logit_scale.detach().exp())
    np.testing.assert_allclose(collector.cosine, cosines, atol=1e-4)
    name = f"clip_score_{network.name}"
    assert found[name] == pytest.approx(100 * np.maximum(cosines, 0).mean(), abs=0.02)
    assert found[name] > 0
    assert jax.tree.leaves(plan.lacks) == [""] * 2
