"""What the workers of a TPU VM get: the code, with nothing left behind unsaid, and the buckets."""

import subprocess
import tarfile

import pytest
from launch_tools import HANGS, LAUNCH, load, stand_in


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, in the place of ours."""
    source = load("source")
    folder = tmp_path / "repository"
    (folder / "configs").mkdir(parents=True)
    for name in ("configs/a.py", ".gitignore"):
        (folder / name).write_text("/runs/\n")
    me = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*me, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    monkeypatch.setattr(source, "ROOT", folder)
    return folder


def changed(folder, how):
    files = {
        "changed": "configs/a.py",
        "untracked": "configs/my new.py",
        "staged": "configs/staged.py",
        "deleted": "configs/a.py",
        "folder": "mine/code.py",
    }
    file = folder / files[how]
    file.parent.mkdir(exist_ok=True)
    file.unlink() if how == "deleted" else file.write_text("new")
    if how == "staged":
        subprocess.run(["git", "-C", str(folder), "add", "-A"], check=True)
    return files[how]


HOWS = ["changed", "untracked", "staged", "deleted", "folder"]


@pytest.mark.parametrize("how", HOWS)
def test_what_is_not_committed_is_named_and_refused(how, repository):
    source = load("source")
    assert source.complaint(["python", "--config=configs/a.py"], False) is None
    file = changed(repository, how)
    text = source.complaint(["python"], False)
    assert file in text
    assert "--uncommitted" in text


@pytest.mark.parametrize("how", HOWS)
def test_or_it_is_sent_as_it_is(how, repository, tmp_path):
    source = load("source")
    file = changed(repository, how)
    (repository / "runs").mkdir()
    (repository / "runs" / "big").write_text("ignored")
    before = subprocess.check_output(["git", "-C", str(repository), "status", "--porcelain"])
    assert source.complaint(["python"], True) is None
    subprocess.run(source.archive(str(tmp_path / "x y.tgz"), True), check=True)
    with tarfile.open(tmp_path / "x y.tgz") as archive:
        names = archive.getnames()
        assert (file in names) == (how != "deleted")
        if how != "deleted":
            assert archive.extractfile(file).read() == b"new"
    assert "runs/big" not in names
    assert [p.name for p in tmp_path.glob("x y.tgz*")] == ["x y.tgz"]
    after = subprocess.check_output(["git", "-C", str(repository), "status", "--porcelain"])
    assert after == before  # the user's index is as it was


@pytest.mark.parametrize("uncommitted", [False, True])
@pytest.mark.parametrize("config", ["runs/ignored.py", "configs/none.py", "absolute"])
def test_a_config_that_would_not_arrive_is_refused(config, uncommitted, repository):
    source = load("source")
    (repository / "runs").mkdir()
    (repository / "runs" / "ignored.py").write_text("")
    path = str(repository / "configs/a.py") if config == "absolute" else config
    for command in (["python", f"--config={path}"], ["python", "--config", path]):
        assert path in source.complaint(command, uncommitted)


def test_code_outside_a_repository_is_refused(tmp_path, monkeypatch):
    source = load("source")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    assert "is no git repository" in source.complaint(["python"], False)


MOUNTING = """
case "$0" in
  */gcsfuse) printf '%s\\n' "$@" >"$MADE/fuse" ;;
  */mountpoint) [ -e "$MADE/fuse" ] ;;
  */curl | */lsb_release) echo jammy ;;
  */sudo)
    case "$1 $*" in
      tee*) cat >>"$MADE/apt" ;;
      apt-get*install*) ln -s sudo "${0%/*}/gcsfuse" ;;
    esac ;;
esac
"""


def test_the_mount_script_installs_and_mounts_once(tmp_path):
    for name in ("mountpoint", "curl", "lsb_release", "sudo"):
        env = stand_in(tmp_path / "bin", name, MOUNTING)
    command = ["bash", str(LAUNCH / "mount.sh"), "data", "some/part", str(tmp_path / "m")]
    for _ in range(2):  # the second time it is there
        env["MADE"] = str(tmp_path)
        subprocess.run(command, env=env, check=True, timeout=HANGS)
    asked = (tmp_path / "fuse").read_text().split()
    assert asked == ["--implicit-dirs", "--only-dir", "some/part", "data", str(tmp_path / "m")]
    assert "gcsfuse-jammy main" in (tmp_path / "apt").read_text()
