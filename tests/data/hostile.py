"""Files that nobody should believe, and odd ones that are fine: what is to come of each.

``PICTURES``: file name -> (bytes, None if it is to be converted, or a part of the reason why not).
"""

import gzip
import io
import itertools
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image


def saved(image, kind, **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def npy(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def png_claiming(width, height):
    """A PNG of these sides with the pixels of one row, if that."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1 + 3 * 8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


def noise(seed, height=9, width=11, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(noise(1)), "JPEG", exif=exif)


RGB = Image.fromarray(noise(0))
JPEG = saved(Image.fromarray(noise(2, 64, 64)), "JPEG")
HUGE = npy(noise(3)).replace(b"(9, 11, 3)", b"(99999999, 11, 3)")

PICTURES = {
    "plain.png": (saved(RGB, "PNG"), None),
    "deep.png": (saved(Image.fromarray(np.full((5, 6), 65535, np.uint16)), "PNG"), None),
    "inks.jpg": (saved(RGB.convert("CMYK"), "JPEG"), None),
    "palette.png": (saved(RGB.convert("P"), "PNG"), None),
    "clear.png": (saved(RGB.convert("RGBA"), "PNG"), None),
    "grey.jpg": (saved(RGB.convert("L"), "JPEG"), None),
    "moves.gif": (
        saved(RGB, "GIF", save_all=True, append_images=[Image.fromarray(noise(4))]),
        None,
    ),
    "turned.jpg": (turned(), None),
    "long.png": (saved(Image.new("RGB", (20000, 1), "red"), "PNG"), None),
    "one.png": (saved(Image.new("RGB", (1, 1), "red"), "PNG"), None),
    "array.npy": (npy(noise(5)), None),
    "deep.npy": (npy(np.full((5, 6, 1), 65535, np.uint16)), None),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "empty.jpg": (b"", "no picture of a kind"),
    "text.jpg": (b"<html>not found</html>", "no picture of a kind"),
    "square.png": (png_claiming(100_000, 100_000), "decompression bomb"),
    "large.png": (png_claiming(9000, 9000), "pixels; expected at most"),
    "lies.png": (png_claiming(4000, 4000), "truncated"),
    "real.tif": (saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating point"),
    "nan.npy": (npy(np.full((4, 4, 3), np.nan, np.float32)), "NaN"),
    "odd.npy": (npy(np.zeros((4, 4, 3), np.float64)), "float64"),
    "five.npy": (npy(np.zeros((4, 4, 5), np.uint8)), "(4, 4, 5)"),
    "none.npy": (npy(np.zeros((0, 4, 3), np.uint8)), "(0, 4, 3)"),
    "claims.npy": (HUGE, "header says"),
    "code.npy": (npy(np.array([{}], object)), "header says"),
    "evil.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run", None),  # no picture by its suffix
}


def tar(members, mode="w", **kwargs):
    """A tar of ``members``: (name, content) or a TarInfo as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **kwargs) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                file.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def link(name, to, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def header(name, size, kind=tarfile.REGTYPE):
    """The header alone of a member that claims a size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


PNG = PICTURES["plain.png"][0]
SEEDS = itertools.count(100)


def png():
    """Another picture each time: copies have one id, and go into one split."""
    return saved(Image.fromarray(noise(next(SEEDS))), "PNG")


GOOD = [("a.png", png()), ("a.txt", b"first\n\nsecond\r\n"), ("a.cls", b"3")]
EXAMPLES = {  # name of an example -> (its members, None or the reason)
    "a": (GOOD, None),
    "in/b": ([("in/b.jpg", JPEG), ("in/b.json", b'{"caption": "b", "label": 1}')], None),
    "c.d": ([("c.left.png", png()), ("c.txt", b"c"), ("c.cls", b" 2 ")], None),
    "both": ([("both.png", png()), ("both.json", b'{"captions": ["x", "y"], "label": "0"}')], None),
    "latin": ([("latin.png", png()), ("latin.txt", b"caf\xe9"), ("latin.cls", b"1")], "not UTF-8"),
    "half": (
        [("half.png", png()), ("half.json", b'{"caption": "\\ud800", "label": 1}')],
        "not Unicode",
    ),
    "nojson": ([("nojson.png", png()), ("nojson.json", b"{")], "JSON cannot be read"),
    "list": ([("list.png", png()), ("list.json", b"[]")], "expected an object"),
    "deep": ([("deep.png", png()), ("deep.json", b"[" * 10**5)], "JSON cannot be read"),
    "number": ([("number.png", png()), ("number.json", b'{"caption": 3}')], "expected a text"),
    "cat": ([("cat.png", png()), ("cat.txt", b"cat"), ("cat.cls", b"cat")], "whole number"),
    "minus": ([("minus.png", png()), ("minus.txt", b"m"), ("minus.cls", b"-1")], "whole number"),
    "nolabel": ([("nolabel.png", png()), ("nolabel.txt", b"n")], "no label"),
    "notext": ([("notext.png", png()), ("notext.txt", b" \n"), ("notext.cls", b"1")], "no caption"),
    "alone": ([("alone.txt", b"no picture"), ("alone.cls", b"1")], "no picture"),
    "page": ([("page.txt", b"x" * (2**20 + 1)), ("page.png", png())], "expected at most"),
    "spoilt": (
        [("spoilt.jpg", JPEG[: len(JPEG) // 2]), ("spoilt.txt", b"s"), ("spoilt.cls", b"1")],
        "truncated",
    ),
}
MEMBERS = {  # of no use by themselves
    "../../out.png": (("../../out.png", png()), "leads out"),
    "/etc/out.png": (("/etc/out.png", png()), "leads out"),
    "link.png": (link("link.png", "/etc/passwd"), "a link"),
    "hard.png": (link("hard.png", "a.png", tarfile.LNKTYPE), "a link"),
    "pipe.png": (link("pipe.png", "", tarfile.FIFOTYPE), "a device"),
    "(no name)": (("", png()), "no name"),
}
WHOLE = tar(
    [m for members, _ in EXAMPLES.values() for m in members] + [m for m, _ in MEMBERS.values()]
)
ONE = tar(GOOD)
TARS = {  # file -> (bytes, part of the reason why the rest of it cannot be read, or None)
    "whole.tar": (WHOLE, None),
    "cut.tar": (ONE[:700], "unexpected end"),
    "text.tar": (b"<html>" * 500, ""),
    "empty.tar": (b"", ""),
    "cut.tar.gz": (gzip.compress(noise(6, 99, 99).tobytes() + ONE)[:9000], ""),
    "path.tar": (header("x", 2**33, tarfile.XHDTYPE) + bytes(2048), "claims 8589934592 bytes"),
    "name.tar.gz": (
        gzip.compress(header("x", 2**33, b"L") + bytes(2048)),
        "claims 8589934592 bytes",
    ),
    "bomb.tar.gz": (gzip.compress(header("z.png", 2**36) + bytes(2**20)), "not decompressed"),
    "good.tar.xz": (tar([("z/" + n, c) for n, c in GOOD], "w:xz"), None),
}
