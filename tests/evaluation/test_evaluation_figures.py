"""The maths of the figures: Frechet distance, nearest neighbours and motion, against known answers."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from dit.data.sources import moving_digits
from dit.evaluation import frechet, nearest
from dit.evaluation.motion import WINDOW, centroids, motion, recentred
from dit.types import UserError


def covariance(rng, d, rank=None):
    a = rng.standard_normal((d, rank or 2 * d))
    return a @ a.T / a.shape[1]


def test_frechet_of_gaussians_on_a_line():
    got = frechet.distance(*(np.array(v) for v in ([1.0], [[4.0]], [4.0], [[9.0]])))
    assert got == pytest.approx((1 - 4) ** 2 + (2 - 3) ** 2)


def test_frechet_of_axis_aligned_gaussians():
    rng = np.random.default_rng(0)
    m, n, s, r = rng.uniform(0.1, 3, (4, 6))
    rotation = scipy.linalg.qr(rng.standard_normal((6, 6)))[0]
    want = np.sum((m - n) ** 2 + (s - r) ** 2)
    a, b = (rotation @ np.diag(v**2) @ rotation.T for v in (s, r))
    assert frechet.distance(rotation @ m, a, rotation @ n, b) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_matches_the_matrix_square_root(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.standard_normal((2, 5))
    a, b = covariance(rng, 5), covariance(rng, 5)
    cross = np.trace(scipy.linalg.sqrtm(a @ b)).real
    want = np.sum((m - n) ** 2) + np.trace(a + b) - 2 * cross
    assert frechet.distance(m, a, n, b) == pytest.approx(want, rel=1e-9)
    assert frechet.distance(n, b, m, a) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (5, 30), (30, 5), (11, 12), (12, 40)])
def test_frechet_of_few_rows_is_that_of_their_moments(n, m):
    """Whichever way is less work; 12 features."""
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, 12)), 2 + 3 * rng.standard_normal((m, 12))
    want = frechet.distance(*frechet.moments(a), *frechet.moments(b))
    assert frechet.between(a, b) == pytest.approx(want, rel=1e-6)
    assert frechet.between(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_of_flat_gaussians_and_of_one_with_itself():
    rng = np.random.default_rng(0)
    flat = covariance(rng, 20, rank=3)
    m = rng.standard_normal(20)
    assert frechet.distance(m, flat, m, flat) == pytest.approx(0, abs=1e-6)
    assert frechet.distance(m, flat, m, np.zeros((20, 20))) == pytest.approx(np.trace(flat))
    assert frechet.distance(m, flat, m, flat) >= 0


def test_moments_are_those_of_the_samples():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 3)) @ np.diag([1.0, 2.0, 3.0]) + [1, 0, -1]
    mean, cov = frechet.moments(x)
    np.testing.assert_allclose(mean, [1, 0, -1], atol=0.1)
    np.testing.assert_allclose(cov, np.diag([1.0, 4.0, 9.0]), atol=0.3)
    with pytest.raises(UserError, match="got 1 samples"):
        frechet.moments(x[:1])


@pytest.mark.parametrize("real", [200, 1000])
@pytest.mark.parametrize("count", [2, 5, 30, 99, 101, 500, 2000])
def test_perfect_samples_of_any_count_score_as_the_floor_and_damaged_ones_do_not(real, count):
    """Matched: as many images on both sides of both distances."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((8, 8))
    x, held_out = (rng.standard_normal((n, 8)) @ mix for n in (count, real))
    perfect = frechet.figures(x, held_out)
    assert perfect["frechet_count"] == min(count, real // 2)
    gap = perfect["frechet_matched"] - perfect["frechet_floor"]
    assert abs(gap) < 3 * perfect["frechet_floor_error"] + 0.1 * perfect["frechet_floor"]
    for damaged in (x + 3 * mix[0], 3 * x, np.repeat(x[:2], -(-count // 2), 0)[:count]):
        found = frechet.figures(damaged, held_out)
        if count >= 30:
            assert found["frechet_matched"] > 2 * found["frechet_floor"]


def test_the_floor_says_how_far_off_one_comparison_may_be():
    rng = np.random.default_rng(0)
    draws = [frechet.figures(*rng.standard_normal((2, 200, 4))) for _ in range(30)]
    floors = [d["frechet_floor"] for d in draws]
    matched = [d["frechet_matched"] for d in draws]
    error = np.mean([d["frechet_floor_error"] for d in draws])
    assert 0.3 * error < np.std(matched) < 3 * error
    assert np.mean(matched) == pytest.approx(np.mean(floors), rel=0.15)


@pytest.mark.parametrize(("samples", "real"), [(1, 10), (10, 3), (0, 10)])
def test_too_few_for_a_floor_are_refused(samples, real):
    with pytest.raises(UserError, match=f"got {samples} samples and {real} real"):
        frechet.figures(np.zeros((samples, 3)), np.zeros((real, 3)))


def compare(samples, held_out, train):
    part = nearest.part(train, held_out, len(samples), lambda x: x)
    found = part.measure(samples, np.zeros(len(samples), int))
    return {k: v for k, v in found.items() if not part.lacks[k]}


def test_copies_are_at_distance_zero():
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8) for n in (300, 200))
    result = compare(train[::-1][:50], held_out, train)
    assert result["nearest"] == 0
    assert result["copies"] == 1
    assert result["memorised"] == 1
    fresh = compare(held_out, held_out, train)
    assert fresh["nearest_ratio"] == 1
    assert fresh["copies"] == pytest.approx(0.01)
    assert fresh["memorised"] == 0.5
    new = rng.integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    found = compare(new, held_out, train)
    assert abs(found["nearest_ratio"] - 1) < 4 * found["nearest_ratio_error"] < 0.4
    assert found["memorised_low"] < 0.5 < found["memorised_high"]
    far = compare(255 - train[:50] // 8, held_out, train)
    assert far["memorised"] < 0.1


def test_how_often_a_sample_is_nearer_is_counted_and_its_interval_covers():
    """Pairs one by one, ties as halves; of normal distances a unit apart, Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    ours, known = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 40).astype(float)
    less = (ours[:, None] < known).mean() + (ours[:, None] == known).mean() / 2
    share, low, high = nearest.nearer(ours, known)
    assert share == pytest.approx(less)
    assert 0 <= low < share < high <= 1
    true, inside = scipy.stats.norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(400):
        _, low, high = nearest.nearer(rng.normal(size=60) - 1, rng.normal(size=90))
        inside += low <= true <= high
    assert 0.91 <= inside / 400 <= 0.98


@pytest.mark.parametrize(
    ("known", "left_out"),
    [
        (0, set()),
        (3, {"copies"}),
        (150, {"copies", "nearest_ratio", "nearest_ratio_error"}),
    ],
)
def test_no_share_of_copies_where_held_out_examples_are_copies_themselves(known, left_out):
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8) for n in (300, 200))
    held_out[:known] = train[:known]
    part = nearest.part(train, held_out, 50, lambda x: x)
    assert {k for k, why in part.lacks.items() if why} == left_out
    assert all(np.isfinite(v) for v in compare(train[:50], held_out, train).values())


def test_distance_is_in_grey_levels():
    train = np.zeros((3, 2, 2, 1), np.uint8)
    images = np.stack([np.full((2, 2, 1), 7), np.array([[[8], [0]], [[0], [0]]])]).astype(np.uint8)
    np.testing.assert_allclose(nearest.distances(images, train), [7.0, 4.0])


@pytest.mark.parametrize("block", [1, 9 * 7, 2**22])
def test_distances_do_not_depend_on_the_blocks(monkeypatch, block):
    monkeypatch.setattr(nearest, "BLOCK", block)
    rng = np.random.default_rng(0)
    images, train = (rng.integers(0, 256, (n, 3, 3, 1), dtype=np.uint8) for n in (60, 50))
    gaps = (images[:, None].astype(float) - train[None]).reshape(60, 50, 9)
    np.testing.assert_allclose(nearest.distances(images, train), np.sqrt((gaps**2).mean(-1)).min(1))


def blob(places, size=24):
    """Clip of a real digit with its corner at ``places`` (f, 2), in pixels."""
    digit = moving_digits.build().train.digits[0, 0, ..., 0]
    return moving_digits.draw(digit, np.rint(16 * np.asarray(places)).astype(np.float32), size)


@pytest.mark.parametrize("velocity", [(0.0, 0.0), (1.0, 0.0), (0.0, -0.5), (0.75, 1.0)])
def test_motion_of_known_velocity(velocity):
    places = np.array([4.0, 8.0]) + np.arange(8)[:, None] * np.array(velocity)
    result = motion(centroids(blob(places)[None]))
    speed = np.hypot(*velocity)
    assert result["displacement"] == pytest.approx(speed, rel=0.03, abs=1e-9)
    assert result["speed"] == pytest.approx(speed, rel=0.03, abs=1e-9)
    assert result["wobble"] < 0.1


def test_centroid_follows_the_digit_and_faint_noise_does_not_move_it():
    clip = blob([[2.0, 10.0], [7.0, 3.0]])
    gap = np.diff(centroids(clip[None])[0], axis=0)[0]
    np.testing.assert_allclose(gap, [5.0, -7.0], atol=1e-6)
    hazy = np.maximum(clip, np.random.default_rng(0).integers(0, 12, clip.shape)).astype(np.uint8)
    np.testing.assert_allclose(centroids(hazy[None]), centroids(clip[None]), atol=0.05)
    np.testing.assert_array_equal(centroids(np.zeros((1, 1, 5, 7), np.uint8))[0, 0], [2.0, 3.0])


def test_a_bounce_touches_the_mean_but_not_the_median():
    places = np.array([[4.0, x] for x in (12, 14, 15, 13, 11, 9, 7, 5)], float)  # wall at 15.5
    result = motion(centroids(blob(places)[None]))
    assert result["speed"] == pytest.approx(2, rel=0.03)
    assert result["displacement"] == pytest.approx((6 * 2 + 1) / 7, rel=0.03)
    assert result["wobble"] < 0.1


def test_jumping_about_is_not_moving():
    places = np.random.default_rng(0).uniform(0, 16, (8, 2))
    result = motion(centroids(blob(places)[None]))
    assert result["wobble"] > result["displacement"]


def test_recentred_takes_the_place_out():
    clip = blob([[0.0, 0.0], [3.0, 9.0], [16.0, 16.0], [5.5, 5.25]])
    cut = recentred(clip)
    assert cut.shape == (4, WINDOW, WINDOW)
    np.testing.assert_allclose(cut[1], cut[0], atol=1e-6)
    np.testing.assert_allclose(cut[2], cut[0], atol=1e-6)
    assert np.corrcoef(cut[3].ravel(), cut[0].ravel())[0, 1] > 0.9  # blurred, but no further
    np.testing.assert_allclose(cut.sum((1, 2)), clip.sum((1, 2)), rtol=0.01)  # none cut off
