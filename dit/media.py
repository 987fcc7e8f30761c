"""Samples and training as files: PNG grids and filmstrips, what moves, .npz arrays, loss curves.

Samples are uint8 ``(n, f, h, w, c)``; an image is a clip of one frame. They are laid out by ``tiles``,
their captions beneath them. A PNG carries its recipe, the JSON of how it was made, in a text chunk.
Files are written under a temporary name and then renamed, so that nobody ever reads half of one.
"""

from __future__ import annotations

import contextlib
import fractions
import importlib.util
import io
import json
import math
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, PngImagePlugin

from dit import storage
from dit.tiles import GREY, Clips, Picture, enlargement, rows_of, strips_of, tile
from dit.types import UserError

RECIPE = "dit-recipe"  # keyword of the PNG text chunk
MOVING = (".gif", ".webp", ".mp4")
SUFFIXES = (".png", *MOVING, ".npz")
FPS = 8.0  # frames a second, where nothing is said of them
QUALITY = "14"  # of MP4: the constant rate factor of x264, of which 18 is called visually lossless
LATENTS = (
    "these samples are latents and not pixels, so they cannot be drawn: write them with an --out "
    "ending in .npz and decode them with the autoencoder they came from"
)
CONSTANT = "best constant prediction"
Address = str | os.PathLike | storage.Place


def to_uint8(decoded: Float[Array, "*shape"], codec: Any) -> UInt8[Array, "*shape"]:
    """Colours in [-1, 1], from ``codec.decode``, as whole numbers 0..255, rounded to nearest.

    Raises UserError for latents, which are not colours (``codec.pixels`` is false).
    """
    if not codec.pixels:
        raise UserError(LATENTS)
    return jnp.rint(127.5 * (jnp.clip(decoded, -1, 1) + 1)).astype(jnp.uint8)


def grid(
    clips: Clips, labels: Int[np.ndarray, " n"] | None = None, captions: Sequence[str] = ()
) -> Picture:
    """First frames side by side: one row per label, in order, or a near-square block without labels.

    Rows are wrapped where the picture would be more than four times as wide as high.
    """
    return tile(clips[:, :1], rows_of(len(clips), labels), captions)


def filmstrip(
    clips: Clips, labels: Int[np.ndarray, " n"] | None = None, captions: Sequence[str] = ()
) -> Picture:
    """One row per clip, ordered by label, one column per frame. Many short clips share a row."""
    return tile(clips, strips_of(clips.shape[:2], labels), captions)


