"""Planted surfaces come back, intervals cover, approach 2 is biased, and the published answers."""

import csv
import os
import pathlib

import numpy as np
import pytest
from scipy.integrate import quad

from dit.scaling import approaches, fit, huber, intervals, terms, uncertainty
from dit.scaling.extrapolate import extrapolation
from dit.scaling.power_law import PowerLaw, fit_power_law
from dit.scaling.surface import METHODS, Surface, cost_law, fit_surface
from dit.types import UserError

NAMES = ("E", "A", "B", "alpha", "beta")
PLANTED = [
    Surface(1.69, 406.4, 410.7, 0.34, 0.28),
    Surface(0.22, 3.0, 40.0, 0.15, 0.45),
    Surface(0.05, 2000.0, 5.0, 0.7, 0.12),
]


def isoflop(surface, noise=0.0, seed=0, budgets=5, sizes=7, spread=8.0, fixed=False):
    """``(N, D, C, loss)``; sizes around each budget's optimum, or the same at all of them."""
    C = np.repeat(np.geomspace(1e17, 1e21, budgets), sizes)
    middle = surface.optimum(1e19 if fixed else C)[0]
    N = middle * np.tile(np.geomspace(1 / spread, spread, sizes), budgets)
    D = C / (6 * N)
    draw = np.random.default_rng(seed).standard_normal(len(N))
    return N, D, C, surface(N, D) * np.exp(noise * draw)


def relative(found, planted):
    return np.array([getattr(found, name) / getattr(planted, name) - 1 for name in NAMES])


@pytest.mark.first
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("planted", PLANTED)
def test_noise_free_surfaces_are_recovered(planted, method):
    N, D, _, L = isoflop(planted)
    assert np.abs(relative(fit_surface(N, D, L, method=method), planted)).max() < 1e-6


def test_a_surface_without_a_floor_keeps_its_coefficients_non_negative():
    N, D, _, L = isoflop(Surface(0.0, 3.0, 40.0, 0.15, 0.3), noise=0.002)
    found = fit_surface(N, D, L, method="projection")
    assert min(found.E, found.A, found.B) >= 0
    assert 0 <= found.E / L.min() < 0.2


def test_the_jacobian_is_the_derivative():
    draw = np.random.default_rng(0)
    X = terms.design(True, draw.standard_normal(6), draw.standard_normal(6))
    theta = draw.standard_normal((3, 5))
    _, jacobian = terms.log_sum(X, theta)
    for j in range(5):
        step = 1e-6 * np.eye(5)[j]
        ahead, behind = terms.log_sum(X, theta + step)[0], terms.log_sum(X, theta - step)[0]
        np.testing.assert_allclose(jacobian[..., j], (ahead - behind) / 2e-6, atol=1e-8)


@pytest.mark.slow
def test_robust_objectives_shrug_off_an_outlier_and_least_squares_does_not():
    planted = PLANTED[0]
    N, D, _, L = isoflop(planted, noise=1e-4)
    L = L.copy()
    L[3] *= 1.5
    errors = {m: abs(relative(fit_surface(N, D, L, method=m), planted)[3]) for m in METHODS}
    assert max(errors["huber"], errors["likelihood"]) < 0.01
    assert errors["least_squares"] > 10 * errors["huber"]


@pytest.mark.parametrize("delta", [1e-3, 0.5, 3.0])
def test_the_huber_density_integrates_to_one(delta):
    inside = quad(lambda r: np.exp(-terms.cost(np.array(r), delta)), 0, delta)[0]
    outside = quad(lambda r: np.exp(-terms.cost(np.array(r), delta)), delta, np.inf)[0]
    assert 2 * (inside + outside) / huber.normaliser(delta) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.7])
def test_noise_free_power_laws_are_recovered(floor):
    planted = PowerLaw(50.0, -0.31, floor)
    x = np.geomspace(1e3, 1e8, 7)
    found = fit_power_law(x, planted(x), floor=bool(floor))
    assert found.coefficient == pytest.approx(50, rel=1e-6)
    assert found.exponent == pytest.approx(-0.31, rel=1e-6)
    assert found.floor == pytest.approx(floor, rel=1e-6)


def test_the_closed_form_optimum_is_the_least_loss_at_its_cost():
    surface, k, g = PLANTED[1], 5.0, 1.2
    N, D = surface.optimum(1e15, k=k, g=g)
    assert k * N**g * D == pytest.approx(1e15)
    others = N * np.exp(np.linspace(-1, 1, 201))
    losses = surface(others, 1e15 / (k * others**g))
    assert abs(int(losses.argmin()) - 100) <= 1
    a, b = surface.exponents(g)
    n10, d10 = surface.optimum(1e16, k=k, g=g)
    np.testing.assert_allclose([n10 / N, d10 / D], [10**a, 10**b])
    sizes = np.geomspace(1e6, 1e9, 9)
    assert cost_law(sizes, 3 * sizes, k * sizes**g * 3 * sizes) == pytest.approx((k, g))


