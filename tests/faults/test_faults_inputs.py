"""Files and names that somebody else made: nothing in them is run, believed, or written elsewhere.

Each gives one line that names the file. A payload that were run would leave a file behind.
"""

import dataclasses
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from dit import config as configs
from dit import sample
from dit.data import npy
from dit.data.sources import folder
from dit.draw import Recipe, Sampler
from dit.experiment import build, load_config
from dit.interop import files
from dit.scaling.plan_file import load_plan
from dit.training.workdir import lock
from dit.types import UserError


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def refused(tmp_path, note):
    """``refused(fault, where, what)``: ``what()`` raises UserError, in one line, and runs nothing."""
    before = set(tmp_path.rglob("*"))

    def check(fault, where, what):
        made = set(tmp_path.rglob("*"))
        with pytest.raises(UserError) as error:
            what()
        message = str(error.value)
        assert "\n" not in message
        assert len(message) < 1000
        assert set(tmp_path.rglob("*")) == made >= before
        note(fault, where, message)

    return check


# --- .npz ---------------------------------------------------------------------------------------


def npy_bytes(header, data=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path.read_bytes()


def floats(*shape):
    return {"descr": "<f4", "fortran_order": False, "shape": shape}


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


NPZ = {
    "a pickle": lambda place: {"mask.npy": saved(np.array([Payload(place)], object))},
    "10^11 elements claimed": lambda place: {"mask.npy": npy_bytes(floats(10**11), b"1234")},
    "a negative size": lambda place: {"mask.npy": npy_bytes(floats(-1), b"1234")},
    "more bytes than claimed": lambda place: {"mask.npy": npy_bytes(floats(2), bytes(99))},
    "a header of rubbish": lambda place: {"mask.npy": b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16},
    "a header that is a program": lambda place: {
        "mask.npy": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').mkdir('x')".ljust(32)
    },
    "no array": lambda place: {"mask.npy": b"hello"},
    "a name that climbs": lambda place: {"../../mask.npy": saved(np.zeros(2))},
}


@pytest.mark.parametrize("what", NPZ, ids=lambda name: name.replace(" ", "-"))
def test_a_hostile_npz_is_refused(tmp_path, refused, what):
    path = tmp_path / "in.npz"
    zipped(path, NPZ[what](tmp_path / "payload"))
    refused("hostile .npz", what, lambda: npy.read_npz(path, "mask"))


def test_an_npz_cut_short_or_changed_is_refused(tmp_path, refused):
    path = tmp_path / "in.npz"
    np.savez_compressed(path, mask=np.arange(1000))
    whole = path.read_bytes()
    for raw in (b"", whole[:30], whole[:-30], whole[:80] + b"\xff" + whole[81:], b"rubbish"):
        path.write_bytes(raw)
        refused("a damaged .npz", "cut short, changed", lambda: npy.read_npz(path, "mask"))


def test_a_bomb_is_not_unpacked(tmp_path, refused):
    """A directory that claims a terabyte for a few bytes."""
    path = tmp_path / "in.npz"
    data = npy_bytes(floats(2**38))
    zipped(path, {"mask.npy": data})
    raw = path.read_bytes()
    size, claimed = struct.pack("<I", len(data)), struct.pack("<I", 2**32 - 2)
    assert raw.count(size * 2) == 2
    path.write_bytes(raw.replace(size * 2, size + claimed))
    refused("hostile .npz", "4 GB packed into 128 bytes", lambda: npy.read_npz(path, "mask"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sound_npz_is_read(tmp_path, order):
    x = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)
    np.savez_compressed(tmp_path / "in.npz", x=x, zeros=np.zeros(10**6), none=np.zeros((0, 3)))
    np.testing.assert_array_equal(npy.read_npz(tmp_path / "in.npz", "x"), x)
    assert not npy.read_npz(tmp_path / "in.npz", "zeros").any()
    assert npy.read_npz(tmp_path / "in.npz", "none").shape == (0, 3)
    with pytest.raises(UserError, match=r"no array 'y' .* it holds x, zeros, none"):
        npy.read_npz(tmp_path / "in.npz", "y")


# --- .safetensors -------------------------------------------------------------------------------


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


SAFETENSORS = {
    "a header of 2^60 bytes": safetensors({"a": entry([1], 0, 4)}, bytes(4), 2**60),
    "no header": b"",
    "a header of rubbish": safetensors(b"\xff{rubbish", bytes(4)),
    "nested 100,000 deep": safetensors(b"[" * 100_000),
    "a list": safetensors([1, 2]),
    "a size of 10^11": safetensors({"a": entry([10**11], 0, 4)}, bytes(4)),
    "a negative size": safetensors({"a": entry([-1, -1], 0, 4)}, bytes(4)),
    "outside of the file": safetensors({"a": entry([2], 0, 8)}, bytes(4)),
    "an offset before the data": safetensors({"a": entry([1], -4, 0)}, bytes(4)),
    "overlapping tensors": safetensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)),
    "a gap": safetensors({"a": entry([1], 4, 8)}, bytes(8)),
    "bytes left over": safetensors({"a": entry([1], 0, 4)}, bytes(8)),
    "an unknown dtype": safetensors({"a": entry([1], 0, 4, "O")}, bytes(4)),
    "a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'.ljust(80)
    ),
    "sizes of text": safetensors({"a": entry(["1"], 0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("what", SAFETENSORS, ids=lambda name: name.replace(" ", "-"))
def test_hostile_safetensors_are_refused(tmp_path, refused, what):
    path = tmp_path / "in.safetensors"
    path.write_bytes(SAFETENSORS[what])
    refused("hostile .safetensors", what, lambda: files.read(path))


def test_safetensors_cut_short_anywhere_are_refused(tmp_path, refused):
    path = tmp_path / "in.safetensors"
    whole = safetensors({"a": entry([2, 3], 0, 24)}, bytes(24))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused("a truncated .safetensors", "at every byte", lambda: files.read(path))


def test_sound_safetensors_are_read_and_names_stay_names(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = {"../../x": entry([2, 3], 0, 24), "b": entry([], 24, 26, "BF16"), "__metadata__": {}}
    path = tmp_path / "in.safetensors"
    path.write_bytes(safetensors(header, x.tobytes() + b"\x80\x3f"))
    state = files.read(path)
    np.testing.assert_array_equal(state["../../x"], x)
    assert state["b"].shape == ()
    assert float(np.asarray(state["b"])) == 1.0
    assert [f.name for f in tmp_path.iterdir()] == ["in.safetensors"]


# --- .pt ----------------------------------------------------------------------------------------


def op(value):
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(shape, strides, offset=0, count=6, key="0", kind="FloatStorage"):
    """The opcodes of a tensor, as ``torch.save`` writes them."""
    storage = b"(" + op("storage") + b"ctorch\n" + kind.encode() + b"\n" + op(key) + op("cpu")
    storage += op(count) + b"tQ"
    rest = op(offset) + op(tuple(shape)) + op(tuple(strides))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + hooks + b"tR"


def state_dict(**entries):
    items = b"".join(op(name) + value for name, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def torch_file(path, program):
    data = np.arange(6, dtype=np.float32).tobytes()
    zipped(path, {"in/data.pkl": program, "in/byteorder": b"little", "in/data/0": data})


TORCH = {
    "a payload": lambda place: pickle.dumps(Payload(place)),
    "a payload beside tensors": lambda place: state_dict(
        w=tensor([2, 3], [3, 1]), x=op(Payload(place))
    ),
    "eval": lambda place: b"cbuiltins\neval\n(" + op(f"__import__('os').mkdir('{place}')") + b"tR.",
    "a function of this reader": lambda place: b"cdit.interop.files\nread\n(" + op("x") + b"tR.",
    "a function of torch": lambda place: b"ctorch\nload\n(" + op("x") + b"tR.",
    "a module by a dotted name": lambda place: (
        b"\x80\x04\x8c\x0bcollections\x8c\x0bos.getcwd\x93)R."
    ),
    "a tensor outside of its storage": lambda place: state_dict(w=tensor([2, 3], [3, 1], offset=1)),
    "10^11 elements": lambda place: state_dict(w=tensor([10**11], [0])),
    "a negative stride": lambda place: state_dict(w=tensor([6], [-1])),
    "a storage larger than its file": lambda place: state_dict(w=tensor([7], [1], count=7)),
    "a storage that climbs": lambda place: state_dict(w=tensor([6], [1], key="../byteorder")),
    "a storage that is not there": lambda place: state_dict(w=tensor([6], [1], key="7")),
    "a tensor that is changed": lambda place: state_dict(
        w=tensor([6], [1]) + op((1, (6,), None, False, b"")) + b"b"
    ),
    "no tensors": lambda place: pickle.dumps({"a": 1}),
    "nothing": lambda place: b"",
    "a pickle cut short": lambda place: state_dict(w=tensor([6], [1]))[:40],
}


@pytest.mark.parametrize("what", TORCH, ids=lambda name: name.replace(" ", "-"))
def test_a_hostile_pt_is_refused_and_not_run(tmp_path, refused, what):
    path = tmp_path / "in.pt"
    torch_file(path, TORCH[what](tmp_path / "payload"))
    refused("hostile .pt", what, lambda: files.read(path))


def test_a_plain_pickle_and_a_truncated_archive_are_refused(tmp_path, refused):
    path = tmp_path / "in.pt"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "payload")))
    refused("hostile .pt", "a plain pickle with a payload", lambda: files.read(path))
    torch_file(path, state_dict(w=tensor([6], [1])))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused("a truncated .pt", "every seventh byte", lambda: files.read(path))


def test_a_sound_pt_is_read_flat(tmp_path):
    inner = state_dict(w=tensor([3, 2], [1, 3]), b=tensor([2], [1], offset=4))[2:-1]
    extra = b"cargparse\nNamespace\n)R" + op({"lr": 1.0}) + b"b"
    torch_file(tmp_path / "in.pt", state_dict(ema=inner, args=extra, step=op(7)))
    state = files.read(tmp_path / "in.pt")
    assert sorted(state) == ["b", "w"]
    np.testing.assert_array_equal(state["w"], np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(state["b"], [4, 5])
    torch_file(tmp_path / "other.pt", state_dict(other=inner, args=extra))
    assert sorted(files.read(tmp_path / "other.pt")) == ["other.b", "other.w"]


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_is_read(new, tmp_path):
    torch = pytest.importorskip("torch")
    x = {
        kind: torch.arange(12).reshape(3, 4).to(getattr(torch, kind))
        for kind in ("float32", "float16", "bfloat16", "int64", "uint8", "bool")
    }
    x |= {"view": x["float32"].T[1:, ::2], "scalar": torch.tensor(3.0)}
    x["parameter"] = torch.nn.Parameter(torch.ones(2))
    kept = {"model": x, "args": None, "opt": {"state": [1, 2]}}
    torch.save(kept, tmp_path / "in.pt", _use_new_zipfile_serialization=new)
    state = files.read(tmp_path / "in.pt", weights="model")
    assert sorted(state) == sorted(x)
    for name, value in x.items():
        want = value.detach().to(torch.float64).numpy()
        np.testing.assert_array_equal(state[name].astype(np.float64), want)


def test_weights_of_another_kind_are_refused(tmp_path, refused):
    refused("a foreign suffix", "in.ckpt", lambda: files.read(tmp_path / "in.ckpt"))
    refused("no file", "none.pt", lambda: files.read(tmp_path / "none.pt"))


# --- names --------------------------------------------------------------------------------------

NAMES = ["../../etc/passwd", "..", "os", "a/b", "/etc/passwd", "__init__", "", "x\x00y", "é\u202e"]


@pytest.mark.parametrize("room", ["data.sources", "models", "sampling.solvers", "interop"])
def test_a_name_in_a_config_reaches_no_other_module(refused, room):
    for name in NAMES:
        refused(
            "path traversal",
            f"a name in {room}",
            lambda name=name: configs.resolve(room, name),
        )


@pytest.mark.parametrize("name", ["../../train", 5, None, ["digits"], "digits.digits"])
def test_a_section_of_a_config_with_a_strange_name_is_refused(refused, name):
    refused(
        "path traversal",
        f"config.data.name={name!r}",
        lambda: load_config("configs/digits.py", {"data.name": name}),
    )


RECIPE = {**dataclasses.asdict(Recipe(labels=(1,), num=1)), "labels": [1]}


@pytest.mark.parametrize(
    "change",
    [
        {"solver": "../../os"},
        {"solver": "heun:__class__=1"},
        {"guidance": "os:system=ls"},
        {"grid": {"name": "uniform"}},
        {"labels": "12"},
        {"labels": [-1]},
        {"labels": [10**30]},
        {"steps": "many"},
        {"seed": -5},
        {"batch": None},
        {"strength": float("inf")},
    ],
    ids=str,
)
def test_a_forged_recipe_in_a_picture_is_refused(refused, change):
    experiment = build(load_config("configs/digits.py"))
    args = sample.arguments().parse_args(["--workdir=x", "--like=y.png"])
    refused(
        "forged recipe in a PNG",
        str(change),
        lambda: Sampler(experiment, sample.choose(args, experiment, {**RECIPE, **change})),
    )


def test_folders_with_strange_names_are_classes_like_others(tmp_path, note):
    from PIL import Image

    names = ["evil..", "a\nb", "\x1b[31m", "-rf", "$(id)", "é"]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "outside").mkdir()
    for i in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / "outside" / f"{i}.png")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    before = set(tmp_path.rglob("*"))
    source = folder.build(path=str(tmp_path / "images"), size=4, held_out=0.5)
    assert source.num_classes == len(names) + 1  # a link is a class, unless it leads back
    assert source.train[0]["x"].shape == (1, 4, 4, 3)
    assert set(tmp_path.rglob("*")) == before
    note("path traversal", "names of class folders", "they are names; a link that leads back ends")


@pytest.mark.parametrize("text", ["", "[]", '{"plan": 5}', '{"plan": {"rows": ["../x"]}}', "\x00"])
def test_a_plan_of_rubbish_is_refused(tmp_path, refused, text):
    """The directories of a sweep are named by hashes, so that its plan can name no other."""
    (tmp_path / "plan.json").write_text(text)
    refused("junk", "the plan of a sweep", lambda: load_plan(tmp_path / "plan.json"))


def test_a_workdir_that_is_a_file_is_refused(tmp_path, refused):
    (tmp_path / "run").write_text("x")

    def hold():
        with lock(tmp_path / "run"):
            pass

    refused("junk", "a file where the workdir should be", hold)