def check_place(path: Address, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Raise UserError unless a file can be written at ``path``, under one of these suffixes.

    Missing parent directories are made. Whether a bucket can be written to is not checked.
    """
    path = storage.place(path)
    if path.suffix.lower() not in suffixes:
        *others, last = suffixes
        expected = f"{', '.join(others)} or {last}" if others else last
        raise UserError(f"got the file name {str(path)!r}; expected it to end in {expected}")
    if isinstance(path, storage.BucketPath):
        return
    try:
        if path.is_dir():
            raise UserError(
                f"{str(path)!r} is a directory; expected the name of a file, such as "
                f"{str(path / ('samples' + suffixes[0]))!r}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path)
        os.close(handle)
        os.unlink(temporary)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {str(path)!r} ({error}); give another --out") from error


def check_drawable(
    path: Address,
    shape: tuple[int, ...],
    labels: Int[np.ndarray, " n"] | None,
    pixels: bool,
    captions: Sequence[str] = (),
) -> None:
    """Raise UserError unless ``save_samples`` can write samples of ``shape``, ``(n, f, h, w, c)``.

    ``pixels``: whether they are pixels rather than latents.
    """
    suffix = storage.place(path).suffix.lower()
    if suffix == ".npz":
        return
    if not pixels:
        raise UserError(LATENTS)
    n, frames, *picture = shape
    _check_channels(picture[-1], "uint8")
    if suffix in MOVING:
        if suffix == ".mp4" and importlib.util.find_spec("av") is None:
            raise UserError("MP4 needs the package av, which is not installed: pip install av")
        enlargement(rows_of(n, labels), picture, captions, pages=frames)
    else:
        rows = rows_of(n, labels) if frames == 1 else strips_of((n, frames), labels)
        enlargement(rows, picture, captions)


def save_samples(
    path: Address,
    samples: np.ndarray,
    labels: Int[np.ndarray, " n"] | None,
    recipe: Mapping[str, Any],
    captions: Sequence[str] = (),
    fps: float = FPS,
) -> None:
    """Write samples as the suffix of ``path`` says.

    .png: a grid, or a filmstrip of clips, with its recipe; .gif, .webp, .mp4: a grid that moves, at
    ``fps``; .npz: arrays. ``captions``: of each sample, if any. Raises UserError for another suffix, or
    for latents (floating point) in anything but .npz.
    """
    suffix = storage.place(path).suffix.lower()
    if suffix in (".png", *MOVING) and samples.dtype != np.uint8:
        raise UserError(LATENTS)
    if suffix == ".png":
        lay_out = grid if samples.shape[1] == 1 else filmstrip
        save_png(path, lay_out(samples, labels, captions), recipe)
    elif suffix in MOVING:
        save_moving(path, samples, labels, captions, fps=fps)
    elif suffix == ".npz":
        with npz_writer(path, len(samples), labels, captions) as write:
            write(samples)
    else:
        check_place(path)


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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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


def save_moving(
    path: Address,
    clips: Clips,
    labels: Int[np.ndarray, " n"] | None = None,
    captions: Sequence[str] = (),
    *,
    fps: float = FPS,
) -> None:
    """Write clips side by side, as ``grid`` lays them out: a GIF or WebP that loops, or an MP4.

    WebP is lossless, GIF has 256 colours. MP4 is H.264, whose sides are even: odd ones get a line of
    the ground's grey more.
    """
    rows, count = rows_of(len(clips), labels), clips.shape[1]
    each = (clips[:, k : k + 1] for k in range(count))
    pages = [_picture(tile(clip, rows, captions, pages=count)) for clip in each]
    suffix = storage.place(path).suffix.lower()
    with _atomic(path) as file:
        if suffix == ".mp4":
            _encode(file, pages, fps)
            return
        how = {".gif": {"format": "GIF"}, ".webp": {"format": "WEBP", "lossless": True}}[suffix]
        looped = {"duration": round(1000 / fps), "loop": 0}
        pages[0].save(file, save_all=True, append_images=pages[1:], **looped, **how)


def _encode(file: Any, pages: Sequence[Image.Image], fps: float) -> None:
    """Write pictures of one size as a video."""
    import av

    width, height = (side + side % 2 for side in pages[0].size)
    with av.open(file, "w", format="mp4") as container:
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": QUALITY})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for page in pages:
            whole = Image.new("RGB", (width, height), (GREY,) * 3)
            whole.paste(page)
            for packet in stream.encode(av.VideoFrame.from_image(whole)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@contextlib.contextmanager
def npz_writer(
    path: Address,
    count: int,
    labels: Int[np.ndarray, " n"] | None,
    captions: Sequence[str] = (),
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield ``write(samples)``, which appends a batch to an .npz file of ``count`` samples in all.

    The file holds ``samples``, ``n h w c`` for images and ``n f h w c`` for clips, and ``labels`` and
    ``captions`` where there are any. It gets its name once all are written. Raises ValueError if their
    number differs.
    """
    with _atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        written = 0
        with archive.open("samples.npy", "w", force_zip64=True) as member:

            def write(samples: np.ndarray) -> None:
                nonlocal written
                arrays = samples[:, 0] if samples.shape[1] == 1 else samples
                if written == 0:
                    about = {"descr": np.lib.format.dtype_to_descr(arrays.dtype)}
                    about |= {"fortran_order": False, "shape": (count, *arrays.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, about)
                written += len(arrays)
                member.write(np.ascontiguousarray(arrays).data)

            yield write
        if written != count:
            raise ValueError(f"got {written} samples for {str(path)!r}; expected {count}")
        for name, column in (("labels", labels), ("captions", captions or None)):
            if column is not None:
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asarray(column), allow_pickle=False)


def save_arrays(path: Address, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to an .npz file."""
    with _atomic(path) as file:
        np.savez(file, **arrays)


def plot_curve(metrics: Address, out: Address, *, key: str = "loss") -> None:
    """Plot ``key`` against ``step`` from a JSONL file: every value, and a smoothed line.

    The smoothing is a centred moving average over a fiftieth of the run. The score of the best
    constant prediction is drawn too, where the file has it. A line cut short by a crash is skipped.
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


def plot_scores(metrics: Address, out: Address, *, prefix: str) -> None:
    """Plot every metric of a JSONL file whose name begins with ``prefix``: a panel each.

    A bar is twice the standard error, which is the metric of that name and ``_error``. Without such
    metrics nothing is written.
    """
    from matplotlib.figure import Figure

    every = dict.fromkeys(k for row in _rows(metrics) for k in row if k.startswith(prefix))
    names = [name for name in every if f"{name}_error" in every]
    if not names:
        return
    wide = min(3, len(names))
    high = -(-len(names) // wide)
    figure = Figure(figsize=(3.6 * wide, 2.9 * high), layout="constrained")
    panels = figure.subplots(high, wide, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        points, errors = (_read_metric(metrics, key) for key in (name, f"{name}_error"))
        steps = sorted(points)
        bars = [2 * errors.get(step, math.nan) for step in steps]
        axes.errorbar(steps, [points[step] for step in steps], bars, color="#0072B2", capsize=2)
        axes.set(xlabel="step", title=name.removeprefix(prefix))
        axes.grid(visible=True, linewidth=0.3)
    for axes in [*panels]:
        axes.remove()
    with _atomic(out) as file:
        figure.savefig(file, format="png", dpi=120)


def _read_metric(path: Address, key: str) -> dict[int, float]:
    """``{step: value}`` of a metric, from the lines that have it."""
    points: dict[int, float] = {}  # a resumed run logs a step again: the later line counts
    for row in _rows(path):
        if isinstance(row.get(key), float) and math.isfinite(row[key]):
            points[row["step"]] = row[key]
    return points


def _rows(path: Address) -> Iterator[dict[str, Any]]:
    for line in storage.place(path).read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _picture(image: Picture) -> Image.Image:
    _check_channels(image.shape[-1], str(image.dtype))
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _check_channels(channels: int, dtype: str) -> None:
    if channels not in (1, 3) or dtype != "uint8":
        raise UserError(
            f"cannot draw {dtype} pictures of {channels} channels; expected uint8 with 1 or 3: write an "
            ".npz file"
        )


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
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _temporary(path: pathlib.Path) -> tuple[int, str]:
    """A new file beside ``path``: what takes its name later must lie on the same file system."""
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