@pytest.mark.slow
@pytest.mark.parametrize("method", uncertainty.METHODS)
def test_ninety_percent_intervals_cover(method):
    planted = PLANTED[0]
    options = {"samples": 200} if method == "bootstrap" else {}
    hits = {name: 0 for name in NAMES}
    for seed in range(120):
        N, D, _, L = isoflop(planted, noise=0.003, seed=seed)
        found = uncertainty.surface_intervals(N, D, L, method=method, **options)
        for name in NAMES:
            hits[name] += getattr(planted, name) in found[name]
    assert all(0.82 <= hits[name] / 120 <= 0.97 for name in NAMES), hits


@pytest.mark.parametrize("method", [pytest.param("profile", marks=pytest.mark.slow), "bootstrap"])
def test_intervals_of_a_power_law_with_a_floor_cover(method):
    planted = PowerLaw(20.0, -0.3, 1.0)
    x = np.repeat(np.geomspace(1e2, 1e6, 8), 2)
    truth = {"coefficient": 20.0, "exponent": -0.3, "floor": 1.0}
    hits = dict.fromkeys(truth, 0)
    for seed in range(120):
        noise = np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(x)))
        found = uncertainty.law_intervals(x, planted(x) * noise, floor=True, method=method)
        for name in truth:
            hits[name] += truth[name] in found[name]
    assert all(0.82 <= h / 120 <= 0.97 for h in hits.values()), hits


def test_profile_of_a_straight_line_is_the_textbook_interval():
    draw = np.random.default_rng(0)
    u = np.linspace(-2, 2, 9)
    y = 0.4 - 0.7 * u + 0.1 * draw.standard_normal(9)
    found = intervals.profile(
        terms.design(False, u), y, np.array([0.0, 0.0]), np.array([0.0, 1.0]), 0.9
    )
    slope, intercept = np.polyfit(u, y, 1)
    s = np.sqrt(np.square(y - intercept - slope * u).sum() / 7 / np.square(u).sum())
    t = 1.8945786  # Student's 95% quantile, 7 degrees of freedom
    np.testing.assert_allclose([found.low, found.high], [-slope - t * s, -slope + t * s], rtol=1e-3)


def test_an_interval_says_when_the_data_do_not_bound_the_floor():
    x = np.geomspace(1, 30, 6)
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(6))
    assert uncertainty.law_intervals(x, 5 * x**-0.3 * noise, floor=True)["floor"].low == 0


@pytest.mark.slow
def test_intervals_of_runs_that_say_little_are_wide_and_not_an_error():
    """Six runs, five parameters, no floor in sight."""
    N = np.array([3628, 13388, 25964, 3628, 13388, 25964.0])
    D = np.array([1480, 424, 216, 4936, 1400, 728.0])
    loss = np.array([0.666, 0.718, 0.858, 0.479, 0.519, 0.578])
    found = uncertainty.surface_intervals(N, D, loss)
    assert all(i.low <= i.high for i in found.values())
    assert found["E"].low == 0
    assert np.isfinite(fit.fit(fit.Runs(N, D, 400 * N * D, loss), samples=20).surface.alpha)


def test_approach_two_is_biased_and_variable_projection_is_not():
    planted = PLANTED[0]
    at = 1e23
    truth = planted.optimum(at)[0]
    for fixed in (False, True):
        N, D, C, L = isoflop(planted, spread=30.0, fixed=fixed)
        second = approaches.parabolas(N, D, C, L).N(at) / truth - 1
        third = fit_surface(N, D, L, method="projection").optimum(at)[0] / truth - 1
        assert abs(second) > 0.02
        assert abs(third) < 1e-3
        assert approaches.parabola_bias(planted, N, D, C, at) == pytest.approx(second, rel=1e-6)


def test_three_approaches_side_by_side():
    planted = PLANTED[0]
    N, D, C, L = isoflop(planted, sizes=15, spread=4.0)
    found = approaches.compare(N, D, C, L)
    a, b = planted.exponents()
    for name, allocation in found.items():
        assert allocation.N.exponent == pytest.approx(a, abs=0.02), name
        assert allocation.D.exponent == pytest.approx(b, abs=0.02), name
    assert found["2 parabolas"].warnings == (approaches.WARNING,)
    assert "biased" in approaches.WARNING


def test_the_intervals_of_every_approach_hold_its_own_estimate():
    N, D, C, L = isoflop(PLANTED[0], noise=0.003)
    found = uncertainty.allocation_intervals(N, D, C, L, samples=60)
    estimates = approaches.compare(N, D, C, L, method="least_squares")
    assert list(found) == list(estimates)
    for name, allocation in estimates.items():
        width = found[name]["N"].high - found[name]["N"].low
        assert 0 < width < 0.5
        assert allocation.N.exponent in found[name]["N"]
        assert allocation.D.exponent in found[name]["D"]
    quiet = uncertainty.allocation_intervals(*isoflop(PLANTED[0]), samples=20)
    assert quiet["3 surface"]["N"].high - quiet["3 surface"]["N"].low < 1e-4
    one = C[0] == C  # a single budget has no minimum to follow
    assert uncertainty.allocation_intervals(N[one], D[one], C[one], L[one])["2 parabolas"] is None


