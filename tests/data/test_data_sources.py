"""Every source keeps the same contract; and each does what it says."""

import pickle

import data_tfds
import numpy as np
import pytest
from PIL import Image

from dit import config, prepare
from dit.data.pipeline import batches
from dit.data.source import Source, bucket_sizes
from dit.data.sources import digits, emoji, folder, latents, moving_digits, noise
from dit.types import UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Keyword arguments of every source, with small files behind those that need them."""
    root = tmp_path_factory.mktemp("sources")
    for name, colour in COLOURS.items():
        (root / "images" / name).mkdir(parents=True)
        for i in range(10):
            size = (20 + i, 33 - i)
            Image.new("RGB", size, colour).save(root / "images" / name / f"{i}.png")
    (root / "latents").mkdir()
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 4, 4, 6)).astype(np.float16)
    z[..., 3:] = np.abs(z[..., 3:])  # standard deviations, where they are taken for moments
    np.save(root / "latents" / "latents.npy", z)
    np.save(root / "latents" / "labels.npy", np.arange(40) % 4)
    data_tfds.prepare(root / "tfds")
    out = ("--size=8", "--held-out=0.2", "--workers=0", f"--out={root / 'records'}")
    prepare.main([f"--source={root / 'images'}", *out])
    return {
        "digits": {},
        "emoji": {"size": 16},
        "moving_digits": {},
        "noise": {"shape": (2, 4, 4, 3), "num_classes": 7},
        "photographs": {"size": 32},
        "shapes": {},
        "shapes_text": {},
        "world": {"frames": 3, "size": 16},
        "folder": {"path": str(root / "images"), "size": 8, "held_out": 0.2},
        "latents": {"path": str(root / "latents"), "held_out": 0.1},
        "mixture": {
            "parts": (
                {"name": "noise", "shape": (2, 4, 4, 3), "num_classes": 5},
                {"name": "shapes"},
            )
        },
        "records": {"path": str(root / "records")},
        "tfds": {"dataset": "tiny_images", "data_dir": str(root / "tfds")},
    }


@pytest.mark.parametrize("name", config.names("data.sources"))
def test_contract(name, made):
    source = config.resolve("data.sources", name, **made[name])
    assert isinstance(source, Source)
    again = config.resolve("data.sources", name, **made[name])
    assert source.fingerprint == again.fingerprint
    prints = set()
    for split, twin in ((source.train, again.train), (source.held_out, again.held_out)):
        prints.add(split.fingerprint)
        assert split.fingerprint == twin.fingerprint
        assert split.streaming == source.streaming
        for i in (0, len(split) // 2, len(split) - 1):
            example, other = split[i], twin[i]
            bucket = np.searchsorted(np.cumsum(bucket_sizes(split)), i, side="right")
            assert example["x"].shape == source.shapes[bucket]
            assert example["x"].dtype in (np.uint8, np.float16, np.float32)
            np.testing.assert_array_equal(example["x"], other["x"])
            assert {k: v for k, v in example.items() if k != "x"} == {
                k: v for k, v in other.items() if k != "x"
            }
            assert ("label" in example) == (source.num_classes is not None)
            if "label" in example:
                assert 0 <= example["label"] < source.num_classes
        for i in (-1, len(split)):
            with pytest.raises(IndexError):
                split[i]
    assert len(prints) == 2
    stream = batches(source.train, batch_size=4, seed=0)
    bucket = stream.bucket
    assert next(stream)["x"].shape == (4, *source.shapes[bucket])


def test_emoji_are_split_with_their_skin_tones_and_none_is_drawn_twice():
    source = emoji.build(size=16)
    train, aside = ({text for text, _ in part.items} for part in (source.train, source.held_out))
    assert len(train) + len(aside) > 3500
    assert not set(map(emoji.base, train)) & set(map(emoji.base, aside))
    assert len({emoji.base(text) for text in train}) < len(train)
    drawn = [part[i]["x"].tobytes() for part in (source.train, source.held_out) for i in range(300)]
    assert len(set(drawn)) == len(drawn)
    named = dict(source.train.items) | dict(source.held_out.items)
    assert named["\N{GRINNING FACE}"] == "grinning face"
    plain = emoji.build(size=16, skin_tones=False)
    assert all(emoji.base(text) == text for text, _ in plain.train.items)
    assert len(pickle.dumps(source.train)) < 2**20
    with pytest.raises(UserError, match="which leaves 0 held out"):
        emoji.build(size=16, held_out=0.0)


def test_digits_are_the_real_ones_split_evenly():
    from sklearn.datasets import load_digits

    source = digits.build()
    assert (len(source.train), len(source.held_out)) == (1500, 297)
    x = np.concatenate([source.train.x, source.held_out.x]).reshape(-1, 64)
    real = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, x)) == sorted(map(bytes, real))  # all of them, none twice
    assert x.min() == 0
    assert x.max() == 255
    per_class = np.bincount(np.r_[source.train.label, source.held_out.label])
    held_out = np.bincount(source.held_out.label)
    assert np.abs(held_out - per_class * 297 / 1797).max() < 1


def test_digits_split_depends_on_its_seed():
    assert digits.build().fingerprint != digits.build(split_seed=1).fingerprint
    assert (digits.build().held_out.x != digits.build(split_seed=1).held_out.x).any()
    with pytest.raises(UserError, match="held_out=5"):
        digits.build(held_out=5)


def test_a_still_digit_is_the_digit_itself():
    source = moving_digits.build(speed=(0.0, 0.0), frames=3, size=9)
    image = digits.build().held_out[5]["x"][0, ..., 0]
    place = np.zeros((3, 2), np.float32)
    clip = moving_digits.draw(image, place, 9)
    np.testing.assert_array_equal(clip[:, :8, :8], np.broadcast_to(image, (3, 8, 8)))
    assert (clip[:, 8] == 0).all()
    x = source.held_out[5]["x"]
    assert (x == x[:1]).all()
    assert source.held_out[5]["label"] == digits.build().held_out.label[5]


def test_a_larger_digit_is_the_linear_interpolation_of_its_pixels():
    image = digits.build().train[0]["x"][0, ..., 0].astype(float)
    place, side, size = np.array([[24, 40]], np.float32), 12, 17
    step, where = side / 8, np.arange(size) + 0.5
    nodes = (np.arange(-1, 9) + 0.5) * step  # one more pixel on each side, of no ink
    padded = np.pad(image, 1)
    rows = np.stack([np.interp(where - 1.5, nodes, column) for column in padded.T], 1)
    both = np.stack([np.interp(where - 2.5, nodes, row) for row in rows])
    drawn = moving_digits.draw(image.astype(np.uint8), place, size, side)[0]
    assert np.abs(drawn - both).max() <= 0.5 + 1e-6
    assert (drawn[:1] == 0).all()


def test_half_a_pixel_is_the_mean_of_two_places():
    image = digits.build().train[0]["x"][0, ..., 0]
    here, half, there = moving_digits.draw(
        image, np.array([[0, 0], [8, 0], [16, 0]], np.float32), 10
    )
    mean = (here.astype(float) + there) / 2
    assert np.abs(half - mean).max() <= 0.5


def test_digits_bounce_and_are_never_cut():
    place = moving_digits.reflect(np.array([[-1.0], [0.0], [3.0], [8.0], [9.5], [17.0]]), 8)
    np.testing.assert_allclose(place[:, 0], [1, 0, 3, 8, 6.5, 1])
    source = moving_digits.build(frames=16, speed=(3.0, 3.0))
    for i in range(20):
        ink = source.train[i]["x"].astype(float).sum((1, 2, 3))
        np.testing.assert_allclose(ink, ink.mean(), rtol=0.01)  # as much of it in every frame


def test_motion_has_the_speed_asked_for():
    source = moving_digits.build(frames=2, size=40, speed=(1.0, 2.0), seed=3)
    steps = []
    for i in range(300):
        x = source.train[i]["x"][..., 0].astype(float)
        total = x.sum((1, 2))
        centre = np.stack([x.sum(2) @ np.arange(40), x.sum(1) @ np.arange(40)], -1) / total[:, None]
        steps.append(centre[1] - centre[0])
    steps = np.array(steps)
    speed = np.linalg.norm(steps, axis=-1)
    assert speed.max() < 2.1
    assert abs(np.median(speed) - 1.5) < 0.1
    assert np.abs(steps.mean(0)).max() < 0.3  # in all directions


def test_clips_depend_on_seed_and_split_and_held_out_digits_are_apart():
    source, other = moving_digits.build(), moving_digits.build(seed=1)
    assert (source.train[0]["x"] != other.train[0]["x"]).any()
    assert len({source.train[i]["x"].tobytes() for i in range(50)}) == 50
    still = digits.build()
    np.testing.assert_array_equal(source.train.digits, still.train.x)
    np.testing.assert_array_equal(source.held_out.digits, still.held_out.x)
    labels = [source.held_out[i]["label"] for i in range(297)]
    np.testing.assert_array_equal(labels, still.held_out.label)


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"frames": 0}, {"speed": (2.0, 1.0)}, {"speed": (1.0, 9.0)}]
)
def test_moving_digits_refuses(wrong):
    with pytest.raises(UserError):
        moving_digits.build(**wrong)


def test_folder_reads_classes_in_order_and_crops(made):
    source = folder.build(**made["folder"])
    assert source.num_classes == 2  # green, red
    assert (len(source.train), len(source.held_out)) == (16, 4)
    assert sorted(source.held_out[i]["label"] for i in range(4)) == [0, 0, 1, 1]
    for i in range(len(source.train)):
        example = source.train[i]
        colour = COLOURS[("green", "red")[example["label"]]]
        np.testing.assert_array_equal(example["x"], np.broadcast_to(np.uint8(colour), (1, 8, 8, 3)))


def test_folder_resize_keeps_the_middle(tmp_path):
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    for name in "ab":
        Image.fromarray(wide).save(tmp_path / f"{name}.png")
    source = folder.build(path=str(tmp_path), size=4, channels=1, held_out=0.5, flip=True)
    assert source.num_classes is None
    assert source.train.transforms
    assert not source.held_out.transforms
    x = source.train[0]["x"]
    assert x.shape == (1, 4, 4, 1)
    assert (x[:, :, 1:3] > 190).all()


def test_folder_names_the_file_it_cannot_read(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"not an image")
    source = folder.build(path=str(tmp_path), size=4, held_out=0.5)
    with pytest.raises(UserError, match=r"[ab]\.(png|jpg)"):
        next(batches(source.train, batch_size=1, seed=0))


def test_folder_refuses(tmp_path, made):
    with pytest.raises(UserError, match="no folder"):
        folder.build(path=str(tmp_path / "nowhere"), size=4)
    with pytest.raises(UserError, match="no images"):
        folder.build(path=str(tmp_path), size=4)
    with pytest.raises(UserError, match="channels=2"):
        folder.build(path=str(tmp_path), size=4, channels=2)
    with pytest.raises(UserError, match="held_out=0"):
        folder.build(**{**made["folder"], "held_out": 0.0})
    (tmp_path / "deep").mkdir()
    for name in ("deep/a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"b\.png"):
        folder.build(path=str(tmp_path), size=4)


def test_latents_are_the_rows_of_the_file(made):
    path = made["latents"]["path"]
    source = latents.build(path=path, held_out=0.1)
    z = np.load(f"{path}/latents.npy")
    assert (len(source.train), len(source.held_out)) == (36, 4)
    assert source.num_classes == 4
    rows = [source.train[i]["x"] for i in range(36)] + [source.held_out[i]["x"] for i in range(4)]
    assert sorted(x.tobytes() for x in rows) == sorted(x.tobytes() for x in z)


def test_latent_moments_are_sampled_in_training_only(made):
    path = made["latents"]["path"]
    source = latents.build(path=path, moments=True, held_out=0.1)
    plain = latents.build(path=path, held_out=0.1)
    assert source.shape == (1, 4, 4, 3)
    mean, std = np.split(plain.train[0]["x"], 2, -1)
    np.testing.assert_array_equal(source.train[0]["x"], mean)
    np.testing.assert_array_equal(source.train[0]["std"], std)
    one, two = (next(batches(source.train, batch_size=36, seed=s, shuffle=False)) for s in (0, 1))
    assert one["x"].dtype == np.float16
    assert (one["x"] != two["x"]).any()
    assert not source.held_out.transforms


def test_damaged_latents_are_refused_before_they_are_mapped(tmp_path):
    def build():
        return latents.build(path=str(tmp_path), held_out=0.5)

    file = tmp_path / "latents.npy"
    with pytest.raises(UserError, match="no file"):
        build()
    file.write_bytes(b"rubbish that is no array at all")
    with pytest.raises(UserError, match=r"not a \.npy"):
        build()
    np.save(file, np.zeros((4, 2, 2, 1), np.float32))
    whole = file.read_bytes()
    assert build().num_classes is None
    file.write_bytes(whole[:-3])
    with pytest.raises(UserError, match="truncated"):
        build()
    file.write_bytes(whole.replace(b"(4, 2, 2, 1), }", b"(400000000000, 2, 2, 1), }"[:15]))
    with pytest.raises(UserError):
        build()
    with open(file, "wb") as f:  # a header that claims 10^11 elements
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**11, 2, 2, 1)}
        np.lib.format.write_array_header_1_0(f, header)
    with pytest.raises(UserError, match="its header says"):
        build()
    np.save(file, np.zeros((4, 2, 2, 1), np.int32))
    with pytest.raises(UserError, match="int32"):
        build()
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError):
        build()


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, -1, 2], [0.0, 1.0, 2.0, 3.0]])
def test_latent_labels_must_fit(tmp_path, labels):
    np.save(tmp_path / "latents.npy", np.zeros((4, 2, 2, 1), np.float32))
    np.save(tmp_path / "labels.npy", np.array(labels))
    with pytest.raises(UserError):
        latents.build(path=str(tmp_path), held_out=0.5)


def test_noise_is_unit_gaussian():
    source = noise.build(shape=(1, 50, 50, 4), num_classes=3)
    x = source.train[123456]["x"]
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    assert (x != source.held_out[0]["x"]).any()
    assert {source.train[i]["label"] for i in range(40)} == {0, 1, 2}
