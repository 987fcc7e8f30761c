"""Pictures of samples and of training: PNG grids and filmstrips, GIFs, .npz arrays, loss curves.

Samples are uint8 ``(n, f, h, w, c)``; an image is a clip of one frame. Small pictures are enlarged by
whole pixels. A PNG carries its recipe, the JSON of how it was made, in a text chunk. Every file is
written beside its place and then moved there, so that nobody ever reads half of one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, PngImagePlugin

from dit import storage
from dit.types import UserError

RECIPE = "dit-recipe"  # keyword of the PNG text chunk
CELL = 64  # pixels that a picture is enlarged to, at least
GAP = 1  # between pictures, in their own pixels
LATENTS = (
    "these samples are latents and not pixels, so they cannot be drawn: write them with an --out "
    "ending in .npz and decode them with the autoencoder they came from"
)
GREY = 96  # of the gap
CONSTANT = "best constant prediction"
Address = str | os.PathLike | storage.Place
Clips = UInt8[np.ndarray, "n f h w c"]
Picture = UInt8[np.ndarray, "rows columns c"]


def to_uint8(decoded: Float[np.ndarray, "*shape"], codec: Any) -> UInt8[np.ndarray, "*shape"]:
    """Colours in [-1, 1], as ``codec.decode`` gives them, to 0..255, rounded to nearest.

    Raises UserError if they are not finite, or latents and not colours: ``codec.pixels`` is false.
    """
    if not codec.pixels:
        raise UserError(LATENTS)
    decoded = np.asarray(decoded)
    if not np.isfinite(decoded).all():
        raise UserError("the samples hold values that are not finite; expected colours in [-1, 1]")
    return np.rint(127.5 * (np.clip(decoded, -1, 1) + 1)).astype(np.uint8)


def grid(clips: Clips, labels: Int[np.ndarray, "n"] | None = None) -> Picture:
    """First frames side by side: one row a label, in order, or a near-square block without labels."""
    return _tile(
        [[None if i is None else clips[i, 0] for i in row] for row in _rows(clips, labels)]
    )


def filmstrip(clips: Clips, labels: Int[np.ndarray, "n"] | None = None) -> Picture:
    """One row a clip, in order of the labels; one column a frame."""
    order = np.arange(len(clips)) if labels is None else np.argsort(labels, kind="stable")
    return _tile([list(clips[i]) for i in order])


def save_samples(
    path: Address,
    samples: np.ndarray,
    labels: Int[np.ndarray, "n"],
    recipe: Mapping[str, Any],
) -> None:
    """Write samples as the suffix of ``path`` says.

    .png: a grid, or a filmstrip of clips, with its recipe; .gif: a grid that moves; .npz: arrays.
    Raises UserError for another suffix, or for latents (floating point) in anything but .npz.
    """
    suffix = storage.place(path).suffix.lower()
    if suffix in (".png", ".gif") and samples.dtype != np.uint8:
        raise UserError(LATENTS)
    if suffix == ".png":
        save_png(path, (grid if samples.shape[1] == 1 else filmstrip)(samples, labels), recipe)
    elif suffix == ".gif":
        save_gif(path, samples, labels)
    elif suffix == ".npz":
        save_npz(path, samples, labels)
    else:
        raise UserError(
            f"got the file name {str(path)!r}; expected it to end in .png, .gif or .npz"
        )


def save_png(path: Address, image: Picture, recipe: Mapping[str, Any]) -> None:
    """Write one picture with ``recipe``, anything that JSON can hold, in its metadata."""
    info = PngImagePlugin.PngInfo()
    info.add_text(RECIPE, json.dumps(dict(recipe), sort_keys=True, allow_nan=False))
    with _atomic(path) as file:
        _picture(image).save(file, format="PNG", pnginfo=info)


def read_recipe(path: Address) -> dict[str, Any]:
    """The recipe in a PNG that ``save_png`` wrote. UserError if there is no such file or recipe."""
    path = storage.place(path)
    try:
        file = path if isinstance(path, pathlib.Path) else io.BytesIO(path.read_bytes())
        with Image.open(file, formats=["PNG"]) as image:
            text = dict(getattr(image, "text", {})).get(RECIPE)
    except FileNotFoundError as error:
        raise UserError(f"no file {str(path)!r}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{str(path)!r} is not a PNG file, or is damaged ({error})") from error
    if text is None:
        raise UserError(
            f"{str(path)!r} carries no recipe: expected a PNG made by dit.sample, not edited since"
        )
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise UserError(f"the recipe in {str(path)!r} is damaged ({error})") from error
    if not isinstance(recipe, dict):
        raise UserError(f"the recipe in {str(path)!r} is {recipe!r}; expected a JSON object")
    return recipe


def save_gif(
    path: Address,
    clips: Clips,
    labels: Int[np.ndarray, "n"] | None = None,
    *,
    frames_per_second: float = 8.0,
) -> None:
    """Write clips side by side, as ``grid`` lays them out, as one GIF that loops."""
    pages = [_picture(grid(clips[:, k : k + 1], labels)) for k in range(clips.shape[1])]
    with _atomic(path) as file:
        pages[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=round(1000 / frames_per_second),
            loop=0,
        )


def save_npz(path: Address, samples: np.ndarray, labels: Int[np.ndarray, "n"]) -> None:
    """Write ``samples``, ``n h w c`` for images and ``n f h w c`` for clips, and ``labels``."""
    samples = np.asarray(samples)
    arrays = samples[:, 0] if samples.shape[1] == 1 else samples
    with _atomic(path) as file:
        np.savez(file, samples=arrays, labels=np.asarray(labels))


def plot_curve(metrics: Address, out: Address, *, key: str = "loss") -> None:
    """Plot ``key`` against ``step`` from a JSONL file: every value, and a smoothed line.

    The smoothing is a centred moving average over a fiftieth of the run. Beside it the score of the
    best constant prediction, where the file has it. A last line cut short by a crash is skipped.
    Raises UserError if there is nothing to plot.
    """
    from matplotlib.figure import Figure

    points = _read_metric(metrics, key)
    if not points:
        raise UserError(
            f"no {key!r} in {str(metrics)!r} to plot; expected lines with step and {key}"
        )
    steps, values = np.array(sorted(points)), np.array([points[s] for s in sorted(points)])
    width = max(1, len(values) // 50)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    first = (width - 1) // 2
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, color="#56B4E9", linewidth=1.2, label="as logged")
    if width > 1:
        middle = steps[first : first + len(smooth)]
        axes.plot(middle, smooth, color="#D55E00", linewidth=1.8, label=f"mean of {width}")
    for constant in list(_read_metric(metrics, f"{key}_constant").values())[-1:]:
        axes.axhline(constant, color="#555555", linestyle="--", linewidth=1, label=CONSTANT)
    if min(values) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=key.replace("_", " "))
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(frameon=False)
    with _atomic(out) as file:
        figure.savefig(file, format="png", dpi=120)


def _read_metric(path: Address, key: str) -> dict[int, float]:
    """``{step: value}`` of a metric, of the lines that have it."""
    points: dict[int, float] = {}  # a resumed run logs a step again: the later line counts
    for line in storage.place(path).read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row.get(key), float) and math.isfinite(row[key]):
                points[row["step"]] = row[key]
    return points


def _rows(clips: Clips, labels: np.ndarray | None) -> list[list[int | None]]:
    """Indices of the clips in each row of a grid, filled up with None."""
    order = list(range(len(clips)))
    rows = []
    if labels is not None:
        rows = [[i for i in order if labels[i] == c] for c in np.unique(labels)]
    width = max(map(len, rows), default=1)
    if width == 1:  # nothing to line up under a label
        order = [row[0] for row in rows] or order
        width = math.ceil(math.sqrt(len(order)))
        rows = [order[i : i + width] for i in range(0, len(order), width)]
    return [row + [None] * (width - len(row)) for row in rows]


def _tile(rows: list[list[np.ndarray | None]]) -> Picture:
    """Pictures of one size on a grey ground, enlarged; None leaves a place empty."""
    height, width, channels = next(p for row in rows for p in row if p is not None).shape
    y, x = height + GAP, width + GAP
    canvas = np.full((len(rows) * y + GAP, len(rows[0]) * x + GAP, channels), GREY, np.uint8)
    for r, row in enumerate(rows):
        for k, picture in enumerate(row):
            if picture is not None:
                canvas[r * y + GAP : (r + 1) * y, k * x + GAP : (k + 1) * x] = picture
    factor = max(1, math.ceil(CELL / height))
    return canvas.repeat(factor, axis=0).repeat(factor, axis=1)


def _picture(image: Picture) -> Image.Image:
    channels = image.shape[-1]
    if channels not in (1, 3) or image.dtype != np.uint8:
        raise UserError(
            f"cannot draw {image.dtype} pictures of {channels} channels; expected uint8 with 1 or 3: "
            "write an .npz file"
        )
    return Image.fromarray(image[..., 0] if channels == 1 else image)


@contextlib.contextmanager
def _atomic(path: Address) -> Iterator[Any]:
    """A binary file that takes the name ``path`` only when all of it is written."""
    path = storage.place(path)
    if isinstance(path, storage.BucketPath):
        whole = io.BytesIO()
        yield whole
        path.put(whole.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
