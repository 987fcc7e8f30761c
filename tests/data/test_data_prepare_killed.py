"""With encoders too, the records are the same whatever interrupts the work and whoever shares it."""

import json
import os
import pathlib
import subprocess
import sys

import autoencoder_files
import pytest
import text_cases
from test_data_prepare import content, pictures_in

from dit.data import records

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_latents_and_texts_are_the_same_when_killed_and_by_two(tmp_path):
    source = pictures_in(tmp_path / "in", n=200)
    (source / "000.png").write_bytes(b"spoilt")
    autoencoder_files.save(tmp_path / "vae", "tiny")
    text_cases.save(tmp_path / "clip", "clip", projected=True)
    argv = [f"--source={source}", "--size=16", "--held-out=0.2", "--workers=0", "--batch=16"]
    argv += [f"--codec=autoencoder_kl:path={tmp_path / 'vae'}", "--flip"]
    argv += [f"--text=clip:path={tmp_path / 'clip'}"]
    command = [sys.executable, HERE / "killed.py", tmp_path, *argv]
    env = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert len({tuple(kill.values()) for kill in kills}) > 5, kills  # at different places
    assert any(kill["encoded"] for kill in kills), kills
    fields = records.read_manifest(tmp_path / "whole")["fields"]
    assert {"latents", "text"} <= set(fields)
    assert set(fields["text"]) >= {"context", "pooled"}
    whole = content(tmp_path / "whole")
    assert sum(name.startswith("records-") for name in whole) == 2
    assert content(tmp_path / "killed") == whole
    assert content(tmp_path / "shared") == whole
