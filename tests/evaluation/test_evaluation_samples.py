"""Real data score near-perfectly, and each way of being wrong is seen by the figure meant for it."""

import dataclasses

import numpy as np
import pytest

from dit.data.source import ArraySplit
from dit.data.sources import digits, moving_digits, noise
from dit.evaluation import classifier, clips, gather, images
from dit.types import UserError


@pytest.fixture(scope="module")
def source():
    return digits.build()


@pytest.fixture(scope="module")
def real(source):
    x, label = gather(source.held_out, 1000)
    return x[:, 0], label


@pytest.fixture(scope="module")
def judged(source, real):
    return images.evaluate_images(*real, source)


@pytest.fixture(scope="module")
def moving():
    return moving_digits.build()


@pytest.fixture(scope="module")
def clip(moving):
    """Real held-out clips that the evaluation itself does not use."""
    x, label = gather(moving.held_out, 1300)
    return x[1000:], label[1000:]


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


def test_training_images_are_found_to_be_copies(source, judged):
    x, label = gather(source.train, 300)
    result = images.evaluate_images(x[:, 0], label, source)
    assert result["copies"] == 1
    assert result["nearest"] == 0
    assert result["accuracy"] > 0.99
    assert result["frechet_matched"] == pytest.approx(judged["frechet_floor"], rel=0.4)


def test_shuffled_labels_fall_to_chance(source, real):
    x, label = real
    shuffled = np.random.default_rng(0).permutation(label)
    result = images.evaluate_images(x, shuffled, source)
    assert result["accuracy"] < 0.2
    assert result["accuracy_real"] >= 0.98


def test_noise_and_a_single_class_are_far_away(source, real, judged):
    x, label = real
    noisy = np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8)
    result = images.evaluate_images(noisy, label, source)
    assert result["frechet_matched"] > 3 * judged["frechet_floor"]
    assert result["accuracy"] < 0.25
    assert result["nearest_ratio"] > 1.5
    only = images.evaluate_images(x[label == 3], label[label == 3], source)
    assert only["accuracy"] > 0.9  # each is right, but there is no variety
    assert only["frechet"] > 3 * judged["frechet_floor"]


def test_unlabelled_images_have_only_distances(source, real):
    unlabelled = dataclasses.replace(source, num_classes=None)
    result = images.evaluate_images(*real, unlabelled)
    assert result["nearest_ratio"] == 1
    assert "accuracy" not in result


def test_a_tiny_data_set_is_enough():
    x = np.zeros((12, 1, 3, 5, 3), np.uint8)
    x[6:] = 255
    split = ArraySplit(x, np.repeat([0, 1], 6), "tiny")
    source = dataclasses.replace(
        digits.build(), train=split, held_out=split, shape=(1, 3, 5, 3), num_classes=2
    )
    result = images.evaluate_images(x[::4, 0], split.label[::4], source)
    assert result["accuracy"] == 1
    assert np.isfinite(list(result.values())).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x.astype(np.float32), y), "float32"),
        (lambda x, y: (x[:, :4], y), "8, 8, 1"),
        (lambda x, y: (x, y[:5]), "labels"),
        (lambda x, y: (x[:1], y[:1]), "2 samples"),
        (lambda x, y: (x, y + 1), "labels up to 10"),
        (lambda x, y: (x, y - 1), "labels"),
    ],
)
def test_bad_samples_are_refused(source, real, change, says):
    with pytest.raises(UserError, match=says):
        images.evaluate_images.__wrapped__(*change(*real), source)


def test_real_clips_keep_their_identity_and_move_like_real_clips(moving, clip):
    result = clips.evaluate_clips(*clip, moving)
    for name in ("identity", "accuracy_first", "accuracy_last", "kept"):
        assert result[name] >= 0.97
        assert result[f"{name}_real"] >= 0.97
    assert result["displacement_ratio"] == pytest.approx(1, abs=0.07)
    assert result["speed_ratio"] == pytest.approx(1, abs=0.07)
    assert result["wobble"] < 0.5 * result["displacement"]
    assert all(isinstance(v, float) and np.isfinite(v) for v in result.values())
    assert (result["samples"], result["real"], result["train"]) == (300, 400, 1500)


def test_clips_that_go_wrong_are_seen(moving, clip):
    x, label = clip
    still = clips.evaluate_clips(np.repeat(x[:, :1], 8, axis=1), label, moving)
    assert still["displacement"] == still["displacement_ratio"] == 0
    assert still["identity"] == 1

    changing = x.copy()
    changing[:, 4:] = np.roll(x, 1, axis=0)[:, 4:]  # another digit from the middle on
    result = clips.evaluate_clips(changing, label, moving)
    same = np.mean(label == np.roll(label, 1))
    assert result["identity"] == pytest.approx(same, abs=0.05)
    assert result["accuracy_first"] > 0.97
    assert result["accuracy_last"] == pytest.approx(same, abs=0.05)

    frames = np.random.default_rng(0).permutation(8)
    shaken = clips.evaluate_clips(x[:, frames], label, moving)
    assert shaken["wobble"] > 3 * shaken["wobble_real"]


def test_clips_need_classes_and_frames(source, moving, clip):
    with pytest.raises(UserError, match="clips of 2 frames"):
        clips.evaluate_clips(*clip, source)
    with pytest.raises(UserError, match="clips"):
        clips.evaluate_clips(*clip, noise.build(shape=(8, 16, 16, 1)))
    with pytest.raises(UserError, match="8, 16, 16, 1"):
        clips.evaluate_clips(clip[0][:, :4], clip[1], moving)
    with pytest.raises(UserError, match="evaluate_clips"):
        images.evaluate_images(clip[0][:, 0], clip[1], moving)
