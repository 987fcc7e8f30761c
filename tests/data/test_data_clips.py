"""Which frames of a video make a clip, and which videos are refused with what reason."""

import av
import filmed
import numpy as np
import pytest

from dit.data import clips
from dit.data.clips import Taking
from dit.data.resize import fill

VIDEOS = ("mp4", "matroska", "webm", "avi")
MOVING = ("GIF", "WEBP")


def read(
    content, *args, height=filmed.HEIGHT, width=filmed.WIDTH, most=2**20, channels=3, **kwargs
):
    def fit(image):
        return fill(image, height, width)

    return clips.read(content, Taking(*args, **kwargs), fit, channels, most)


def numbers(*args, **kwargs):
    return [filmed.numbers(clip) for clip in read(*args, **kwargs)]


@pytest.fixture(scope="module")
def made():
    """Twelve frames at 25 a second, in each format."""
    videos = {kind: filmed.video(kind) for kind in VIDEOS}
    return videos | {kind: filmed.animation(kind, n=12) for kind in MOVING}


@pytest.mark.parametrize("kind", [*VIDEOS, *MOVING])
def test_frames_are_those_asked_for(made, kind):
    every = list(range(12))
    assert numbers(made[kind], 12) == [every]
    assert numbers(made[kind], 5) == [every[:5]]
    assert numbers(made[kind], 5, clips=9) == [every[:5], every[5:10]]
    assert numbers(made[kind], 4, stride=3) == [[0, 3, 6, 9]]
    assert numbers(made[kind], 2, stride=5, clips=2) == [[0, 5]]
    assert numbers(made[kind], 12, fps=25.0) == [every]
    assert numbers(made[kind], 4, fps=10.0) == [[0, 2, 5, 7]]  # shown at 0, 100, 200 and 300 ms
    assert numbers(made[kind], 5, fps=12.5) == [[0, 2, 4, 6, 8]]
    assert numbers(made[kind], 6, fps=50.0) == [[0, 0, 1, 1, 2, 2]]
    with pytest.raises(ValueError, match="has 12 frames; expected 13 or more"):
        read(made[kind], 13)
    with pytest.raises(ValueError, match="has 5 frames at 10 a second; expected 6"):
        read(made[kind], 6, fps=10.0)
    with pytest.raises(ValueError, match="has 3 frames, each 5th of its own; expected 4"):
        read(made[kind], 4, stride=5)
    with pytest.raises(ValueError, match="64 x 32 pixels; expected at most 2047"):
        read(made[kind], 1, most=2**11 - 1)


@pytest.mark.parametrize("kind", ["mp4", "matroska", "webm", *MOVING])
def test_a_varying_rate_is_resampled_or_refused(kind):
    times = [0, 40, 80, 120, 400, 440, 480, 520, 920, 960]
    if kind in MOVING:
        content = filmed.animation(kind, durations=[*np.diff(times).tolist(), 40])
    else:
        content = filmed.video(kind, n=10, times=times)
    shown = [max(k for k, t in enumerate(times) if t <= at) for at in range(0, 1000, 125)]
    assert numbers(content, 8, fps=8.0) == [shown]
    assert numbers(content, 4) == [[0, 1, 2, 3]]  # are at an even rate
    with pytest.raises(ValueError, match=r"rate varies: .* 0\.04 s .* 0\.28 s; give --fps"):
        read(content, 5)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_times_that_a_file_has_rounded_lose_no_frame(rate):
    """Matroska counts milliseconds, so that 1/24 s is 41 or 42 of them."""
    content = filmed.video("matroska", n=15, rate=rate)
    assert numbers(content, 15) == numbers(content, 15, fps=float(rate)) == [list(range(15))]
    assert numbers(content, 7, fps=rate / 2) == [list(range(0, 14, 2))]


def test_phones_films_long_pixels_grey_sound_and_transparency():
    content = filmed.video("mp4")
    up = read(filmed.turned(content), 3, height=filmed.WIDTH, width=filmed.HEIGHT)[0]
    assert (up[2, :10, :, 2] > 128).all()  # what was left is up after a quarter turn clockwise
    assert (up[2, 14:, :, 0] > 128).all()
    wide = filmed.video("mp4", aspect=(2, 1))
    found = clips.read(wide, Taking(3), np.asarray, 3, 2**20)[0]
    assert found.shape == (3, filmed.HEIGHT, 2 * filmed.WIDTH, 3)
    assert filmed.numbers(found) == [0, 1, 2]
    assert read(content, 2, channels=1)[0].shape == (2, filmed.HEIGHT, filmed.WIDTH, 1)
    assert numbers(filmed.video("mp4", audio=True), 12) == [list(range(12))]
    assert (read(filmed.clear(), 2)[0] == 255).all()


@pytest.mark.parametrize("kind", [*VIDEOS, *MOVING, "fragmented"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.8])
def test_what_is_cut_off_is_refused_though_its_first_frames_are_there(made, kind, part):
    content = filmed.fragmented(filmed.video("mp4", n=60)) if kind == "fragmented" else None
    content = content or (made[kind] if kind in MOVING else filmed.video(kind, n=60))
    with pytest.raises(ValueError, match=r"cut off|cannot be decoded|no video|no GIF"):
        read(content[: int(part * len(content))], 2)


BAD = {
    "nothing": (b"", "cannot be decoded"),
    "a page": (b"<html>not found</html>" * 99, "cannot be decoded"),
    "sound": (filmed.sound_alone, r"no video \(but audio"),
    "a picture": (lambda: filmed.animation("GIF", n=1), "has 1 frames; expected 2"),
    "HDR": (lambda: filmed.video("mp4", trc=16), "HDR"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_clip_says_why(what):
    content, says = BAD[what]
    with pytest.raises(ValueError, match=says):
        read(content() if callable(content) else content, 2)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_no_file_makes_another_one_be_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(filmed.video("mp4"))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"
    text = playlist if name.endswith("8") else "ffconcat version 1.0\nfile other.mp4\n"
    (tmp_path / name).write_text(text)
    with open(tmp_path / name, "rb") as file, av.open(file) as container:
        assert len(list(container.decode(video=0))) == 12  # where it is not forbidden
    with pytest.raises(ValueError, match="cannot be decoded"):
        clips.read(str(tmp_path / name), Taking(1), np.asarray, 3, 2**20)
