"""Any number of spoilt, odd and hostile inputs from a seed, with good ones among them.

``write(root, count, seed)`` makes ``count`` of them in four directories, one for each kind of input.
Good examples hold noise that no other has, and a caption that says which one it is.
"""

import dataclasses
import functools
import io
import struct
import zlib

import filmed
import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 16
SHARES = {"pictures": 0.6, "tars": 0.2, "parquet": 0.1, "videos": 0.1}
SAVED = {  # suffix -> how Pillow writes it
    **{".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"},
    **{".tif": "TIFF", ".jp2": "JPEG2000", ".ppm": "PPM", ".tga": "TGA", ".pcx": "PCX"},
}
TEXTS = [
    b"",
    b"\xff\xfe\x00",
    b"caf\xe9 bad",
    b"\x00" * 9,
    b"bad\n" * 999,
    "bad \U0001f642".encode(),
]


def noise(rng, height=SIDE, width=SIDE):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def good(rng):
    x = noise(rng)
    return x, hostile.saved(Image.fromarray(x), "PNG")


def valid(rng, suffix):
    """A picture, or an array, that is as it should be."""
    x = noise(rng, *map(int, rng.integers(1, 40, 2)))
    if suffix == ".npy":
        return hostile.npy(x)
    return hostile.saved(Image.fromarray(x), SAVED[suffix])


def flipped(rng, content):
    """A few bits changed."""
    x = np.frombuffer(content, np.uint8).copy()
    if len(x):
        at = rng.integers(0, len(x), int(rng.integers(1, 20)))
        x[at] ^= np.uint8(1) << rng.integers(0, 8, len(at)).astype(np.uint8)
    return x.tobytes()


def cut(rng, content):
    return content[: int(rng.integers(0, len(content) + 1))]


def overwritten(rng, content):
    """A piece in the middle replaced: by noise, zeros or ones."""
    start, end = sorted(map(int, rng.integers(0, len(content) + 1, 2)))
    piece = [rng.bytes(end - start), bytes(end - start), b"\xff" * (end - start)]
    return content[:start] + piece[int(rng.integers(3))] + content[end:]


def grown(rng, content):
    return content + rng.bytes(int(rng.integers(1, 3000)))


def doubled(rng, content):
    start, end = sorted(map(int, rng.integers(0, len(content) + 1, 2)))
    return content[:end] + content[start:]


SPOILT = (flipped, cut, overwritten, grown, doubled)


def spoilt(rng, content):
    return SPOILT[int(rng.integers(len(SPOILT)))](rng, content)


def flat_png(width, height, bits=8, kind=2):
    """A PNG of one colour, which is tiny whatever its sides."""
    row = 1 + -(-width * bits * {0: 1, 2: 3, 6: 4}[kind] // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()

    def chunk(name, content):
        head = struct.pack(">I", len(content)) + name + content
        return head + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def bombs():
    """Small files of very many pixels, some just within what is allowed."""
    return (
        flat_png(100_000, 700),
        flat_png(8000, 8000, kind=6),
        flat_png(60_000, 60_000, bits=1, kind=0),
        hostile.saved(Image.new("L", (16_000, 16_000)), "GIF"),
        hostile.saved(Image.new("1", (30_000, 30_000)), "TIFF", compression="group4"),
        hostile.npy(np.zeros((1, 1, 3), np.uint8)).replace(b"(1, 1, 3)", b"(90000, 90000, 3)"),
        zlib.compress(bytes(2**26)),
    )


def odd(rng, suffix):
    """One of a rarer kind: 16 bits, CMYK, a palette, transparent, animated, turned, with bad EXIF."""
    image = Image.fromarray(noise(rng))
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 300))
    made = (
        lambda: hostile.saved(Image.fromarray(rng.integers(0, 2**16, (9, 9), np.uint16)), "PNG"),
        lambda: hostile.saved(image.convert("CMYK"), "JPEG", quality=int(rng.integers(1, 100))),
        lambda: hostile.saved(image.convert("P"), "PNG", transparency=int(rng.integers(0, 256))),
        lambda: hostile.saved(image.convert("LA"), "PNG"),
        lambda: hostile.saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        lambda: hostile.saved(image, "JPEG", exif=exif),
        lambda: hostile.saved(image, "JPEG", exif=b"Exif\0\0" + rng.bytes(40)),
        lambda: hostile.saved(image, "JPEG", progressive=True),
        lambda: hostile.saved(image.convert("F"), "TIFF"),
        lambda: hostile.npy(rng.normal(size=(4, 4, 3)).astype(np.float32) / 0),
        lambda: hostile.png_claiming(*(int(2 ** rng.uniform(0, 31)) for _ in "wh")),
        lambda: spoilt(rng, bombs()[int(rng.integers(len(bombs())))]),
        lambda: rng.bytes(int(rng.integers(0, 9000))),
        lambda: b"",
    )
    with np.errstate(all="ignore"):
        return made[int(rng.integers(len(made)))]()


def picture(rng):
    """``(suffix, content)`` of one that need not be good."""
    suffix = [*SAVED, ".npy"][int(rng.integers(len(SAVED) + 1))]
    kind = rng.random()
    if kind < 0.6:
        return suffix, spoilt(rng, valid(rng, suffix))
    if kind < 0.7:
        return suffix, valid(rng, ".png" if rng.random() < 0.5 else ".jpg")  # of another name
    return suffix, odd(rng, suffix)


