"""TFDS data sets become records: pictures as stored, labels by name, splits as they are."""

import data_tfds
import numpy as np
import pytest

from dit import prepare
from dit.data import records
from dit.data.sources import records as source_of
from dit.data.sources import tfds
from dit.types import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return data_tfds.prepare(tmp_path_factory.mktemp("tfds"))


def run(made, out, *argv, source="", size=6):
    text = f"tfds:tiny_images,data_dir={made['data_dir']}{source}"
    prepare.main([f"--source={text}", f"--size={size}", f"--out={out}", "--workers=0", *argv])
    return source_of.build(path=str(out)), records.read_manifest(out)


@pytest.mark.parametrize(
    ("image", "channels"), [("image", 1), ("clear", 3), ("vary", 3), ("deep", 1)]
)
def test_its_pictures_are_those_of_the_tfds_source(tmp_path, made, image, channels):
    source = f",held_out=test,image={image}"
    found, manifest = run(made, tmp_path / "out", f"--channels={channels}", source=source)
    expected = tfds.build(**made, image=image, size=6)
    for split in ("train", "held_out"):
        mine, theirs = getattr(found, split), getattr(expected, split)
        assert len(mine) == len(theirs)
        for i in range(len(mine)):
            np.testing.assert_array_equal(mine[i]["x"], theirs[i]["x"])
            assert mine[i]["label"] == theirs[i]["label"]
    assert manifest["made_from"]["content"]["splits"] == {"train": 9, "test": 3}
    assert found.num_classes == 3
    assert manifest["fields"]["captions"]  # the feature "text"
    assert found.train[0]["caption"] == ["a cat"]


def test_missing_labels_are_listed_and_a_split_is_made(tmp_path, made):
    out = tmp_path / "out"
    found, manifest = run(
        made, out, "--held-out=0.3", "--fields=label", source=",label=late,num_classes=3"
    )
    assert (out / "broken.jsonl").read_text().count("\n") == manifest["counts"]["broken"] == 1
    assert """"reason": "its label is '-1'; expected""" in (out / "broken.jsonl").read_text()
    assert len(found.train) + len(found.held_out) == 8
    assert "caption" not in found.train[0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (",image=latent", "is float32; expected pictures of 8 or 16 bits"),
        (",image=clip", "its frames or channels vary"),
        (",image=reel", "is clips; expected pictures"),
        (",image=none", "expected images"),
        (",label=real", "expected a whole number"),
        (",label=nothing", "has no feature 'nothing'"),
        (",train=other", "cannot read other"),
    ],
)
def test_what_is_no_data_of_pictures_is_refused(tmp_path, made, source, says):
    with pytest.raises(UserError, match=says):
        run(made, tmp_path / "out", source=source)