def test_approach_two_leaves_out_budgets_without_a_minimum():
    N, D, C, L = isoflop(PLANTED[0], spread=4.0)
    low = np.argsort(C)[:7]
    keep = np.ones(len(C), bool)
    keep[low[3:]] = False  # the smallest budget has models only on one side
    found = approaches.parabolas(N[keep], D[keep], C[keep], L[keep])
    assert len(found.points) == 4
    assert any("no minimum" in w for w in found.warnings)


def test_extrapolation_beats_the_baselines_on_a_surface():
    N, D, C, L = isoflop(PLANTED[0], noise=0.001)
    found = extrapolation(N, D, C, L)
    assert found.factor == pytest.approx(10)
    assert np.abs(found.runs).max() < 0.02
    naive = {k: abs(v) for k, v in found.best.items() if k in ("same", "line", "power law")}
    assert abs(found.best["surface"]) < 0.5 * min(naive.values())
    assert naive["same"] > 0.03
    largest = C.max()
    changed = np.where(C / largest > 0.9, 2 * L, L)  # what is held out does not reach the fit
    assert extrapolation(N, D, C, changed).surface == found.surface


def test_the_best_learning_rate_as_a_power_law():
    C = np.repeat([1e9, 1e10, 1e11], 15)
    lr = np.tile(np.repeat(np.geomspace(1e-4, 1e-2, 5), 3), 3)
    N = np.tile([1e4, 3e4, 1e5], 15)
    best = 1e-3 * (C / 1e10) ** -0.2
    loss = 1 + 0.02 * np.log(lr / best) ** 2 + 0.01 * np.log(N / 3e4) ** 2
    found = fit.tuning(C, lr, loss)
    assert found.law.exponent == pytest.approx(-0.2, rel=1e-6)
    assert found.law(1e10) == pytest.approx(1e-3, rel=1e-6)
    runs = fit.Runs(N, C / (6 * N), C, loss, lr)
    tuned = runs.tuned()
    assert len(tuned) == 9
    assert set(np.round(tuned.lr, 8)) <= set(np.round(lr, 8))


def test_one_call_fits_everything():
    N, D, C, L = isoflop(PLANTED[0], noise=0.002)
    found = fit.fit(fit.Runs(N, D, C, L), samples=50)
    assert found.cost == pytest.approx((6, 1))
    assert found.exponents["N"].low < PLANTED[0].exponents()[0] < found.exponents["N"].high
    assert set(found.frontier) == {"power law", "power law with floor"}
    assert approaches.WARNING in found.notes
    assert abs(found.bias) < 0.5
    assert set(found.intervals) == set(NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [1.0, float("nan"), 1, 1, 1, 1]}, "leave failed runs out"),
        ({"N": [1.0, 2]}, "columns of lengths"),
        ({"N": [1.0] * 6}, "needs it to vary"),
        ({"N": [1.0, 2, 3], "D": [1.0, 2, 3], "loss": [1.0, 2, 3]}, "got 3 runs"),
    ],
)
def test_bad_tables_are_refused(change, message):
    columns = {"N": [1.0, 2, 3, 4, 5, 6], "D": [1.0, 1, 2, 2, 3, 3], "loss": [1.0] * 6}
    with pytest.raises(UserError, match=message):
        fit_surface(**(columns | change))


@pytest.fixture(scope="module")
def published():
    """The 240 points of the published fit: without the five highest losses."""
    beside = pathlib.Path(__file__).parents[3] / "shared/data/chinchilla_epoch.csv"
    path = pathlib.Path(os.environ.get("DIT_CHINCHILLA_CSV", beside))
    if not path.is_file():
        pytest.skip("the published points are not here; DIT_CHINCHILLA_CSV says where they are")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 245
    N, C, L = (
        np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss")
    )
    keep = np.sort(np.argsort(L)[:-5])
    return N[keep], (C / (6 * N))[keep], L[keep]


def test_published_points_by_sum_huber(published):
    found = fit_surface(*published, method="huber", delta=1e-3)
    assert found.objective <= 1.01828e-3
    r = np.log(found(*published[:2]) / published[2])
    assert terms.cost(r, 1e-3).sum() == pytest.approx(found.objective, rel=1e-9)
    assert found.alpha == pytest.approx(0.34731, abs=5e-4)
    assert found.beta == pytest.approx(0.36717, abs=5e-4)
    np.testing.assert_allclose([found.E, found.A, found.B], [1.81722, 477.83, 2143.4], rtol=1e-3)


def test_published_points_by_likelihood(published):
    found = fit_surface(*published, method="likelihood", delta=1e-3)
    assert found.alpha == pytest.approx(0.3478, abs=5e-4)
    assert found.beta == pytest.approx(0.3658, abs=5e-4)
    np.testing.assert_allclose([found.E, found.A, found.B], [1.817, 482, 2085], rtol=2e-3)