@dataclasses.dataclass
class Made:
    """``good``: caption -> pixels. ``count``: of all inputs."""

    good: dict = dataclasses.field(default_factory=dict)
    count: int = 0

    def caption(self, x):
        """That of one more good example."""
        text = f"good {len(self.good)}"
        self.good[text] = x
        return text.encode()


def pictures(rng, root, count):
    made = Made(count=count)
    for i in range(count):
        if rng.random() < 0.3:
            x, content = good(rng)
            suffix, text = ".png", made.caption(x)
        else:
            suffix, content = picture(rng)
            text = TEXTS[int(rng.integers(len(TEXTS)))] if rng.random() < 0.2 else b"bad"
        (root / f"{i:06}{suffix}").write_bytes(content)
        if rng.random() < 0.97 or suffix == ".png":
            (root / f"{i:06}.txt").write_bytes(text)
    for i, content in enumerate(bombs()):
        (root / f"bomb{i}.png").write_bytes(content)
        (root / f"bomb{i}.txt").write_bytes(b"bad")
    made.count += len(bombs())
    return made


def tars(rng, root, count):
    """Whole tars with good and bad members, and tars that are spoilt themselves."""
    made = Made(count=count)
    for first in range(0, count, 50):
        members, whole = [], rng.random() < 0.6
        for i in range(first, min(first + 50, count)):
            kind = rng.random()
            if kind < 0.4:
                x, content = good(rng)
                text = made.caption(x) if whole else b"bad"
                members += [(f"{i}.png", content), (f"{i}.txt", text)]
            elif kind < 0.8:
                suffix, content = picture(rng)
                members += [
                    (f"{i}{suffix}", content),
                    (f"{i}.json", spoilt(rng, b'{"caption": "b"}')),
                ]
            elif kind < 0.9:
                name = ["../" * 9 + "x.png", "/x.png", f"{i}/../../x.png", "x" * 300 + ".png"]
                members.append((name[int(rng.integers(4))], hostile.PNG))
            else:
                sort = b"123456"[int(rng.integers(6)) :][:1]
                members.append(hostile.link(f"{i}.png", "/etc/passwd", sort))
        packed = ["w", "w:gz", "w:xz", "w:bz2"][int(rng.integers(4))]
        content = hostile.tar(members, packed)
        content = content if whole else spoilt(rng, content)
        suffix = {"w": ".tar"}.get(packed, f".tar.{packed[2:]}")
        (root / f"{first:06}{suffix}").write_bytes(content)
    for name, (content, _) in hostile.TARS.items():
        (root / name).write_bytes(content)
    return made


def parquet(rng, root, count):
    made = Made(count=count)
    for first in range(0, count, 100):
        whole = first == 0 or rng.random() < 0.6
        rows = []
        for _ in range(min(100, count - first)):
            if rng.random() < 0.4:
                x, content = good(rng)
                rows.append((content, (made.caption(x) if whole else b"bad").decode()))
            else:
                rows.append((picture(rng)[1] if rng.random() < 0.95 else None, "bad"))
        table = pa.table({"image": [r[0] for r in rows], "text": [r[1] for r in rows]})
        out = io.BytesIO()
        pq.write_table(table, out, row_group_size=40)
        content = out.getvalue()
        (root / f"{first:06}.parquet").write_bytes(content if whole else spoilt(rng, content))
    return made


def videos(rng, root, count):
    """Good ones tell themselves apart by how wide their bar grows."""
    made = Made(count=count)
    kinds = {**filmed.SUFFIXES, "GIF": "gif", "WEBP": "webp"}
    base = {k: filmed.video(k, n=6, size=(SIDE * 2, SIDE * 4)) for k in filmed.SUFFIXES}
    base |= {k: filmed.animation(k, n=6) for k in ("GIF", "WEBP")}
    base["matroska"] = filmed.video("matroska", n=6, audio=True)
    fine = hostile.saved(Image.fromarray(noise(rng)), "PNG")
    for i in range(count):
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        content, text, suffix = base[kind], b"bad", kinds[kind]
        if rng.random() < 0.25:
            pages = [Image.fromarray(noise(rng)) for _ in range(4)]
            how = {"save_all": True, "append_images": pages[1:], "duration": 40, "lossless": True}
            content = hostile.saved(pages[0], "WEBP", **how)
            suffix, text = "webp", made.caption(np.stack([np.asarray(page) for page in pages]))
        elif rng.random() < 0.1:
            content = [fine, b"", rng.bytes(5000), b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"][i % 4]
        else:
            content = spoilt(rng, content)
        (root / f"{i:06}.{suffix}").write_bytes(content)
        (root / f"{i:06}.txt").write_bytes(text)
    return made


def write(root, count, seed=0):
    """``{kind: Made}`` of what has been written below ``root``."""
    made = {}
    for i, (kind, share) in enumerate(SHARES.items()):
        (root / kind).mkdir(parents=True)
        rng = np.random.default_rng([seed, i])
        made[kind] = globals()[kind](rng, root / kind, round(share * count))
    return made
