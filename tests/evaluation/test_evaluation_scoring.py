"""``dit.evaluate --scores``: streamed over devices and processes, with a protocol and a reference."""

import json
import os

import jax
import numpy as np
import pytest
import saved_run
import toy_features
from commands import free_port, start
from compiling import devices

from dit import config, evaluate, scoring
from dit.draw import Sampler, load
from dit.evaluation import frechet, reference
from dit.evaluation.featurise import Featurise, Passing
from dit.evaluation.scores import About
from dit.evaluation.scores.kd import distance
from dit.evaluation.scores.precision_recall import precision_recall
from dit.parallel.mesh import batch_sharding, make_mesh
from dit.recipe import recipe_from
from dit.types import UserError

SCORES = "fd,kd:subsets=4,size=20,precision_recall,inception_score,sfid,fd_ratio"
NUM = 52


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved_run.save(folder, {"name": "digits"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def toy():
    patch = pytest.MonkeyPatch()
    patch.setattr(scoring, "networks", scoring.networks)
    toy_features.install()
    loss = {"held_out_loss": 1.0, "held_out_loss_error": 0.1}
    patch.setattr(evaluate, "held_out_loss", lambda *args: loss)  # which is tested elsewhere
    yield
    patch.undo()


def scored(workdir, *args, scores=SCORES):
    argv = [f"--workdir={workdir}", f"--num={NUM}", "--features=inception_v3", *args]
    assert evaluate.main([*argv, f"--scores={scores}"]) == 0
    return json.loads((workdir / "scores.json").read_text())


@pytest.fixture(scope="module")
def report(workdir):
    return scored(workdir, "--batch=20", "--reference=train:limit=70")


@pytest.fixture(scope="module")
def sets(workdir):
    """The samples, and the pictures that they are compared with, all at once."""
    experiment, restored = load(str(workdir))
    settings = {**experiment.config.samples.to_dict(), "num": NUM}
    samples = Sampler(experiment, recipe_from(settings, 10))(restored.params).samples
    train = experiment.source.train
    return samples[:, 0], np.stack([train[i]["x"][0] for i in reference.rows_of(train, 70)])


def test_streamed_scores_are_those_of_all_samples_at_once(report, sets):
    ours, theirs = (toy_features.network().pictures(x) for x in sets)
    found = report["figures"]
    assert found["fid"] == pytest.approx(frechet.between(ours, theirs), rel=1e-4)
    assert found["sfid"] == pytest.approx(frechet.between(ours[:, :2], theirs[:, :2]), rel=1e-4)
    assert found["kid"] == pytest.approx(distance(ours, theirs, 4, 20, 2020)[0], rel=1e-4)
    wanted = precision_recall(ours, theirs, 3)
    assert (found["precision_inception_v3"], found["recall_inception_v3"]) == pytest.approx(wanted)
    assert {"inception_score", "fd_ratio", "held_out_loss"} <= set(found)
    values = {name: value for name, value in found.items() if name.endswith("_error")}
    assert all(np.isfinite(list(values.values()))), values


def test_every_score_has_its_protocol(report, sets):
    protocol = report["protocol"]
    assert set(protocol) == {
        name for name in report["figures"] if f"{name}_error" in report["figures"]
    } - {"held_out_loss"}
    fid = protocol["fid"]
    assert fid["networks"][0] == toy_features.network().protocol
    assert fid["networks"][0]["weights"] == toy_features.network().protocol["weights"]
    assert fid["samples"]["count"] == NUM
    assert (fid["samples"]["least of a class"], fid["samples"]["most of a class"]) == (5, 6)
    assert fid["samples"]["uint8"].startswith("round(127.5")
    assert fid["reference"]["count"] == 70
    assert "held_out" not in fid
    assert protocol["fd_ratio"]["held_out"]["count"] == 70
    assert "reference" not in protocol["inception_score"]
    assert protocol["kid"]["score"] == {"name": "kd", "subsets": 4, "size": 20, "seed": 2020}
    assert report["recipe"]["steps"] == 2


def test_other_batches_and_a_reference_that_was_kept_change_nothing(report, workdir, monkeypatch):
    monkeypatch.setattr(reference, "of_pictures", None)
    again = scored(workdir, "--batch=48", "--reference=train:limit=70")
    assert again["protocol"] == report["protocol"]
    for name, value in report["figures"].items():
        if name != "sampling_seconds":
            assert again["figures"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_other_data_are_another_reference(workdir, report):
    other = scored(workdir, "--reference=held_out:limit=70", scores="fd")
    assert (
        other["protocol"]["fid"]["reference"]["hash"]
        != report["protocol"]["fid"]["reference"]["hash"]
    )
    assert other["figures"]["fid"] != pytest.approx(report["figures"]["fid"], rel=1e-3)


def test_a_reference_may_be_a_file_of_pictures_or_of_moments(report, sets, workdir, tmp_path):
    pictures = np.repeat(sets[1], 3, axis=-1)
    whole, few = tmp_path / "VIRTUAL.npz", tmp_path / "moments.npz"
    np.savez(whole, arr_0=pictures, arr_1=np.zeros(70, np.int64))
    np.savez_compressed(tmp_path / "small.npz", arr_0=pictures)
    figures = report["figures"]
    for file in (whole, tmp_path / "small.npz"):
        found = scored(workdir, f"--reference={file}", scores="fd,precision_recall")
        for name in ("fid", "precision_inception_v3"):
            assert found["figures"][name] == pytest.approx(figures[name], rel=1e-4)
        assert found["protocol"]["fid"]["reference"]["from"] == file.name
    mean, cov = frechet.moments(toy_features.network().pictures(sets[1]))
    np.savez(few, mu=mean + 1, sigma=cov, arr_0=pictures)
    found = scored(workdir, f"--reference={few}", scores="fd,precision_recall")
    assert found["figures"]["fid"] > figures["fid"] + 1  # the moments are those of the file
    np.savez(few, mu=mean, sigma=cov)
    found = scored(workdir, f"--reference={few}", scores="fd")
    assert found["figures"]["fid"] == pytest.approx(figures["fid"], rel=1e-4)
    with pytest.raises(UserError, match=r"no pictures .*inception_v3/features.* it has mu, sigma"):
        scored(workdir, f"--reference={few}", scores="fd,kd")
    np.savez(few, mu=mean, sigma=cov[:2])
    with pytest.raises(UserError, match=r"mu of .* sigma of"):
        scored(workdir, f"--reference={few}", scores="fd")
    np.savez(few, arr_0=np.array([{}], object))
    with pytest.raises(UserError, match="plain numbers"):
        scored(workdir, f"--reference={few}", scores="fd")
    few.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(UserError, match="cannot read the reference"):
        scored(workdir, f"--reference={few}", scores="fd")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--scores=fid", "--features=a"], "did you mean"),
        (["--scores=fd"], "no features for the scores"),
        (["--reference=train"], "without --scores"),
        (["--scores=fd", "--features=a", "--reference=nowhere.npz"], "no such file"),
        (["--scores=fd", "--features=a", "--reference=test"], "expected train, held_out"),
        (["--scores=fd", "--features=a", "--demand=fid<1"], "there are fd_a, fd_a_error"),
        (["--scores=clip_score", "--features=a", "--demand=clip_score>1"], "no captions"),
    ],
)
def test_mistakes_are_found_before_anything_is_drawn(workdir, args, why, monkeypatch):
    monkeypatch.setattr(Sampler, "draw", None)
    with pytest.raises(UserError, match=why):
        evaluate.main([f"--workdir={workdir}", "--num=4", *args])


BEFORE = "import sys; sys.path.insert(0, 'tests/evaluation'); import toy_features as t; t.install()"


@pytest.mark.slow
def test_scores_are_the_same_on_any_number_of_devices_and_processes(report, workdir):
    args = [f"--workdir={workdir}", f"--num={NUM}", "--features=inception_v3", "--batch=24"]
    args += [f"--scores={SCORES}", "--reference=train:limit=70"]
    for count, each in ((1, 1), (1, 8), (2, 1)):
        out = workdir / f"{count}x{each}.json"
        for file in (workdir / "scores").glob("*"):
            file.unlink()  # each makes its own reference
        job = {"DIT_COORDINATOR": f"127.0.0.1:{free_port()}", "DIT_NUM_PROCESSES": str(count)}
        job = job if count > 1 else {}
        env = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([os.getcwd(), "tests"])}
        env |= {"XLA_FLAGS": devices(each)}
        processes = [
            start("evaluate", *args, f"--out={out}", before=BEFORE, **env, **job, **_mine(i, job))
            for i in range(count)
        ]
        for process in processes:
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
        found = json.loads(out.read_text())
        assert found["protocol"] == report["protocol"]
        for name in report["protocol"]:
            for figure in (name, f"{name}_error"):
                value = report["figures"][figure]
                assert found["figures"][figure] == pytest.approx(value, rel=1e-3, abs=1e-6), figure


