"""Real data score near-perfectly, and each way of being wrong is seen by the figure meant for it."""

import dataclasses
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from dit.data.source import ArraySplit, Source
from dit.data.sources import digits, moving_digits, noise
from dit.evaluation import classifier, clips, frechet, gather, reduced
from dit.evaluation.full import evaluation_of
from dit.evaluation.parts import Evaluation
from dit.types import UserError

COUNTS = {"samples", "real", "train"}
NEAREST = {"nearest", "nearest_real", "nearest_ratio", "nearest_ratio_error", "copies"}
MEMORISED = {"memorised", "memorised_low", "memorised_high"}
REST = COUNTS | NEAREST | MEMORISED
DISTANCES = {*frechet.FIGURES, "frechet_train"}
LABELS = {"accuracy", "accuracy_real"}
IDENTITY = {"identity", "accuracy_first", "accuracy_last", "kept"}
CLASSES = {*frechet.FIGURES, *IDENTITY, *(f"{name}_real" for name in IDENTITY)}
MOVES = {"displacement", "speed", "wobble", "displacement_real", "speed_real", "wobble_real"}
MOVES |= {"displacement_ratio", "speed_ratio"}


@pytest.fixture(scope="module")
def source():
    return digits.build()


@pytest.fixture(scope="module")
def real(source):
    return gather(source.held_out, 1000)


@pytest.fixture(scope="module")
def evaluate(source):
    """Figures of samples beside real digits; the judge is fitted once."""
    planned = evaluation_of(source, 297)
    return lambda x, label: dataclasses.replace(planned, count=len(x))(x, label)


@pytest.fixture(scope="module")
def judged(evaluate, real):
    return evaluate(*real)


@pytest.fixture(scope="module")
def moving():
    return moving_digits.build()


@pytest.fixture(scope="module")
def clip():
    """Real held-out digits that move as in no clip of the data."""
    return gather(moving_digits.build(seed=1).held_out, 300)


