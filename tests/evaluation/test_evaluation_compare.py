"""``dit.evaluate --compare``: what two runs' scores say of each other."""

import json

import numpy as np
import pytest
import saved_run
import toy_features

from dit import evaluate, scoring
from dit.evaluation import compare
from dit.evaluation.collect import Moments, Rows
from dit.types import UserError

KEY = ("a", "features", "rows")


def side(tmp_path, name, rows, reference, scores=("fd", "precision_recall")):
    """A file of features of a network ``a``, and one of its scores."""
    moments = Moments.empty(len(reference), reference.shape[1])
    moments.add(np.arange(len(reference)), reference)
    sets = {
        "samples": {KEY: Rows(rows)},
        "reference": {("a", "features", "moments"): moments, KEY: Rows(reference)},
        "held_out": {},
    }
    blank = compare.Side(name, {}, {}, sets, scores)
    figures = compare._scored(blank, compare._plans(blank, len(rows)), np.arange(len(rows)))
    better = {"fd_a": "lower", "precision_a": "higher", "recall_a": "higher"}
    told = {"samples": {"count": len(rows), "hash": name}, "reference": {"hash": "r"}}
    protocol = {k: {**told, "better": better[k]} for k in better if k in figures}
    file = tmp_path / f"{name}.npz"
    compare.save(file, figures, protocol, sets, blank.scores)
    (tmp_path / f"{name}.json").write_text(json.dumps({"figures": figures, "protocol": protocol}))
    return compare.read(str(file)), compare.read(str(tmp_path / f"{name}.json"))


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Samples; worse ones of the same noise; others as good; and some of a tenth of the noise apart."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("sides")
    reference = rng.normal(size=(400, 4)).astype(np.float32)
    noise, other = (rng.normal(size=(200, 4)).astype(np.float32) for _ in range(2))
    rows = {"first": noise, "worse": 1.5 * noise + 1, "other": other, "near": noise + 0.12}
    return {name: side(folder, name, x, reference) for name, x in rows.items()}


def words(a, b):
    return {verdict.figure: verdict.word for verdict in compare.compare(a, b)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 1], ids=["features", "scores"])
def test_better_and_worse_are_told_and_chance_is_not(sides, kind):
    first, worse, other = (sides[name][kind] for name in ("first", "worse", "other"))
    assert words(first, worse) == {"fd_a": "worse", "precision_a": "worse", "recall_a": "worse"} | (
        {"recall_a": words(first, worse)["recall_a"]}  # wider samples may recall more
    )
    assert words(worse, first)["fd_a"] == "better"
    assert words(worse, first)["precision_a"] == "better"
    assert set(words(first, other).values()) == {"inconclusive"}
    assert set(words(first, first).values()) == {"inconclusive"}


def test_the_same_noise_tells_less_than_chance_apart(sides):
    """Of a small shift the errors of each say less than that of the difference."""
    paired, apart = (
        {v.figure: v for v in compare.compare(sides["first"][kind], sides["near"][kind])}["fd_a"]
        for kind in (0, 1)
    )
    assert paired.high - paired.low < 0.9 * (apart.high - apart.low)


def test_the_interval_of_a_difference_is_that_of_drawing_again(tmp_path):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(500, 3)).astype(np.float32)
    gaps, widths = [], []
    for i in range(25):
        noise = rng.normal(size=(150, 3)).astype(np.float32)
        a, b = (
            side(tmp_path, f"{i}{k}", x, reference, ["fd"])[0]
            for k, x in enumerate((noise, noise * 1.2))
        )
        (verdict,) = [v for v in compare.compare(a, b) if v.figure == "fd_a"]
        gaps.append(verdict.values[1] - verdict.values[0])
        widths.append((verdict.high - verdict.low) / 2 / compare.Z)
    assert np.mean(widths) == pytest.approx(np.std(gaps), rel=0.35)


def test_what_was_measured_otherwise_is_not_compared(sides):
    one, other = sides["first"][1], sides["other"][1]
    protocol = {k: {**v, "reference": {"hash": "x"}} for k, v in other.protocol.items()}
    changed = compare.Side("x", other.figures, protocol)
    assert set(words(one, changed).values()) == {"not comparable: reference.hash is r and x"}
    with pytest.raises(UserError, match="expected one in common"):
        compare.compare(one, compare.Side("x", {}, {}))


@pytest.mark.slow
def test_runs_are_compared_from_the_command_line(tmp_path, monkeypatch, capsys):
    saved_run.save(tmp_path / "run", {"name": "digits"})
    monkeypatch.setattr(scoring, "networks", lambda names: tuple(map(toy_features.network, names)))
    loss = {"held_out_loss": 1.0, "held_out_loss_error": 0.1}
    monkeypatch.setattr(evaluate, "held_out_loss", lambda *args: loss)
    common = [f"--workdir={tmp_path / 'run'}", "--num=24", "--features=inception_v3"]
    common += ["--scores=fd,inception_score,copies", "--reference=train:limit=120"]
    for which in ("params", "ema_10"):
        files = [f"--keep={tmp_path / which}.npz", f"--out={tmp_path / which}.json"]
        assert evaluate.main([*common, *files, f"--ema={which}"]) == 0
    for end in ("npz", "json"):
        capsys.readouterr()
        assert (
            evaluate.main(["--compare", *(f"{tmp_path / w}.{end}" for w in ("params", "ema_10"))])
            == 0
        )
        said = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in said[1:]] == [
            *("fid", "inception_score", "copies_inception_v3")
        ]
        assert all(line.endswith(("better", "worse", "inconclusive")) for line in said[1:])
    with pytest.raises(UserError, match="expected a run"):
        evaluate.main(["--compare", str(tmp_path), str(tmp_path)])
    with pytest.raises(UserError, match="got --num with --compare"):
        evaluate.main(["--compare", "a", "b", "--num=3"])
