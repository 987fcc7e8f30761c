"""The scores against closed forms, resampling and ``torch-fidelity``."""

import jax
import numpy as np
import pytest
from torch_fidelity_parts import inception, part, pictures

from dit import config
from dit.evaluation import frechet, knn
from dit.evaluation.collect import KINDS, Cosines, Moments, Probabilities, Rows
from dit.evaluation.features import Features
from dit.evaluation.scores import About, fd, kd, mind
from dit.evaluation.scores.precision_recall import precision_recall
from dit.parallel.mesh import make_mesh


def streamed(collector, x, sizes=(7, 1, 30)):
    """The collector after all rows, in some order and by batches of some sizes."""
    ids = np.random.default_rng(3).permutation(len(x))
    while len(ids):
        for size in sizes:
            now, ids = ids[:size], ids[size:]
            if len(now):
                collector.add(now, x[now])
    return collector


def exactly(n, mean, scale, seed):
    """Rows whose mean is exactly this and whose covariance is exactly the square of this diagonal."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T
    return x * scale + mean


def test_a_streamed_frechet_distance_of_gaussians_is_the_closed_form():
    m1, s1, m2, s2 = (
        np.array(v, float) for v in ([1e4, 2, 3], [1, 2, 0.5], [1e4 + 1, 0, 3], [2, 2, 1])
    )
    ours = streamed(Moments.empty(200, 3, groups=10), exactly(200, m1, s1, 0))
    theirs = streamed(Moments.empty(300, 3), exactly(300, m2, s2, 1))
    there = fd.Transport.between(ours, theirs)
    value = there.value
    assert value == pytest.approx(np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2), rel=1e-9)
    assert there.error(ours) > 0
    assert value == pytest.approx(frechet.distance(*ours.total(), *theirs.total()), rel=1e-9)
    known = Moments.known(*theirs.total())
    assert fd.Transport.between(ours, known).value == pytest.approx(value, rel=1e-12)


def test_the_error_of_a_frechet_distance_is_that_of_drawing_again():
    """Over 300 draws, of which each estimates it from its ten groups."""
    rng, n = np.random.default_rng(0), 500
    other, spread = np.array([0.5, 0, 0]), np.diag([1.0, 4, 0.25])
    found = []
    for _ in range(300):
        x = rng.normal(size=(n, 3)) * [1, 1, 0.7]
        moments = Moments.empty(n, 3, groups=10)
        moments.add(np.arange(n), x)
        there = fd.Transport.between(moments, Moments.known(other, spread))
        each = there.moves(x[:, None]).std(ddof=1) / np.sqrt(n)
        found.append((there.value, there.error(moments), each))
    values, grouped, each = np.transpose(found)
    assert np.sqrt(np.mean(grouped**2)) == pytest.approx(values.std(), rel=0.12)
    assert np.sqrt(np.mean(each**2)) == pytest.approx(values.std(), rel=0.12)


def test_what_a_sample_adds_to_a_frechet_distance_is_its_derivative():
    """By a weight of each sample, a little more than one; of samples of two rows (frames)."""
    rng, n, step = np.random.default_rng(0), 60, 1e-5
    x, other = rng.normal(size=(n, 2, 4)) * [1, 2, 0.5, 1], rng.normal(size=(80, 4)) + 0.3
    theirs = Moments.known(other.mean(0), np.cov(other.T))

    def value(weight):
        weight = np.repeat(weight / weight.sum(), 2) / 2
        mean = weight @ x.reshape(-1, 4)
        off = x.reshape(-1, 4) - mean
        cov = np.einsum("n,ni,nj->ij", weight, off, off)
        return fd.Transport.between(Moments.known(mean, cov), theirs)

    by_weight = [
        (value(1 + step * (np.arange(n) == i)).value - value(np.ones(n)).value) / step
        for i in range(5)
    ]
    moves = value(np.ones(n)).moves(x)
    np.testing.assert_allclose((moves - moves.mean())[:5] / n, by_weight, rtol=1e-3, atol=1e-6)


def test_collectors_come_back_from_their_arrays():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    made = [Moments.empty(40, 4, groups=4), Rows.empty(40, 4), Probabilities.empty(40, 4)]
    for whole in (*made, Cosines.empty(x[::-1])):
        half = type(whole).of(whole.arrays())
        streamed(whole, x)
        ids = np.arange(40)
        half.add(ids[:25], x[:25])
        half = KINDS[type(half).__name__.lower()].of(half.arrays())
        half.add(ids[25:], x[25:])
        for name, value in whole.arrays().items():
            np.testing.assert_allclose(half.arrays()[name], value, rtol=1e-12, err_msg=name)
    assert not np.isnan(made[1].x).any()


@pytest.mark.parametrize("devices", [None, {"data": -1}])
def test_neighbours_are_those_of_all_distances(devices, monkeypatch):
    """In blocks that do not divide the rows, on one device and on eight."""
    monkeypatch.setattr(knn, "BLOCK", 16)
    monkeypatch.setattr(knn, "QUERIES", 3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 1, (29, 6)), rng.normal(5.5, 1, (37, 6))
    mesh = make_mesh(devices) if devices else None
    whole = ((x[:, None] - y[None]) ** 2).sum(-1)
    squares, which = knn.nearest(x, y, 4, mesh)
    np.testing.assert_array_equal(which, np.argsort(whole, 1)[:, :4])
    np.testing.assert_allclose(squares, np.sort(whole, 1)[:, :4], rtol=1e-4)
    radius = np.sort(((y[:, None] - y[None]) ** 2).sum(-1), 1)[:, 3]
    found = knn.covered(x, y, radius, mesh)
    np.testing.assert_array_equal(found, (whole <= radius).any(1))
    assert 0 < found.mean() < 1
    assert knn.nearest(x[:2], y[:3], 3)[1].shape == (2, 3)


def test_what_precision_and_recall_see():
    """Samples of one of two clusters are precise and recall a half; copies recall what they are of."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 8)) + 50 * (np.arange(400) % 2)[:, None]
    half = rng.normal(size=(200, 8))
    precision, recall = precision_recall(half, real, 3)
    assert precision > 0.8
    assert 0.3 < recall <= 0.5
    assert precision_recall(real[:50], real, 3)[0] == 1
    assert precision_recall(half + 1000, real, 3) == (0, 0)


