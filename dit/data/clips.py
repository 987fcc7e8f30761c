"""Clips from video files and animations, as frames of one shape at even distances in time.

MP4, MOV, MKV, WebM and AVI are decoded by FFmpeg (``av``, the extra ``video``), GIF and WebP by Pillow.
As in ``data.pictures``: frames are turned upright, in 8 bits, grey or RGB, and what is transparent shows
a white ground. Pixels that are not square are made so.

Frame ``k`` of a clip is, with ``fps``, the one that is shown ``k / fps`` seconds after the first, by the
timestamps, whatever the rate of the file; without, each ``stride``-th one that the file has, at an even
rate. Clips follow one another from the beginning of the file. Each file is read to its end, though no
further decoded than is asked for: what is cut off is found. Whatever is wrong, ValueError says it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from dit.data import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
ANIMATIONS = (".gif", ".webp")
SUFFIXES = (*VIDEOS, *ANIMATIONS)
# None that reads further files, as playlists do; and no protocol to open them with.
SAFE = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": ""}
HDR = (16, 18)  # the transfers PQ and HLG
UNEVEN = 0.25  # of a distance in time, by which another one may differ
MISSING = 0.25  # seconds that a file may end before its header says
TICK = 1e-3  # seconds to which Matroska rounds; where a coarser unit is a frame, none is rounded
FASTEST, USUAL = 0.01, 0.1  # seconds: what claims to be no longer is shown as long as usual


@dataclasses.dataclass(frozen=True)
class Taking:
    """Up to ``clips`` clips of ``frames`` frames from a file. ``fps``: None for those of the file."""

    frames: int
    fps: float | None = None
    stride: int = 1
    clips: int = 1


@dataclasses.dataclass(frozen=True)
class Frame:
    """From ``start``, for ``length`` seconds (None: until the next); times are rounded to ``tick``."""

    start: float
    length: float | None
    tick: float
    picture: Callable[[], Image]


Fit = Callable[["Image"], UInt8[np.ndarray, "h w c"]]


def read(
    file: str | bytes, taking: Taking, fit: Fit, channels: int, most_pixels: int
) -> list[UInt8[np.ndarray, "f h w c"]]:
    """The clips of a file, of which ``fit`` makes the frames alike. ValueError for one without any."""
    content = io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")  # noqa: SIM115
    with content:
        head = content.read(12)
        content.seek(0)
        animated = head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
        opened = animation if animated else video
        with opened(content, channels, most_pixels) as found:
            made = list(itertools.islice(clips(found.frames(), taking, fit), taking.clips))
            found.finish()
    return made


def clips(
    frames: Iterator[Frame], taking: Taking, fit: Fit
) -> Iterator[UInt8[np.ndarray, "f h w c"]]:
    """One clip after the other. Raises ValueError where not even the first one is whole."""
    even = evenly(frames) if taking.fps is None else shown_at(frames, taking.fps)
    even = itertools.islice(even, 0, None, taking.stride)
    for number in itertools.count():
        made: list[np.ndarray] = []
        last = None
        for frame in itertools.islice(even, taking.frames):
            made.append(made[-1] if frame is last else fit(frame.picture()))
            last = frame
        if len({x.shape for x in made}) > 1:
            raise ValueError("its frames change their size")
        if len(made) < taking.frames:
            if number == 0:
                rate = f" at {taking.fps:g} a second" if taking.fps else ""
                every = f", each {taking.stride}th of its own" if taking.stride > 1 else ""
                raise ValueError(
                    f"it has {len(made)} frames{rate}{every}; expected {taking.frames} or more"
                )
            return
        yield np.stack(made)


def evenly(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames as they are; ValueError if they do not come at an even rate."""
    before = distance = None
    for frame in frames:
        if before is not None:
            now = frame.start - before
            distance = now if distance is None else distance
            if abs(now - distance) > UNEVEN * distance + frame.tick:
                raise ValueError(
                    f"its rate varies: a frame comes {distance:.3g} s after the one before it and "
                    f"another {now:.3g} s; give --fps"
                )
        before = frame.start
        yield frame


def shown_at(frames: Iterator[Frame], fps: float) -> Iterator[Frame]:
    """The frame that is shown at each multiple of ``1 / fps`` seconds after the first one's start.

    A time that the file has rounded is as good as the one meant, so half a tick does not count.
    """
    shown, first, k = None, 0.0, 0
    apart = None
    for frame in frames:
        if shown is None:
            first = frame.start
        else:
            apart = frame.start - shown.start
            while first + k / fps < frame.start - frame.tick / 2 - 1e-9:
                yield shown
                k += 1
        shown = frame
    if shown is None:
        return
    length = shown.length or apart or 0.0
    while first + k / fps < shown.start + length - shown.tick / 2 - 1e-9 or k == 0:
        yield shown
        k += 1