def _mine(i, job):
    return {"DIT_PROCESS_ID": str(i)} if job else {}


def test_frames_of_clips_are_each_a_row():
    """By batches whose last one is filled up; the distance is that of all frames at once."""
    rng, network, mesh = (
        np.random.default_rng(0),
        toy_features.network("a"),
        make_mesh({"data": -1}),
    )
    clips = [rng.integers(0, top, (12, 3, 8, 8, 1), np.uint8) for top in (200, 256)]
    about = About((network,), 12, frames=3, mesh=mesh)
    plans = [config.resolve("evaluation.scores", name)(about) for name in ("fd", "kd")]
    sets = {}
    for of, x in zip(("samples", "reference"), clips, strict=True):
        needs = [need for plan in plans for need in plan.needs if of in need.of]
        passing = Passing(Featurise((network,), needs, mesh), 12)
        for ids in (np.arange(8), np.minimum(np.arange(8, 16), 11)):
            batch, where = x[ids], batch_sharding(mesh)
            passing.put(jax.make_array_from_callback(batch.shape, where, batch.__getitem__))
        sets[of] = passing.collected
    ours, theirs = (network.pictures(x.reshape(36, 8, 8, 1)) for x in clips)
    np.testing.assert_allclose(sets["samples"]["a", "features", "rows"].x, ours, atol=1e-5)
    assert plans[0].measure(sets)["fd_a"] == pytest.approx(frechet.between(ours, theirs), rel=1e-3)
