"""A server of buckets on loopback for the whole session, and the variables that lead to it."""

import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / room) for room in ("training", "parallel")]


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("google.cloud.storage", reason="needs the extra 'gcs'")
    import fsspec
    from gcs_server import Server

    with Server("bucket") as server, pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, server.url)
        patch.setenv("GCE_METADATA_ROOT", server.url.removeprefix("http://"))
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask by gRPC
        pytest.importorskip("gcsfs", reason="needs the extra 'gcs'")
        patch.setenv("FSSPEC_GCS_TOKEN", "anon")
        patch.setenv("CLOUDSDK_CONFIG", os.devnull)
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server


@pytest.fixture
def bucket(server):
    """An empty bucket, as a place."""
    from dit import storage

    server.objects.clear()
    server.requests.clear()
    return storage.place("gs://bucket")
