"""Places in a bucket: names, whole writes, appending, and holding one for a single job."""

import concurrent.futures
import pathlib
import sys
import threading
import time

import pytest

from dit import cli, storage
from dit.storage import growing, lease
from dit.types import OutsideError, UserError


def test_an_address_is_a_directory_or_in_a_bucket(tmp_path):
    assert storage.place(str(tmp_path)) == tmp_path
    path = storage.BucketPath("gs://b//runs/one/")
    assert str(path) == "gs://b/runs/one"
    assert str(path / "samples" / "a.png") == "gs://b/runs/one/samples/a.png"
    assert ((path / "a.png").suffix, path.name, str(path.parent)) == (".png", "one", "gs://b/runs")
    with pytest.raises(TypeError):
        pathlib.Path(path)
    with pytest.raises(UserError, match="gs://BUCKET/PATH"):
        storage.place("s3://bucket/run")
    with pytest.raises(UserError, match="gs://BUCKET/PATH"):
        storage.BucketPath("gs:///run")


def test_objects_are_found_as_files_are(bucket):
    run = bucket / "run"
    assert not run.exists()
    for name in ("config.json", "checkpoints/5/a", "checkpoints/10/b", "checkpoints/10/c/d"):
        (run / name).write_text(name)
    assert run.is_dir()
    assert not run.is_file()
    assert (run / "config.json").is_file()
    assert not (run / "config.json").is_dir()
    assert (run / "config.json").stat().st_size == len("config.json")
    assert [p.name for p in run.glob("*")] == ["checkpoints", "config.json"]
    assert [p.name for p in run.glob("checkpoints/[0-9]*")] == ["10", "5"]
    assert [p.name for p in (run / "checkpoints").glob("1?")] == ["10"]
    assert run.glob("nothing/*") == []
    with pytest.raises(FileNotFoundError, match="gs://bucket/run/none"):
        (run / "none").read_bytes()
    moved = (run / "checkpoints/10").rename(run / "damaged/10-0")
    assert moved.is_dir()
    assert not (run / "checkpoints/10").exists()
    assert (run / "damaged/10-0/c/d").read_text() == "checkpoints/10/c/d"
    (run / "config.json").unlink()
    (run / "config.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (run / "config.json").unlink()


def test_what_is_moved_loses_first_what_says_that_it_is_whole(bucket, server):
    for name in ("_METADATA", "commit_success.txt", "state/d/1"):
        (bucket / "5" / name).write_text(name)
    server.requests.clear()
    (bucket / "5").rename(bucket / "damaged")
    deleted = [path.rpartition("/o/")[2] for method, path in server.requests if method == "DELETE"]
    assert deleted == ["5/_METADATA", "5/commit_success.txt", "5/state/d/1"]


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(storage.StorageError, match="no bucket 'other'"):
        storage.place("gs://other/run").glob("*")
    with pytest.raises(storage.StorageError, match="no bucket 'other'"):
        storage.place("gs://other/run").write_text("x")


@pytest.mark.parametrize("size", [0, 10, 9_000_000])
def test_what_is_read_is_what_was_written(bucket, size):
    data = bytes(i * i % 251 for i in range(1000)) * (size // 1000) + b"\r\n--" * (size % 1000)
    storage.write(bucket / "file", data)
    assert (bucket / "file").read_bytes() == data


def test_of_two_writers_one_succeeds(bucket):
    file = bucket / "file"
    generation = file.put(b"a", 0)
    with pytest.raises(storage.TakenError):
        file.put(b"b", 0)
    file.put(b"c", generation)
    with pytest.raises(storage.TakenError):
        file.unlink(generation=generation)
    assert file.read_bytes() == b"c"


def test_appending_sends_only_what_is_new_and_loses_nothing(bucket, server):
    file = bucket / "log"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        lines = [f"{i}\n".encode() * 50 for i in range(20)]
        list(pool.map(file.append, lines))
    assert sorted(file.read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())
    whole = file.read_bytes()
    assert all(line in whole for line in lines)  # none within another
    assert server.names("bucket") == ["log"]


@pytest.mark.parametrize("lost", [1, 2])
def test_an_answer_that_is_lost_does_not_write_twice(bucket, server, lost):
    file = bucket / "log"
    file.append(b"one\n")
    server.forget = lost
    file.append(b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_what_grows_here_grows_there(bucket, monkeypatch, tmp_path):
    local = growing.Growing(tmp_path)
    assert local.folder == tmp_path
    local.close()
    monkeypatch.setattr(growing, "SECONDS", 0.05)
    (bucket / "log").write_text("before\n")
    files = growing.Growing(bucket)
    with open(files.folder / "log", "a") as stream:
        stream.write("one\n")
        stream.flush()
        deadline = time.monotonic() + 300
        while (bucket / "log").read_text() != "before\none\n":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stream.write("two\n")
    (files.folder / "board").mkdir()
    (files.folder / "board" / "events").write_bytes(b"\0\1")
    files.close()
    assert (bucket / "log").read_text() == "before\none\ntwo\n"
    assert (bucket / "board/events").read_bytes() == b"\0\1"
    assert not files.folder.exists()


@pytest.fixture
def quick(monkeypatch):
    """Holders show that they live ten times a second; the dead are given a minute, or as a test says."""
    for name, seconds in (("BEAT", 0.1), ("LOOK", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


def test_a_place_is_for_one_job(bucket, quick):
    with lease.hold(bucket / ".lock") as held:
        held.sure()
        with (
            pytest.raises(OutsideError, match=r"in use by another job \(process \d+ on"),
            lease.hold(bucket / ".lock"),
        ):
            pass
        held.sure()
    assert not (bucket / ".lock").exists()
    with lease.hold(bucket / ".lock"):
        pass


def test_a_dead_job_holds_nothing_for_long(bucket, quick, monkeypatch):
    monkeypatch.setattr(lease, "LEASE", 0.5)
    (bucket / ".lock").write_text('{"holder": "process 1 on a", "token": "x"}')
    start = time.monotonic()
    with lease.hold(bucket / ".lock") as held:
        assert time.monotonic() - start > 0.5
        held.sure()


def test_a_job_that_lets_go_lets_the_next_one_in_at_once(bucket, quick, monkeypatch, caplog):
    monkeypatch.setattr(lease, "LEASE", 300.0)
    (bucket / ".lock").write_text("{}")
    threading.Timer(0.3, (bucket / ".lock").unlink).start()
    with lease.hold(bucket / ".lock"):
        assert "seeing for up to 300 s whether that lives" in caplog.text
        assert "taking its place" not in caplog.text  # of one that is taken for dead


def test_who_was_thought_dead_finds_out(bucket, quick):
    with lease.hold(bucket / ".lock") as held:
        (bucket / ".lock").write_text('{"holder": "process 2 on b", "token": "y"}')
        time.sleep(1)
        with pytest.raises(OutsideError, match="another one has taken gs://bucket/"):
            held.sure()
    assert b"process 2" in (bucket / ".lock").read_bytes()


def test_beats_whose_answers_are_lost_do_not_end_a_job(bucket, server, quick):
    server.forget = 1
    with lease.hold(bucket / ".lock") as held:
        server.forget = 1
        time.sleep(2.5)
        held.sure()
    assert not (bucket / ".lock").exists()


def test_a_bucket_that_does_not_let_us_in_is_one_message(bucket, server, monkeypatch):
    monkeypatch.setattr(server, "status", 403)
    with (
        pytest.raises(UserError, match=r"gs://bucket/run cannot be reached: 403 .*not for you"),
        cli.full_disk(),
    ):
        storage.check("gs://bucket/run")


def test_what_could_not_be_sent_is_kept(bucket, server, monkeypatch):
    files = growing.Growing(bucket / "run")
    (files.folder / "log").write_text("one\n")
    monkeypatch.setattr(server, "status", 403)
    with pytest.raises(storage.StorageError, match="what was not sent is in") as caught:
        files.close()
    folder = pathlib.Path(str(caught.value).rpartition(" ")[2])
    assert (folder / "log").read_text() == "one\n"


@pytest.mark.parametrize("library", ["gcsfs", "google.cloud.storage"])
def test_without_its_libraries_a_bucket_is_refused_with_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install 'dit-jax\[gcs\]'"):
        storage.place("gs://bucket/run")
