"""Pictures of every kind: black stays black and white white, or the file is refused by its name."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dit.data import pictures, resize
from dit.types import UserError

DEEP = np.array([[0, 257, 30000, 65535]] * 4, np.uint16)
GREY = np.array([[0, 1, 117, 255]] * 4, np.uint8)  # the same in 8 bits
CLEAR = 100  # what stands below transparent pixels


def read(path, channels=1, size=4):
    return pictures.read(str(path), size, size, channels)[..., 0]


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_black_grey_and_white_stay_in_every_mode_of_8_bits(mode):
    image = Image.fromarray(GREY)
    if mode in ("RGBa", "La"):
        image = image.convert(mode.upper()).convert(mode)
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode in ("RGBX", "CMYK", "YCbCr", "HSV"):
        image = image.convert("RGB").convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    want = np.where(GREY > 127, 255, 0) if mode == "1" else GREY
    for channels in (1, 3):
        found = np.asarray(pictures.flat(image, channels)).astype(int).reshape(4, 4, channels)
        found, expected = (found[:, [0, 3]], want[:, [0, 3]]) if mode == "1" else (found, want)
        assert np.abs(found - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_what_has_no_one_meaning_is_refused(mode):
    with pytest.raises(ValueError, match="do not say what is white"):
        pictures.flat(Image.new(mode, (4, 4)), 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "big.tif", "pgm"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 4 65535\n" + DEEP.astype(">u2").tobytes())
    elif suffix == "big.tif":
        Image.frombytes("I;16B", (4, 4), DEEP.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(DEEP).save(path)
    np.testing.assert_array_equal(read(path), GREY)
    np.testing.assert_array_equal(read(path, channels=3), GREY)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_file_that_does_not_say_what_is_white_is_refused_by_name(tmp_path, dtype):
    Image.fromarray(np.linspace(0, 1, 16).reshape(4, 4).astype(dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(UserError, match=r"odd\.tif.*white"):
        read(tmp_path / "odd.tif")


def transparent(mode):
    """Left half opaque black, right half transparent with a colour below; and how to save it."""
    alpha = np.array([[255, 255, 0, 0]] * 4, np.uint8)
    value = np.where(alpha > 0, 0, CLEAR).astype(np.uint8)
    if mode in ("RGBA", "LA"):
        bands = [value] * (len(mode) - 1) + [alpha]
        return Image.merge(mode, [Image.fromarray(b) for b in bands]), {}
    if mode == "RGB":
        return Image.merge("RGB", [Image.fromarray(value)] * 3), {"transparency": (CLEAR,) * 3}
    if mode == "I;16":
        return Image.fromarray(value.astype(np.uint16)), {"transparency": CLEAR}
    image = Image.fromarray(value)
    return (image.convert("P") if mode == "P" else image), {"transparency": CLEAR}


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(m, "png") for m in ("RGBA", "LA", "RGB", "L", "P", "I;16")]
    + [("RGBA", "webp"), ("RGBA", "tif"), ("P", "gif")],
)
def test_what_is_transparent_shows_a_white_ground(tmp_path, mode, suffix):
    image, options = transparent(mode)
    if suffix == "webp":
        options = {"lossless": True}
    image.save(tmp_path / f"a.{suffix}", **options)
    for channels in (1, 3):
        found = pictures.read(str(tmp_path / f"a.{suffix}"), 4, 4, channels)
        expected = np.broadcast_to(np.array([0, 0, 255, 255])[:, None], (4, 4, channels))
        np.testing.assert_array_equal(found, expected)


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert set(read(tmp_path / "a.png").ravel()) == {127}


CORNERS = np.repeat(np.repeat(np.array([[0, 90], [180, 255]], np.uint8), 8, 0), 8, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("value", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, suffix, value):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = value
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(CORNERS).save(path, exif=exif, quality=100, lossless=True)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L"))
    np.testing.assert_array_equal(read(path, size=16), upright)
    assert (np.abs(upright.astype(int) - CORNERS).max() < 9) == (value == 1)


def test_exif_that_cannot_be_read_does_not_matter(tmp_path):
    rng = random.Random(0)
    Image.fromarray(CORNERS).save(tmp_path / "plain.jpg")
    plain = read(tmp_path / "plain.jpg")
    head = b"Exif\0\0II*\0\x08\0\0\0"
    for i in range(200):
        tag = struct.pack("<HHHII", 1, pictures.ORIENTATION, rng.randrange(14), 1, 2**31 - 1)
        rubbish = rng.randbytes(rng.randrange(60))
        exif = [b"", b"Exif\0\0", head, head[:8], head + tag][i % 5] + rubbish
        Image.fromarray(CORNERS).save(tmp_path / "a.jpg", exif=exif)
        found = read(tmp_path / "a.jpg")
        assert sorted(found.ravel()) == sorted(plain.ravel()) or i % 5 == 4, exif


def encoded(suffix):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(file, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_a_damaged_file_is_named_whatever_is_wrong_with_it(tmp_path, suffix):
    whole, rng, refused = encoded(suffix), random.Random(0), []
    path = tmp_path / f"spoilt.{suffix}"
    for i in range(30):
        raw = bytearray(whole)
        if i < 10:
            del raw[len(raw) * i // 11 :]
        else:
            for _ in range(8):
                raw[rng.randrange(min(len(raw), 400))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            assert pictures.read(str(path), 4, 4, 3).shape == (4, 4, 3)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) >= 9
    assert all(f"spoilt.{suffix}" in message for message in refused)


def test_a_bomb_is_named_and_not_unpacked(tmp_path):
    raw = bytearray(encoded("png"))
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    (tmp_path / "bomb.png").write_bytes(raw)
    with pytest.raises(UserError, match=r"bomb\.png.*pixels"):
        read(tmp_path / "bomb.png")


def whole_square(image, size):
    """All of the image is scaled, and then the middle cut out."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, -1)


def test_ordinary_pictures_are_resized_as_adm_does():
    rng = np.random.default_rng(0)
    for _ in range(150):
        width, height, size = rng.integers(6, 90), rng.integers(6, 90), int(rng.integers(1, 40))
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        found = resize.fill(Image.fromarray(pixels), size, size)
        want = whole_square(Image.fromarray(pixels), size)
        np.testing.assert_array_equal(found, want, err_msg=f"{width} x {height} to {size}")


@pytest.mark.parametrize("shape", [(3, 90), (200, 7), (400, 1), (2, 333)])
def test_of_long_pictures_the_same_middle_is_left(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = Image.fromarray((127 + 120 * np.sin(x / 5 + y / 7)).astype(np.uint8))
    for size in (4, 13, 32):
        found, want = resize.fill(smooth, size, size), whole_square(smooth, size)
        assert np.abs(found.astype(int) - want).max() <= 1


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (3000, 2), (1, 1), (5000, 300)])
def test_no_picture_grows_beyond_itself_or_the_result(monkeypatch, shape):
    made, plain = [], Image.Image.resize

    def resized(self, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return plain(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resized)
    assert resize.fill(Image.new("L", shape, 7), 256, 256).shape == (256, 256, 1)
    assert max(made) <= max(shape[0] * shape[1], 256 * 256)