def test_the_kernel_distance_is_unbiased_and_its_error_that_of_drawing_again():
    rng = np.random.default_rng(0)
    same = [kd.mmd(rng.normal(size=(50, 4)), rng.normal(size=(50, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    y = rng.normal(size=(4000, 4))
    drawn = [kd.distance(rng.normal(0.5, 1, (400, 4)), y, 30, 100, 0) for _ in range(60)]
    values, errors = np.transpose(drawn)
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.35)


def test_a_kernel_distance_of_few_pictures_has_an_error_too():
    """Where every subset would have all rows, the error is not nought but that of drawing again."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(90, 4))
    drawn = [kd.distance(rng.normal(0.5, 1, (60, 4)), y, 40, 1000, 0) for _ in range(150)]
    values, errors = np.transpose(drawn)
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.25)


def test_mind_is_three_squared_shifts_and_the_distance_of_sorted_projections():
    """Of equal Gaussians a shift apart; along an axis by hand; and of a set to itself."""
    rng = np.random.default_rng(0)
    x, shift = rng.normal(size=(500, 6)), np.array([0.5, -1, 2, 0, 0.3, 1])
    value, _ = mind.distance(x, x + shift, 4000, 0)
    assert value == pytest.approx(3 * shift @ shift, rel=0.03)
    assert mind.distance(x, x[::-1], 100, 0) == pytest.approx((0, 0), abs=1e-12)
    a, b = rng.normal(size=(40, 1)), rng.exponential(size=(40, 1))
    wanted = 3 * np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2)
    other = 3 * np.mean((np.sort(-a[:, 0]) - np.sort(-b[:, 0])) ** 2)
    assert wanted == pytest.approx(other)  # either way along the only line
    assert mind.distance(a, b, 60, 0)[0] == pytest.approx(wanted, rel=1e-12)
    longer = np.concatenate([b, b + 100])
    assert mind.distance(a, longer, 10, 0)[0] > 1000
    assert mind.distance(longer, a, 10, 0)[0] > 1000


def test_the_error_of_mind_is_that_of_drawing_again():
    """Also of samples of two rows that are nearly the same."""
    rng, y = np.random.default_rng(1), np.random.default_rng(2).normal(size=(400, 4))
    for each in (1, 2):
        drawn = []
        for _ in range(150):
            x = np.repeat(rng.normal(0.5, 1.2, (400 // each, 4)), each, axis=0)
            drawn.append(mind.distance(x + 1e-3 * rng.normal(size=x.shape), y, 50, 0, each))
        values, errors = np.transpose(drawn)
        assert np.mean(errors) == pytest.approx(values.std(), rel=0.2)


def same(params, x):
    return {"features": x.mean((1, 2)), "logits": x.mean((1, 2))}


def test_every_score_says_what_it_will_measure_and_what_it_lacks(tmp_path):
    plain = Features("dinov2_l_hub", {}, same, side=8, origin="none")
    logits = Features("inception_v3", {}, same, side=8, origin="none", others=("logits",))
    names = config.names("evaluation.scores")
    assert names == [
        "clip_score",
        "copies",
        "fd",
        "fd_ratio",
        "inception_score",
        "kd",
        "mind",
        "precision_recall",
        "sfid",
    ]
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for network in (plain, logits):
        about = About((network,), 20)
        for name in names:
            plan = config.resolve("evaluation.scores", name)(about)
            sets = {"samples": {}, "reference": {}}
            for need in plan.needs:
                for of in set(need.of) & set(sets):
                    sets[of][need.key] = streamed(need.make(20, 3, 1), x + (of == "reference"))
            allowed = {figure for figure, why in plan.lacks.items() if not why}
            assert not allowed or set(plan.measure(sets)) == allowed
            assert allowed or all(plan.lacks.values())
    assert "fid" in config.resolve("evaluation.scores", "fd")(about).lacks
    assert "fd_dinov2_l_hub" in config.resolve("evaluation.scores", "fd")(About((plain,), 20)).lacks


def test_the_ratio_is_the_mean_over_networks_of_distances_over_those_of_new_pictures():
    networks = [Features(name, {}, same, side=8, origin="none") for name in "ab"]
    plan = config.resolve("evaluation.scores", "fd_ratio")(About(tuple(networks), 60, held_out=60))
    assert not any(plan.lacks.values())
    sets = {of: {} for of in ("samples", "reference", "held_out")}
    shift = {"samples": [2, 6], "reference": [0, 0], "held_out": [1, 2]}
    for need in plan.needs:
        (of,), network = need.of, "ab".index(need.key[0])
        mean = np.array([shift[of][network], 0, 0])
        sets[of][need.key] = streamed(need.make(60, 3, 1), exactly(60, mean, 1, 0))
    assert plan.measure(sets)["fd_ratio"] == pytest.approx((4 / 1 + 36 / 4) / 2, rel=1e-6)


@pytest.mark.torch
def test_scores_of_pictures_are_those_of_torch_fidelity(tmp_path):
    """FID, KID, precision, recall and the Inception score, of two sets under random weights."""
    torch = pytest.importorskip("torch")
    theirs = inception(tmp_path / "random.pth")
    ours = config.resolve("evaluation.features", "inception_v3", path=str(tmp_path / "random.pth"))
    x, y = pictures(14, 30, 30), pictures(12, 30, 30, seed=1) // 2 + 30
    both = np.concatenate([x, y])
    with torch.no_grad():
        pool, logits = theirs(torch.from_numpy(both.transpose(0, 3, 1, 2).copy()))[3:5]
    pool, n = pool[:, :300], len(x)  # so that the matrices are worked out in seconds
    features = [(pool[:n], logits[:n]), (pool[n:], logits[n:])]
    kid = {"kid_subsets": 20, "kid_subset_size": 8, "rng_seed": 2020, "verbose": False}
    wanted = part("metric_kid").kid_features_to_metric(features[0][0], features[1][0], **kid)
    stats = [part("metric_fid").fid_features_to_statistics(f.double()) for f, _ in features]
    wanted |= part("metric_fid").fid_statistics_to_metric(*stats, False)
    how = {"prc_neighborhood": 3, "prc_batch_size": 10, "save_cpu_ram": False, "verbose": False}
    wanted |= part("metric_prc").prc_features_to_metric(features[0][0], features[1][0], **how)
    wanted |= part("metric_isc").isc_features_to_metric(features[0][1])

    about = About((ours,), len(x))
    specs = {
        "fd": {},
        "inception_score": {},
        "precision_recall": {},
        "kd": {"subsets": 20, "size": 8},
    }
    found = {}
    outputs = jax.jit(ours.outputs)(ours.params, both)
    outputs = {k: np.asarray(v)[:, :300] if k == "features" else v for k, v in outputs.items()}
    parts = (("samples", slice(n)), ("reference", slice(n, None)))
    seen = {of: {k: np.asarray(v)[rows] for k, v in outputs.items()} for of, rows in parts}
    for name, options in specs.items():
        plan = config.resolve("evaluation.scores", name, **options)(about)
        sets = {"samples": {}, "reference": {}}
        for need in plan.needs:
            for of in need.of:
                rows = seen[of][need.key[1]]
                sets[of][need.key] = streamed(need.make(len(rows), rows.shape[1], 1), rows)
        found |= plan.measure(sets)
    for here, there in {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision_inception_v3": "precision",
        "recall_inception_v3": "recall",
        "inception_score": "inception_score_mean",
    }.items():
        assert found[here] == pytest.approx(wanted[there], rel=1e-3), here
    assert 0 < found["precision_inception_v3"] + found["recall_inception_v3"] < 2
