"""What the notebooks share: quick and full mode, where they run, stored results, pictures and tables.

``DIT_FULL=1`` in the environment asks for the full mode; ``DIT_RETRAIN=1`` trains again instead of
reading stored results. IPython is imported only when something is shown.
"""

from __future__ import annotations

import io
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

import dit
from dit import media
from dit.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = os.environ.get("DIT_FULL", "0") == "1"
DPI = 110  # of figures: readable on a screen, and below 100 kB


def start() -> None:
    """Say where and in which mode this notebook runs, and keep its outputs free of logs.

    Compiled programs are cached, so that arms which share one compile it once.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    for name in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = jax.devices()[0]
    mode = "full" if FULL else "quick"
    print(f"{mode} mode, on {jax.device_count()} {device.device_kind} ({device.platform})")
    print(f"dit {dit.__version__}, jax {jax.__version__}")


def results(name: str) -> pathlib.Path:
    """The directory of results stored beside the notebook ``name``.

    Found from the current directory, the repository's root, or a clone below it (as on Colab). Raises
    UserError if it is in none of them.
    """
    places = [pathlib.Path(p) for p in (".", "notebooks", "dit-jax/notebooks")]
    for place in places:
        if (place / "results" / name).is_dir():
            return place / "results" / name
    raise UserError(
        f"no stored results of {name!r}: expected results/{name} beside the notebooks; run the notebook "
        "from a clone of the repository"
    )


def runs(name: str) -> pathlib.Path:
    """The directory of the registry of the runs of the notebook ``name`` in this mode.

    Runs that are stored there are shown and not run again, unless ``DIT_RETRAIN=1`` is in the
    environment: then it is an empty temporary directory.
    """
    if os.environ.get("DIT_RETRAIN", "0") == "1":
        return pathlib.Path(tempfile.mkdtemp(prefix=name))
    return results(name) / ("full" if FULL else "quick")


def show(figure: Figure) -> None:
    """Show a matplotlib ``Figure`` as a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    _image(out.getvalue())


def plain_ticks(axis: Any) -> None:
    """Write the ticks of a logarithmic axis that spans about one decade as 0.6, not 6 x 10^-1."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def show_file(path: str | os.PathLike) -> None:
    """Show a PNG file."""
    _image(pathlib.Path(path).read_bytes())


def show_grid(samples: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Show uint8 samples ``n f h w c``, one row a label, as ``media.grid`` lays them out."""
    grid, out = media.grid(samples, labels), io.BytesIO()
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(out, format="png")
    _image(out.getvalue())


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show rows of equal keys as a table; numbers with four significant digits."""
    from IPython.display import Markdown, display

    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[h]) for h in heads] for row in rows)]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _image(png: bytes) -> None:
    """Show a PNG with an adaptive palette: a third of the size, and no visible difference."""
    from IPython import display

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, format="png", optimize=True)
    display.display(display.Image(out.getvalue()))
