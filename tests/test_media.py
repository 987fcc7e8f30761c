"""Pictures hold what was put in; recipes survive; a failed write leaves nothing behind."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit import media, tiles
from dit.codecs import latent, pixel
from dit.data import clips as video
from dit.data.npy import read_npz
from dit.types import UserError

RECIPE = {"seed": 3, "labels": [0, 1], "solver": "heun", "guidance": 1.5, "note": "naïve"}


def clips(n=5, f=1, c=1, size=8):
    """Clip i is of brightness 10 i + frame."""
    value = 10 * np.arange(n)[:, None] + np.arange(f)
    shape = (n, f, size, size, c)
    return np.broadcast_to(value[..., None, None, None], shape).astype(np.uint8)


def cell(image, row, column, size=8):
    """The pixels of one picture of a grid, of any enlargement."""
    factor = -(-tiles.CELL // size)
    pitch = (size + tiles.GAP) * factor
    top, left = (tiles.GAP * factor + k * pitch for k in (row, column))
    return image[top : top + size * factor, left : left + size * factor]


def test_colours_become_bytes():
    x = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(media.to_uint8(x, pixel.build()), [0, 0, 128, 255, 255])
    every = np.arange(256, dtype=np.uint8)
    codec = pixel.build()
    back = codec.decode({}, codec.encode({}, jnp.asarray(every).reshape(1, 1, 16, 16, 1)))
    np.testing.assert_array_equal(media.to_uint8(back, codec).ravel(), every)


def test_latents_are_not_drawn():
    with pytest.raises(UserError, match=r"\.npz"):
        media.to_uint8(jnp.zeros(3), latent.build())


def test_grid_has_one_row_a_label_in_order():
    image = media.grid(clips(), np.array([7, 2, 7, 2, 7]))
    for row, members in enumerate([[1, 3], [0, 2, 4]]):
        for column, i in enumerate(members):
            assert (cell(image, row, column) == 10 * i).all()
    assert (cell(image, 0, 2) == tiles.GREY).all()  # no third one


def test_grid_without_rows_to_fill_is_near_square():
    for labels in (None, np.array([4, 3, 2, 1, 0])):
        image = media.grid(clips(), labels)
        order = [0, 1, 2, 3, 4] if labels is None else [4, 3, 2, 1, 0]
        for place, i in enumerate(order):
            assert (cell(image, *divmod(place, 3)) == 10 * i).all()


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize(
    "labels",
    [None, np.zeros(500, int), np.arange(500) % 2, np.arange(500) % 10, np.arange(500)],
    ids=["none", "one", "two", "ten", "all"],
)
def test_pictures_of_many_samples_are_no_ribbons(tmp_path, labels, suffix, frames):
    """At most about four times as long as high, or as high as long, whatever the labels are."""
    x = clips(n=500, f=frames)
    media.check_drawable(tmp_path / f"x{suffix}", x.shape, labels, pixels=True)
    rows = tiles.rows_of(500, labels)
    if suffix == ".png" and frames > 1:
        rows = tiles.strips_of((500, frames), labels)
    height, width = len(rows), len(rows[0])
    assert 1 / 5 < width / height < 5 or (width / height < 10 and labels is not None)
    taken = [place for row in rows for place in row if place is not None]
    assert len(taken) == len(set(taken)) == 500 * (frames if suffix == ".png" else 1)


def test_a_label_starts_its_own_row_where_rows_are_folded():
    labels = np.arange(50) % 2
    for row in tiles.rows_of(50, labels):
        assert len({labels[place[0]] for place in row if place is not None}) == 1


@pytest.mark.parametrize(
    ("shape", "suffix", "fits"),
    [
        ((50_000, 1, 8, 8, 1), ".png", True),  # without enlargement
        ((50_000, 1, 8, 8, 1), ".gif", True),
        ((50_000, 1, 256, 256, 3), ".png", False),
        ((50_000, 16, 32, 32, 3), ".gif", False),
        ((1000, 16, 256, 256, 3), ".png", False),
        ((1, 1, 1, 20_000, 1), ".png", True),  # a row of sound: not enlarged 64 times
        ((1, 1, 1, 40_000, 1), ".png", False),
        ((50_000, 1, 256, 256, 3), ".npz", True),
        ((2, 1, 8, 8, 4), ".png", False),
        ((2, 1, 8, 8, 4), ".npz", True),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_there(tmp_path, shape, suffix, fits):
    def check():
        media.check_drawable(tmp_path / f"x{suffix}", shape, None, pixels=True)

    if fits:
        check()
        return
    with pytest.raises(UserError, match=r"\.npz"):
        check()


def test_the_largest_picture_can_be_read_again(tmp_path):
    """Pillow refuses larger ones as an attack."""
    assert tiles.MOST_PIXELS <= Image.MAX_IMAGE_PIXELS
    media.save_moving(tmp_path / "x.gif", clips(n=300, f=2))
    with Image.open(tmp_path / "x.gif") as image:
        assert max(image.size) < 65_536


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grid.jpg", r"\.png, \.gif, \.webp, \.mp4 or \.npz"),
        ("grid", r"\.png, \.gif, \.webp, \.mp4 or \.npz"),
        (".", r"\.png, \.gif, \.webp, \.mp4 or \.npz"),
        ("folder.png", "is a directory"),
        ("file/x.png", "cannot write"),
        ("/proc/x.png", "cannot write"),
        ("a" * 300 + ".png", "cannot write"),
        ("nul\0.png", "cannot write"),
        ("loop/x.png", "cannot write"),
    ],
)
def test_places_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        media.check_place(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "x.png").write_text("old")
    media.check_place(tmp_path / "x.png")
    media.check_place(tmp_path / "new" / "deeper" / "x.NPZ")
    assert (tmp_path / "x.png").read_text() == "old"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "x.png"]


def test_filmstrip_rows_are_clips_and_columns_frames():
    image = media.filmstrip(clips(n=2, f=3, c=3), np.array([1, 0]))
    for row, i in enumerate([1, 0]):
        for frame in range(3):
            assert (cell(image, row, frame) == 10 * i + frame).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_picture_and_recipe(tmp_path, channels):
    path = tmp_path / "new" / "grid.png"
    x, labels = clips(c=channels), np.arange(5)
    media.save_samples(path, x, labels, RECIPE)
    assert media.read_recipe(path) == RECIPE
    with Image.open(path) as image:
        read = np.asarray(image).reshape(image.height, image.width, channels)
    np.testing.assert_array_equal(read, media.grid(x, labels))


def test_gif_moves(tmp_path):
    x = clips(n=2, f=3)
    media.save_samples(tmp_path / "clip.gif", x, np.arange(2), {})
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == 3
        for k in range(3):
            image.seek(k)
            page = np.asarray(image.convert("L"))[..., None]
            assert np.abs(page.astype(int) - media.grid(x[:, k : k + 1], np.arange(2))).max() <= 1


@pytest.mark.parametrize("labels", [None, np.arange(5, dtype=np.int32)])
@pytest.mark.parametrize("frames", [1, 3])
def test_npz_holds_the_arrays(tmp_path, frames, labels):
    x = clips(f=frames)
    media.save_samples(tmp_path / "samples.npz", x, labels, RECIPE)
    with np.load(tmp_path / "samples.npz") as data:
        assert set(data) == {"samples"} | ({"labels"} if labels is not None else set())
        np.testing.assert_array_equal(data["samples"], x[:, 0] if frames == 1 else x)
        if labels is not None:
            np.testing.assert_array_equal(data["labels"], labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_npz_is_written_as_samples_come(tmp_path, dtype):
    x, path = clips().astype(dtype), tmp_path / "samples.npz"
    with media.npz_writer(path, 5, None) as write:
        for part in (x[:2], x[2:4], x[4:]):
            write(part)
            assert not path.exists()
    np.testing.assert_array_equal(read_npz(path, "samples"), x[:, 0])
    with pytest.raises(ValueError, match="expected 5"), media.npz_writer(path, 5, None) as write:
        write(x[:3])
    np.testing.assert_array_equal(read_npz(path, "samples"), x[:, 0])
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_suffix_and_channels_are_checked(tmp_path):
    with pytest.raises(UserError, match=r"\.png, \.gif, \.webp, \.mp4 or \.npz"):
        media.save_samples(tmp_path / "grid.jpg", clips(), np.arange(5), {})
    with pytest.raises(UserError, match="4 channels"):
        media.save_samples(tmp_path / "grid.png", clips(c=4), np.arange(5), {})
    with pytest.raises(UserError, match=r"latents.*\.npz"):
        media.save_samples(tmp_path / "grid.png", clips() / 255, np.arange(5), {})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "grid.png"
    media.save_png(path, media.grid(clips()), RECIPE)
    with pytest.raises(ValueError, match="JSON"):
        media.save_png(path, media.grid(clips(n=2)), {"loss": float("nan")})
    with pytest.raises(ZeroDivisionError), media._atomic(path) as file:
        file.write(b"half" * (1 // 0))
    assert media.read_recipe(path) == RECIPE
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_recipes_that_are_not_there(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(UserError, match="no file"):
        media.read_recipe(path)
    path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match="not a PNG"):
        media.read_recipe(path)
    Image.new("L", (4, 4)).save(path, format="JPEG")
    with pytest.raises(UserError, match="not a PNG"):
        media.read_recipe(path)
    Image.new("L", (4, 4)).save(path)
    with pytest.raises(UserError, match="no recipe"):
        media.read_recipe(path)
    for text, says in (("{broken", "damaged"), ("[1, 2]", "object")):
        info = media.PngImagePlugin.PngInfo()
        info.add_text(media.RECIPE, text)
        Image.new("L", (4, 4)).save(path, pnginfo=info)
        with pytest.raises(UserError, match=says):
            media.read_recipe(path)
    media.save_png(path, media.grid(clips()), RECIPE)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError):
        media.read_recipe(path)


def test_curve_is_drawn_from_the_last_log_of_each_step(tmp_path):
    rows = [{"step": s, "loss": 1.0 / s, "rate": 3} for s in range(1, 200)]
    rows += [{"step": 200, "loss": None}, {"step": 150, "loss": 0.5}, {"step": 5, "other": 1.0}]
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 201, "lo')
    points = media._read_metric(log, "loss")
    assert sorted(points) == list(range(1, 200))
    assert points[150] == 0.5
    assert points[10] == 0.1
    media.plot_curve(log, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert min(image.size) > 300
    with pytest.raises(UserError, match="accuracy"):
        media.plot_curve(log, tmp_path / "curve.png", key="accuracy")


@pytest.mark.parametrize("suffix", [".webp", ".mp4"])
def test_what_moves_is_read_back_frame_by_frame(tmp_path, suffix):
    pytest.importorskip("av")
    ramp = np.linspace(0, 255, 15 * 19, dtype=np.uint8).reshape(15, 19)  # odd sides
    x = np.stack([np.roll(ramp, 3 * k, axis=1) for k in range(5)])[None, ..., None].repeat(3, -1)
    path = tmp_path / f"clip{suffix}"
    media.check_drawable(path, x.shape, None, pixels=True)
    media.save_samples(path, x, None, {}, fps=12.0)
    taking = video.Taking(frames=5, fps=12.0)
    (found,) = video.read(str(path), taking, np.asarray, 3, 10**8)
    for k in range(5):
        page = tiles.tile(x[:, k : k + 1], tiles.rows_of(1, None), pages=5)
        height, width, _ = page.shape
        off = found[k, :height, :width].astype(float) - page
        assert np.abs(off).max() == 0 if suffix == ".webp" else np.sqrt((off**2).mean()) < 4
    with pytest.raises(ValueError, match="it has 5 frames"):
        video.read(str(path), video.Taking(frames=6, fps=12.0), np.asarray, 3, 10**8)


def test_mp4_without_its_package_is_refused_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install av"):
        media.check_drawable("x.mp4", (1, 2, 8, 8, 3), None, pixels=True)
