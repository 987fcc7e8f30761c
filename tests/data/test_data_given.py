"""Files that samples are to go on from: their frames as they are, and why those of others are not."""

import io

import filmed
import numpy as np
import pytest
from PIL import Image

from dit.given import LONGEST, read_files
from dit.types import UserError

SHAPE = (3, filmed.HEIGHT, filmed.WIDTH, 3)

LONG = filmed.animation("WEBP", n=3 * LONGEST + 1, step=1)


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return str(folder / name)


def picture(mode="RGB", size=(filmed.WIDTH, filmed.HEIGHT), colour=(10, 20, 30)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(out, "PNG")
    return out.getvalue()


def test_frames_of_videos_and_pictures_are_taken_as_they_are(tmp_path):
    mp4 = written(tmp_path, "x.mp4", filmed.video("mp4", n=6, rate=24))
    webp = written(tmp_path, "x.webp", filmed.animation("WEBP", n=6))
    found = read_files({"video": webp}, SHAPE, None)
    np.testing.assert_array_equal(found["video"], [filmed.drawn(k) for k in range(6)])
    assert filmed.numbers(read_files({"video": mp4}, SHAPE, None)["video"]) == [0, 1, 2, 3, 4, 5]
    assert filmed.numbers(read_files({"video": mp4}, SHAPE, 12.0)["video"]) == [0, 2, 4]
    paths = {"image": written(tmp_path, "0.png", picture()), "last": None, "video": None}
    paths["last"] = written(tmp_path, "1.png", picture("L", colour=(70, 70, 70)))
    found = read_files(paths, SHAPE, None)
    assert [*found] == ["image", "last"]
    assert found["image"].shape == (1, *SHAPE[1:])
    assert (found["image"] == (10, 20, 30)).all()
    assert (found["last"] == 70).all()


def test_files_that_do_not_serve_are_named_in_one_line(tmp_path):
    whole = filmed.animation("WEBP", n=6)
    mp4 = filmed.video("mp4", n=6)
    for option, name, content, message in (
        ("image", "small.png", picture(size=(9, 6)), "is of 6x9 pixels .* or give --size=6x9"),
        ("image", "empty.png", b"", "cannot read the picture"),
        ("image", "cut.png", picture()[:60], "cannot read the picture"),
        ("last", "sound.png", filmed.sound_alone(), "cannot read the picture"),
        ("video", "cut.webp", whole[: len(whole) // 2], "cannot take a clip from"),
        ("video", "cut.mp4", mp4[: len(mp4) // 2], "cannot take a clip from"),
        ("video", "empty.mp4", b"", "cannot take a clip from"),
        ("video", "picture.mp4", picture(), "cannot take a clip from"),
        ("video", "sound.mp4", filmed.sound_alone(), r"it holds no video \(but audio\)"),
        ("video", "uneven.mp4", filmed.video("mp4", n=4, times=[0, 40, 400, 440]), "give --fps"),
        ("video", "large.mp4", filmed.video("mp4", n=3, size=(64, 64)), "is of 64x64 pixels"),
        ("video", "long.webp", LONG, "has more than 48 frames"),
    ):
        path = written(tmp_path, name, content)
        with pytest.raises(UserError, match=message) as caught:
            read_files({option: path}, SHAPE, None)
        assert repr(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for option in ("image", "video"):
        with pytest.raises(UserError, match=r"none\.xyz"):
            read_files({option: str(tmp_path / "none.xyz")}, SHAPE, None)
    uneven = str(
        tmp_path / "uneven.mp4"
    )  # 40, 360 and 40 ms: at 25 a second, frame 1 for 9 of them
    assert filmed.numbers(read_files({"video": uneven}, SHAPE, 25.0)["video"])[:3] == [0, 1, 1]