@contextlib.contextmanager
def video(file: Any, channels: int, most_pixels: int) -> Iterator[Video]:
    """A video that FFmpeg decodes; whatever it says against it becomes a ValueError."""
    import av

    try:
        with av.open(file, options=SAFE) as container:
            yield Video(container, channels, most_pixels)
    except (av.error.FFmpegError, OSError) as error:  # whose message may say where in memory it is
        raise ValueError(f"it cannot be decoded: {error.strerror}") from error


class Video:
    """The first video in an opened file, decoded by one thread as far as frames are asked for."""

    def __init__(self, container: Any, channels: int, most_pixels: int):
        self._stream = container.streams.best("video")
        if self._stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise ValueError(f"it holds no video (but {kinds})")
        if self._stream.codec_context is None:
            raise ValueError("its video is of a kind that cannot be decoded")
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"max_pixels": str(most_pixels)}
        check_size(self._stream.width, self._stream.height, most_pixels)
        self._container, self._channels, self._most = container, channels, most_pixels
        self._wide = self._stream.sample_aspect_ratio or 1
        self._packets, self._end = container.demux(), 0.0

    def frames(self) -> Iterator[Frame]:
        """In the order in which they are shown."""
        before = None
        for packet in self._packets:
            self._look(packet)
            for frame in packet.decode() if packet.stream is self._stream else ():
                self._check(frame, before)
                before = frame.time
                length = float(frame.duration * frame.time_base) if frame.duration else None
                picture = functools.partial(upright, frame, self._wide, self._channels)
                yield Frame(frame.time, length, min(TICK, float(frame.time_base)), picture)
        self.finish()

    def finish(self) -> None:
        """Read what is left, without decoding; ValueError where it ends too early."""
        for packet in self._packets:
            self._look(packet)
        claimed = (self._container.duration or 0) / 1e6
        end = self._end - (self._container.start_time or 0) / 1e6
        if end < claimed - MISSING:
            raise ValueError(f"it is cut off: it ends after {end:.3g} of {claimed:.3g} s")

    def _look(self, packet: Any) -> None:
        if packet.is_corrupt:
            raise ValueError("it is damaged, or cut off")
        if packet.pts is not None:
            ends = (packet.pts + (packet.duration or 0)) * packet.time_base
            self._end = max(self._end, float(ends))

    def _check(self, frame: Any, before: float | None) -> None:
        check_size(frame.width, frame.height, self._most)
        if frame.is_corrupt:
            raise ValueError("a frame of it is damaged")
        if frame.color_trc in HDR:
            raise ValueError("its colours are HDR (PQ or HLG); expected those of 8 bits")
        if frame.time is None:
            raise ValueError("its frames have no times")
        if before is not None and frame.time <= before:
            raise ValueError(f"its times run backwards, from {before:.3g} to {frame.time:.3g} s")


def upright(frame: Any, wide: Any, channels: int) -> Image:
    """A decoded frame in 8 bits, turned, with square pixels. ``wide``: how wide they were, by height."""
    from PIL import Image

    kind = "rgba" if any(part.is_alpha for part in frame.format.components) else "rgb24"
    image = pictures.flat(Image.fromarray(frame.to_ndarray(format=kind)), channels)
    if wide != 1:
        image = image.resize((max(1, round(image.width * wide)), image.height))
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
    return image


@contextlib.contextmanager
def animation(file: Any, channels: int, most_pixels: int) -> Iterator[Animation]:
    """A GIF or a WebP, which may be one picture alone."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=("GIF", "WEBP")) as image:
            check_size(*image.size, most_pixels)
            if image.format == "GIF" and not ends_well(file):
                raise ValueError("it is cut off")
            yield Animation(image, channels)
    except UnidentifiedImageError as error:  # which says where in memory it is
        raise ValueError("it is no GIF or WebP") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error


@dataclasses.dataclass(frozen=True)
class Animation:
    """The pages of an opened picture, decoded as far as they are asked for."""

    image: Image
    channels: int

    def frames(self) -> Iterator[Frame]:
        """In order; the times are those of the file."""
        start = 0.0
        for page in itertools.count():
            try:
                self.image.seek(page)
            except EOFError:
                return
            self.image.load()
            length = self.image.info.get("duration", 0) / 1000
            length = USUAL if length <= FASTEST else length
            picture = functools.partial(pictures.flat, self.image.copy(), self.channels)
            yield Frame(start, length, 0.0, picture)
            start += length

    def finish(self) -> None:
        """Nothing is left that tells anything."""


def ends_well(file: Any) -> bool:
    """Whether a GIF has the byte that ends it. The place in the file does not change."""
    place = file.tell()
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 1024))
    tail = file.read()
    file.seek(place)
    return tail.rstrip(b"\0").endswith(b";")


def check_size(width: int, height: int, most_pixels: int) -> None:
    """Raise ValueError for frames that are too large, or nothing."""
    if not 0 < width * height <= most_pixels:
        raise ValueError(f"{width} x {height} pixels; expected at most {most_pixels}")