@pytest.fixture(scope="module")
def evaluate_clips(moving, small):
    planned = evaluation_of(moving, 300)
    return lambda x, label: dataclasses.replace(planned, count=len(x))(x, label)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Fewer real clips, to be quick."""
    patch = pytest.MonkeyPatch()
    patch.setattr(clips, "TRAIN", 1500)
    patch.setattr(clips, "HELD_OUT", 400)
    yield
    patch.undo()


def test_real_digits_are_recognised(judged):
    assert judged["accuracy_real"] >= 0.98
    assert judged["accuracy"] == judged["accuracy_real"]
    assert judged["frechet"] == pytest.approx(0, abs=1e-6)
    assert judged["nearest_ratio"] == 1
    assert (judged["samples"], judged["real"], judged["train"]) == (297, 297, 1500)
    assert all(isinstance(v, float) and np.isfinite(v) for v in judged.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_the_classifier_is_good_on_any_split(seed):
    source = digits.build(split_seed=seed)
    judge = classifier.fit(*gather(source.train, 2000))
    assert judge.accuracy(*gather(source.held_out, 2000)) >= 0.98


def test_classifier_is_deterministic_and_its_features_have_unit_variance(source, real):
    train = gather(source.train, 500)
    one, other = classifier.fit(*train), classifier.fit(*train)
    np.testing.assert_array_equal(one.features(real[0]), other.features(real[0]))
    assert one.features(train[0]).var(0).mean() == pytest.approx(1)
    predicted = one.perceptron.predict(train[0].reshape(500, -1) / 255)
    logits = one.features(train[0]) / one.scale @ one.perceptron.coefs_[-1]
    logits = logits + one.perceptron.intercepts_[-1]
    np.testing.assert_array_equal(logits.argmax(1), predicted)  # so they are its last layer


def test_training_images_are_found_to_be_copies(source, evaluate, judged):
    x, label = gather(source.train, 300)
    result = evaluate(x, label)
    assert result["copies"] == 1
    assert result["nearest"] == 0
    assert result["accuracy"] > 0.99
    assert result["frechet_matched"] == pytest.approx(judged["frechet_floor"], rel=0.4)


def test_shuffled_labels_fall_to_chance(evaluate, real):
    x, label = real
    shuffled = np.random.default_rng(0).permutation(label)
    result = evaluate(x, shuffled)
    assert result["accuracy"] < 0.2
    assert result["accuracy_real"] >= 0.98


def test_noise_and_a_single_class_are_far_away(evaluate, real, judged):
    x, label = real
    noisy = np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8)
    result = evaluate(noisy, label)
    assert result["frechet_matched"] > 3 * judged["frechet_floor"]
    assert result["accuracy"] < 0.25
    assert result["nearest_ratio"] > 1.5
    only = evaluate(x[label == 3], label[label == 3])
    assert only["accuracy"] > 0.9  # each is right, but there is no variety
    assert only["frechet"] > 3 * judged["frechet_floor"]


def made_of(x, label, held_out, shape=(1, 3, 5, 3), num_classes=2):
    """A source of the given training and held-out examples."""
    train, aside = (ArraySplit(x[rows], label[rows], "tiny") for rows in (~held_out, held_out))
    return Source(train, aside, shape, num_classes, "tiny")


def tiny(held_out, classes=2, n=240, frames=1, channels=3):
    """Pictures of ``classes`` brightnesses, of which the first ``held_out`` are kept aside."""
    label = np.arange(n) % classes
    x = np.random.default_rng(0).integers(0, 60, (n, frames, 3, 5, channels))
    x = (x + 150 * label.reshape(-1, 1, 1, 1, 1)).astype(np.uint8)
    return made_of(x, label, np.arange(n) < held_out, (frames, 3, 5, channels), classes)


def unlabelled(source):
    """The same without its labels."""
    splits = {k: dataclasses.replace(getattr(source, k), label=None) for k in ("train", "held_out")}
    return dataclasses.replace(source, **splits, num_classes=None)


@pytest.mark.parametrize(
    ("source", "count", "left_out"),
    [
        (tiny(120), 20, set()),
        (tiny(120), 1, DISTANCES),
        (tiny(4), 2, {"copies"}),
        (tiny(2), 20, {"copies", *DISTANCES}),
        (tiny(1), 20, {"copies", "nearest_ratio_error", *MEMORISED, *DISTANCES}),
        (tiny(120, classes=1), 20, LABELS | DISTANCES),
        (unlabelled(tiny(120)), 20, LABELS | DISTANCES),
    ],
    ids=["enough", "one sample", "four", "two", "one", "one class", "unlabelled"],
)
def test_what_cannot_be_measured_is_known_before_and_the_rest_is_measured(source, count, left_out):
    planned = evaluation_of(source, count)
    assert set(planned.left_out) == left_out
    assert all(planned.left_out.values())
    x, label = gather(source.train, count)
    found = planned(x, label)
    assert set(found) == set(planned.figures) == (LABELS | DISTANCES | REST) - left_out
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(
    ("source", "left_out"),
    [
        (tiny(120, frames=3, channels=1), set()),
        (tiny(120, frames=2, channels=1), {"wobble", "wobble_real"}),
        (tiny(120, frames=3, channels=1, classes=1), CLASSES),
        (unlabelled(tiny(120, frames=3, channels=1)), CLASSES),
        (tiny(120, frames=3), CLASSES | MOVES),
    ],
    ids=["enough", "two frames", "one class", "unlabelled", "colours"],
)
def test_what_cannot_be_measured_of_clips_is_known_before(source, left_out):
    planned = evaluation_of(source, 20)
    assert set(planned.left_out) == left_out
    x, label = gather(source.train, 20)
    found = planned(x, label)
    assert set(found) == set(planned.figures) == (CLASSES | MOVES | REST) - left_out
    assert np.isfinite(list(found.values())).all()


def test_data_without_labels_or_examples_or_in_other_units():
    bare = unlabelled(tiny(120))
    x, label = gather(bare.train, 5)
    assert label is None
    assert "accuracy" in evaluation_of(bare, 5).left_out
    with pytest.raises(UserError, match="with labels, for data of None classes"):
        evaluation_of(bare, 5)(x, np.zeros(5, int))
    with pytest.raises(UserError, match="without labels, for data of 2 classes"):
        evaluation_of(tiny(120), 5)(x, None)
    with pytest.raises(UserError, match="without examples"):
        evaluation_of(tiny(0), 5)
    with pytest.raises(UserError, match="float32; expected uint8"):
        evaluation_of(noise.build(shape=(1, 8, 8, 1)), 5)


def test_a_split_sorted_by_class_is_read_from_end_to_end():
    x = np.zeros((1000, 1, 2, 2, 1), np.uint8)
    split = ArraySplit(x, np.repeat(np.arange(10), 100), "sorted")
    label = gather(split, 200)[1]
    assert np.bincount(label, minlength=10).min() > 5
    np.testing.assert_array_equal(label, gather(split, 200)[1])


def test_large_pictures_are_judged_small_in_bounded_memory():
    """Of 256 x 256 pixels: held whole, in double precision, they would take 300 MB here."""

    class Large:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

        def __getitem__(self, i):
            ground = np.random.default_rng(i).integers(0, 50, (1, 1, 1, 3), np.uint8)
            return {
                "x": np.broadcast_to(ground + np.uint8(100 * (i % 2)), (1, 256, 256, 3)),
                "label": i % 2,
            }

    train, held_out, shape = Large(150), Large(60), (1, 256, 256, 3)
    source = SimpleNamespace(train=train, held_out=held_out, shape=shape, num_classes=2)
    tracemalloc.start()
    planned = evaluation_of(source, 20)
    x, label = (
        np.stack(v) for v in zip(*(source.train[i].values() for i in range(20)), strict=True)
    )
    found = planned(x, label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert planned.size == "32 x 32"
    assert found["accuracy"] == 1
    assert found["nearest"] == 0
    assert peak < 100e6


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 100), (256, 20)])
def test_reduced_pictures_are_means_over_areas(height, width):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, height, width, 3), np.uint8)
    small = reduced(x)
    assert small.shape == (2, 3, 32, min(width, 32), 3)
    np.testing.assert_allclose(small.mean((2, 3)), x.mean((2, 3)), atol=0.2)
    np.testing.assert_array_equal(reduced(x[1, 2]), small[1, 2])
    if height % 32 == 0 and width == 64:
        want = x.reshape(2, 3, 32, 2, 32, 2, 3).mean((3, 5))
        np.testing.assert_allclose(small, want, atol=0.51)
    assert (reduced(np.full_like(x, 255)) == 255).all()
    assert reduced(x[:, :, :32, :20]) is not x
    np.testing.assert_array_equal(reduced(x[:, :, :32, :20]), x[:, :, :32, :20])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x.astype(np.float32), y), "float32"),
        (lambda x, y: (x[:, :, :4], y), "1, 8, 8, 1"),
        (lambda x, y: (x[:, 0], y), "1, 8, 8, 1"),
        (lambda x, y: (x, y[:5]), "labels"),
        (lambda x, y: (x, None), "got 297 samples without labels, for data of 10 classes"),
        (lambda x, y: (x[:0], y[:0]), "got 0 samples"),
        (lambda x, y: (x[:9], y[:9]), "expected 297, as planned"),
        (lambda x, y: (x, y + 1), "labels from 1 to 10"),
        (lambda x, y: (x, y - 1), "labels"),
    ],
)
def test_bad_samples_are_refused(source, real, change, says):
    class Unfitted(Evaluation):
        __call__ = Evaluation.__call__.__wrapped__

    with pytest.raises(UserError, match=says):
        Unfitted(source, 297, ())(*change(*real))


def test_real_clips_keep_their_identity_and_move_like_real_clips(evaluate_clips, clip):
    result = evaluate_clips(*clip)
    for name in ("identity", "accuracy_first", "accuracy_last", "kept"):
        assert result[name] >= 0.97
        assert result[f"{name}_real"] >= 0.97
    assert result["displacement_ratio"] == pytest.approx(1, abs=0.07)
    assert result["speed_ratio"] == pytest.approx(1, abs=0.07)
    assert result["wobble"] < 0.5 * result["displacement"]
    assert all(isinstance(v, float) and np.isfinite(v) for v in result.values())
    assert (result["samples"], result["real"], result["train"]) == (300, 400, 1500)


def test_clips_that_go_wrong_are_seen(evaluate_clips, clip):
    x, label = clip
    still = evaluate_clips(np.repeat(x[:, :1], 8, axis=1), label)
    assert still["displacement"] == still["displacement_ratio"] == 0
    assert still["identity"] == 1

    changing = x.copy()
    changing[:, 4:] = np.roll(x, 1, axis=0)[:, 4:]  # another digit from the middle on
    result = evaluate_clips(changing, label)
    same = np.mean(label == np.roll(label, 1))
    assert result["identity"] == pytest.approx(same, abs=0.05)
    assert result["accuracy_first"] > 0.97
    assert result["accuracy_last"] == pytest.approx(same, abs=0.05)

    frames = np.random.default_rng(0).permutation(8)
    shaken = evaluate_clips(x[:, frames], label)
    assert shaken["wobble"] > 3 * shaken["wobble_real"]
