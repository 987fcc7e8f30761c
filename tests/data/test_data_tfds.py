"""TFDS: what cannot be trained on is refused when the source is built, or by the example's name."""

import pickle

import data_tfds
import numpy as np
import pytest
from data_tfds import NAN

from dit.data.pipeline import batches
from dit.data.sources import tfds
from dit.types import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return data_tfds.prepare(tmp_path_factory.mktemp("tfds"))


def test_what_was_prepared_is_read(made):
    source = tfds.build(**made)
    assert source.shape == (1, 12, 10, 1)
    assert source.num_classes == 3
    assert (len(source.train), len(source.held_out)) == (9, 3)
    for split, first in ((source.train, 0), (source.held_out, 9)):
        for i in range(len(split)):
            value = int(split[i]["x"][0, 0, 0, 0])
            assert (split[i]["x"] == value).all()
            assert split[i]["label"] == value % 3
            assert first <= value < 12
    resized = tfds.build(size=6, **made)
    assert resized.shape == (1, 6, 6, 1)
    assert resized.fingerprint != source.fingerprint


def test_splits_travel_light_and_read_the_same(made):
    split = tfds.build(**made).train
    data = pickle.dumps(split)
    assert len(data) < 2**20
    twin = pickle.loads(data)
    for i in range(len(split)):
        np.testing.assert_array_equal(twin[i]["x"], split[i]["x"])


WHOLE = [("label", None, 3), ("long", 3, 3), ("byte", 3, 3), ("flag", 2, 2)]


@pytest.mark.parametrize(("label", "given", "classes"), WHOLE)
def test_whole_numbers_of_any_type_are_labels(made, label, given, classes):
    source = tfds.build(**made, label=label, num_classes=given)
    assert source.num_classes == classes
    batch = next(batches(source.train, batch_size=9, seed=0, shuffle=False))
    assert batch["label"].dtype == np.int32
    brightness = batch["x"][:, 0, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(batch["label"], brightness % classes)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dataset": "no_such_data"}, "no_such_data"),
        ({"image": "picture"}, "picture"),
        ({"label": "class"}, "class"),
        ({"held_out": "validation"}, "validation"),
        ({"held_out": "test[:0]"}, "test\\[:0\\]"),
        ({"data_dir": "/nowhere"}, "tiny_images"),
        ({"label": "text"}, "'text' is Text"),
        ({"label": "list"}, "'list' is Sequence"),
        ({"label": "dict"}, "'dict' is FeaturesDict"),
        ({"label": "real"}, "'real' is Scalar"),
        ({"label": "image"}, "'image' is Image"),
        ({"label": "long"}, "num_classes=None, expected a positive number"),
        ({"label": "long", "num_classes": 0}, "num_classes=0"),
        ({"num_classes": 4}, "num_classes=4, but feature 'label' has 3"),
        ({"label": None, "num_classes": 4}, "num_classes=4 and data.label=None"),
        ({"label": "none", "num_classes": 3}, "example 0 of .* has label -1"),
        ({"label": "long", "num_classes": 2}, "has label 2; expected 0 to 1"),
        ({"image": "text"}, "'text' is Text"),
        ({"image": "label"}, "'label' is ClassLabel"),
        ({"image": "dict"}, "'dict' is FeaturesDict"),
        ({"image": "vector"}, "'vector' is Tensor"),
        ({"image": "table"}, "'table' is Tensor"),
        ({"image": "clip"}, "'clip' .* vary"),
        ({"image": "vary"}, "size varies; set data.size"),
        ({"image": "latent", "size": 4}, "size=4 for float32"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_on_is_refused(made, wrong, says):
    with pytest.raises(UserError, match=says):
        list(map(tfds.build(**{**made, **wrong}).train.__getitem__, range(9)))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [({"label": "late", "num_classes": 3}, "label -1"), ({"image": "latent"}, "not finite")],
)
def test_an_example_that_is_spoilt_is_named(made, kwargs, says):
    split = tfds.build(**made, **kwargs).train
    bad = []
    for i in range(len(split)):
        try:
            split[i]
        except UserError as error:
            bad.append((i, str(error)))
    ((i, message),) = bad
    assert says in message
    assert f"example {i} of tfds-" in message
    assert int(tfds.build(**made).train[i]["x"].flat[0]) == NAN


def test_pixels_of_other_kinds_become_8_bits(made):
    deep = tfds.build(**made, image="deep").train
    plain = tfds.build(**made).train
    clear = tfds.build(**made, image="clear")
    assert clear.shape == (1, 12, 10, 3)
    for i in range(len(plain)):
        value = int(plain[i]["x"].flat[0])
        assert set(deep[i]["x"].ravel()) == {value + 200}
        assert deep[i]["x"].dtype == np.uint8
        assert set(clear.train[i]["x"].ravel()) == {value if value % 2 else 255}
    assert tfds.build(**made, image="vary", size=6).train[3]["x"].shape == (1, 6, 6, 3)
    assert tfds.build(**made, image="deep", size=6).train[3]["x"].dtype == np.uint8


def test_frames_of_a_known_number_are_a_clip(made):
    source = tfds.build(**made, image="reel")
    assert source.shape == (3, 12, 10, 1)
    assert np.diff(source.train[2]["x"][:, 0, 0, 0].astype(int)).tolist() == [1, 1]


def test_a_record_that_cannot_be_read_is_named(made, monkeypatch):
    split = tfds.build(**made).train

    class Broken:
        def __len__(self):
            return 9

        def __getitem__(self, i):
            raise RuntimeError("crc mismatch\nand more")

    broken = tfds.Records(Broken(), split.reader, split.fingerprint)
    with pytest.raises(UserError, match=r"cannot read example 4 of tfds-.*: crc mismatch$"):
        broken[4]
