"""Small videos whose frames can be told apart: a bar that is as wide as the number of its frame."""

import fractions
import io
import struct

import av
import numpy as np
from PIL import Image

CODECS = {"mp4": "libx264", "matroska": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}
SUFFIXES = {"mp4": "mp4", "matroska": "mkv", "webm": "webm", "avi": "avi"}
HEIGHT, WIDTH, STEP = 32, 64, 4


def drawn(k, height=HEIGHT, width=WIDTH, step=STEP):
    """Frame ``k``: blue as far as ``step * (k + 1)``, red beyond."""
    x = np.full((height, width, 3), (200, 30, 30), np.uint8)
    x[:, : step * (k + 1)] = (20, 20, 220)
    return x


def numbers(clip, width=WIDTH, step=STEP):
    """Which frames a clip ``(f, h, w, 3)`` is made of."""
    blue = clip[:, clip.shape[1] // 2, :, 2] > 128
    return (np.rint(blue.sum(1) * width / clip.shape[2] / step) - 1).astype(int).tolist()


def clear(n=2):
    """A film that shows nothing: red that is transparent."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "bgra"
        for i in range(n):
            x = np.broadcast_to(np.array([200, 30, 30, 0], np.uint8), (HEIGHT, WIDTH, 4))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x), "rgba")
            frame.pts = i
            container.mux(stream.encode(frame.reformat(format="bgra")))
        container.mux(stream.encode())
    return out.getvalue()


def video(
    kind, n=12, rate=25, times=None, aspect=None, trc=None, audio=False, size=(HEIGHT, WIDTH)
):
    """The bytes of a file. ``times``: of each frame, in milliseconds."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(CODECS[kind], rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        own = stream.codec_context
        if aspect is not None:
            own.sample_aspect_ratio = fractions.Fraction(*aspect)
        if trc is not None:
            own.color_trc = trc
        own.time_base = fractions.Fraction(1, 1000 if times else rate)
        sound = silence(container) if audio else None
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(drawn(i, *size), "rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), own.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            play(container, sound)
    return out.getvalue()


def silence(container):
    return container.add_stream("aac", rate=44100)


def play(container, stream, n=20):
    for i in range(n):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 44100, i * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def sound_alone():
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        play(container, silence(container))
    return out.getvalue()


def animation(kind, n=10, durations=40, step=STEP):
    """A GIF or a WebP, which keeps colours exactly."""
    pages = [Image.fromarray(drawn(k, step=step)) for k in range(n)]
    out = io.BytesIO()
    exact = {"lossless": True} if kind == "WEBP" else {}
    pages[0].save(out, kind, save_all=True, append_images=pages[1:], duration=durations, **exact)
    return out.getvalue()


def turned(mp4):
    """The MP4 with the matrix of a quarter turn clockwise, as phones write it."""
    at = mp4.index(b"tkhd") + 4 + 40  # the matrix of a header of version 0
    one = 1 << 16
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT << 16, 0, 1 << 30)
    return mp4[:at] + matrix + mp4[at + 36 :]


def fragmented(mp4):
    """The same MP4 in pieces, each with an index of its own, as it is streamed."""
    out = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"}
    with (
        av.open(out, "w", format="mp4", options=options) as container,
        av.open(io.BytesIO(mp4)) as given,
    ):
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return out.getvalue()
