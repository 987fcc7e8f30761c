"""Names of directories: whatever a file system allows is kept, or refused before anything is made."""

import contextlib
import os
import pathlib

import jax
import numpy as np
import pytest

from dit import cli, evaluate, sample, storage, train
from dit.storage.orbax_path import LocalPath
from dit.training import checkpoint as checkpoints
from dit.training.workdir import lock, read_config
from dit.types import UserError

NASTY = [
    *("run[1]", "[!a]", "run[", "]", "star*", "**", "q?", "{brace}", "with space", " ", "trail "),
    *("é 漢", "new\nline", "tab\t", "\x07", "100%s", "-dash", "--workdir=x", "~", "#hash", "$HOME"),
    *("a:b", "a'b\"c", "a|b", "a;b&c", "a=b,c", "@", "10", "5.orbax-checkpoint-tmp", "x" * 250),
]
IMPOSSIBLE = ["a\\b", "gs:", "\udcff", "nul\0"]
STATE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32(2)}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), STATE)
CONFIG = {"schedule": {"name": "constant"}, "steps": 10}


@pytest.mark.parametrize("place", ["last", "parent"])
@pytest.mark.parametrize("name", NASTY)
def test_a_checkpoint_is_kept_whole_in_a_directory_of_any_name(tmp_path, name, place):
    run = storage.workdir(tmp_path / name / ("" if place == "last" else "run"))
    run.mkdir(parents=True)
    for decoy in ("run1", "starry", "qq"):  # what the name would match, were it a pattern
        (tmp_path / decoy).mkdir()
    state = jax.device_put(STATE)
    writer = checkpoints.Checkpoints(run, CONFIG)
    writer.save(3, state, {"position": 48})
    writer.close()
    assert checkpoints.steps(run) == [3]
    assert (run / "checkpoints" / "3" / "state" / "manifest.ocdbt").is_file()
    reader = checkpoints.Checkpoints(run, CONFIG)
    again, data = reader.restore(ABSTRACT)
    reader.close()
    assert data == {"position": 48}
    np.testing.assert_array_equal(again["a"]["kernel"], STATE["a"]["kernel"])
    assert {p.name for p in tmp_path.iterdir()} == {"run1", "starry", "qq", name}


def test_a_local_path_is_never_an_address_nor_a_pattern(tmp_path):
    for text in ("/gs/bucket/run", "/s3/x", "/tmp/[a]"):
        assert os.fspath(LocalPath(text)) == text
        assert os.fspath(LocalPath(text) / "y") == f"{text}/y"
    folder = LocalPath(tmp_path / "[a]")
    folder.mkdir()
    (folder / "1.txt").write_text("x")
    assert [p.name for p in folder.glob("*.txt")] == ["1.txt"]
    assert isinstance(next(folder.glob("*")), LocalPath)


def test_a_tilde_is_the_home_directory_only_where_a_path_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.workdir("~/run") == tmp_path / "run"
    assert storage.workdir("~") == tmp_path
    assert storage.workdir("runs/~") == pathlib.Path("runs/~")
    assert storage.workdir("~x/run") == pathlib.Path("~x/run")


ENTRIES = {
    "train": lambda run: train.main(["--config=configs/digits.py", f"--workdir={run}"]),
    "sample": lambda run: sample.main([f"--workdir={run}", "--labels=0"]),
    "evaluate": lambda run: evaluate.main([f"--workdir={run}"]),
    "read_config": read_config,
    "restore_params": lambda run: checkpoints.restore_params(run, ABSTRACT),
}


def refused(entry, run):
    """One message, as the command line prints it."""
    with pytest.raises(UserError) as caught, cli.full_disk():
        entry(run)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("name", ["", *IMPOSSIBLE])
def test_a_name_that_cannot_be_is_refused_and_nothing_is_made(tmp_path, monkeypatch, entry, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    root = pathlib.Path(__file__).parents[2]
    os.symlink(root / "configs", tmp_path / "here" / "configs")
    message = refused(entry, f"{tmp_path}/{name}/run" if name else "")
    assert ("Give another" if name else "got the path ''") in message
    assert not os.path.lexists(tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["configs"]


def looping(tmp_path):
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    return tmp_path / "a" / "run"


def a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    return tmp_path / "file"


def under_a_file(tmp_path):
    return a_file(tmp_path) / "run"


def long_name(tmp_path):
    return tmp_path / ("x" * 300)


def long_path(tmp_path):
    return pathlib.Path(tmp_path, *["x" * 200] * 25)


def nowhere(tmp_path):
    return pathlib.Path("/proc/none/run")


def dangling(tmp_path):
    os.symlink(tmp_path / "gone" / "further", tmp_path / "link")
    return tmp_path / "link"


UNUSABLE = [looping, a_file, under_a_file, long_name, long_path, nowhere, dangling]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("make", UNUSABLE, ids=lambda f: f.__name__)
def test_a_path_that_cannot_be_used_is_one_message(tmp_path, entry, make):
    refused(entry, make(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("mode", [0o500, 0o000])
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_directory_that_is_closed_is_one_message(tmp_path, entry, mode):
    (tmp_path / "closed").mkdir(mode=mode)
    try:
        refused(entry, tmp_path / "closed" / "run")
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("number", cli.CLOSED)
def test_whatever_the_system_forbids_is_one_message(tmp_path, monkeypatch, number):
    """As it would be on a read-only file system, which a test cannot have everywhere."""

    def closed(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", closed)
    with pytest.raises(UserError, match="cannot"), cli.full_disk(), contextlib.ExitStack() as stack:
        stack.enter_context(lock(tmp_path / "run"))
    with pytest.raises(UserError, match="cannot be used"), cli.full_disk():
        (tmp_path / "other").mkdir()
