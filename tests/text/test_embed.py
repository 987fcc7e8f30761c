"""``dit embed``: from words to conditions that ``dit sample`` draws by."""

import importlib.util

import numpy as np
import pytest
from saved_run import TINY
from saved_run import save as save_run
from text_cases import save

import dit.data.sources
from dit import embed, sample
from dit.text.pretrained import minilm
from dit.types import UserError

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
pytest.importorskip("sentencepiece", reason="needs the extra 'text'")
SOURCE = """
import dataclasses
import numpy as np
from dit.data.source import Source

@dataclasses.dataclass(frozen=True)
class Told:
    fingerprint: str
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return 8

    def __getitem__(self, i):
        sizes = {"x": (1, 4, 4, 1), "context": (26, 48), "pooled": (34,)}
        return {name: np.zeros(size, np.float32) for name, size in sizes.items()}

def build():
    return Source(Told("a"), Told("b"), shape=(1, 4, 4, 1), num_classes=None, fingerprint="told")
"""
PROMPTS = ("a red circle", "the cat", "é", "red", "a", "circle circle", "x", "a red cat", "z")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Directories with a small CLIP that projects, another that does not, and a T5."""
    root = tmp_path_factory.mktemp("encoders")
    save(root / "small", "clip", projected=True)
    save(root / "large", "clip", seed=1)
    save(root / "t5", "t5")
    return root


def run(out, *argv):
    embed.main([f"--out={out}", *argv])
    with np.load(out) as arrays:
        return {name: x for name, x in arrays.items() if name != "made_by"}


@pytest.mark.slow
def test_near_sentences_are_near_and_far_ones_far(tmp_path):
    """The real encoder, with its real weights."""
    if importlib.util.find_spec(minilm.PACKAGE) is None:  # not imported: that takes PyTorch
        pytest.skip("needs the extra 'text'")
    prompts = (
        *("a red circle on a white background", "a round red shape on white"),
        *("The stock market fell sharply today.", "Stocks fell steeply on the market today."),
        *("a cat sleeps on the sofa", "a kitten is sleeping on the couch"),
    )
    found = run(tmp_path / "c.npz", "--text=minilm:length=16", *(f"--prompt={x}" for x in prompts))
    assert found["context"].shape == (6, 16, 384)
    assert found["context_mask"].dtype == bool
    np.testing.assert_allclose(np.linalg.norm(found["pooled"], axis=1), 1, atol=1e-5)
    cosine = found["pooled"] @ found["pooled"].T
    print(np.round(cosine, 2))
    near = np.kron(np.eye(3), np.ones((2, 2))).astype(bool)
    assert cosine[near].min() > 0.7
    assert np.abs(cosine[~near]).max() < 0.15


def joined(folders, out, *texts):
    """Conditions of two CLIPs, whose contexts are 24 wide and pooled vectors 10 and 24, and of a T5."""
    clips = (f"--text=clip:path={folders / name}" for name in ("small", "large"))
    prompts = (f"--prompt={text}" for text in texts)
    return run(out, *clips, f"--text=t5:path={folders / 't5'},length=9", "--layers=-2", *prompts)


@pytest.mark.slow
def test_several_encoders_are_joined_in_one_file(folders, tmp_path):
    out = tmp_path / "cond.npz"
    found = joined(folders, out, *PROMPTS[:2])
    assert {k: x.shape for k, x in found.items()} == {
        **{"context": (2, 17 + 9, 48), "context_mask": (2, 17 + 9), "pooled": (2, 34)}
    }
    assert not found["context"][:, 17:, 24:].any()
    assert set(sample.read_conditions(str(out), ("context", "pooled"))) == set(found)
    options = f"--text=clip:path={folders / 'large'},use=context,layers=-2"
    single = run(out, options, *(f"--prompt={text}" for text in PROMPTS[:2]))
    assert set(single) == {"context", "context_mask"}
    np.testing.assert_allclose(single["context"], found["context"][:, :17, 24:], atol=1e-5)


@pytest.mark.slow
def test_samples_are_drawn_by_the_texts(folders, tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text(SOURCE)
    monkeypatch.setattr(dit.data.sources, "__path__", [*dit.data.sources.__path__, str(tmp_path)])
    model = {**TINY["model"], "block": "cross_attention", "context_dim": 48, "pooled_dim": 34}
    save_run(tmp_path / "run", {"name": "told"}, model=model)
    drawn = []
    for texts in (("red", "red"), ("red", "the cat")):
        joined(folders, tmp_path / "cond.npz", *texts)
        out = tmp_path / "x.npz"
        argv = [f"--workdir={tmp_path / 'run'}", f"--cond={tmp_path / 'cond.npz'}", "--num=2"]
        sample.main([*argv, f"--out={out}"])
        drawn.append(np.load(out)["samples"].astype(int))
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert (drawn[0][1] != drawn[1][1]).any()


@pytest.mark.slow
def test_meshes_batches_and_files_of_prompts_change_nothing(folders, tmp_path):
    options = (
        f"--text=t5:path={folders / 't5'},length=12",
        f"--text=clip:path={folders / 'small'},length=16",
    )
    alone = run(tmp_path / "a.npz", *options, *(f"--prompt={text}" for text in PROMPTS))
    (tmp_path / "p.txt").write_text("\n\n ".join(PROMPTS) + "\n", encoding="utf-8")
    file = (f"--prompts={tmp_path / 'p.txt'}", "--batch=4", "--mesh=fsdp=2,tensor=2,context=2")
    shared = run(tmp_path / "b.npz", *options, *file)
    for name, x in alone.items():
        np.testing.assert_allclose(shared[name], x, atol=1e-5, err_msg=name)


def test_texts_that_are_cut_are_named(folders, tmp_path, capsys):
    argv = (
        f"--text=clip:path={folders / 'small'},length=6",
        "--prompt=red",
        "--prompt=reading it all",
    )
    assert run(tmp_path / "c.npz", *argv)["context_mask"].all(1).tolist() == [False, True]
    assert "reads 6 tokens and cuts 1 of 2 texts: 'reading it all'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text=minilm"], "nothing to embed; expected --text=NAME and --prompt"),
        (["--prompt=a"], "nothing to embed; expected --text=NAME"),
        (["--image=a.png"], "expected --vision=DIR and --image=FILE together"),
        (
            ["--text=t6", "--prompt=a"],
            "no pretrained 't6': expected one of bert, clip, minilm, published, t5",
        ),
        (["--text=minilm:path=x", "--prompt=a"], "unknown keyword 'path'"),
        (["--text=clip", "--prompt=a"], "missing 'path'"),
        (
            ["--text=clip:path=nowhere", "--prompt=a"],
            "no config.json in 'nowhere'.*there is nothing",
        ),
        (["--text=clip:path={small},length=18", "--prompt=a"], "length=18; expected at most 17"),
        (["--text=clip:path={small},use=all", "--prompt=a"], "got use='all'.*'both' or"),
        (["--text=clip:path={small},layers=9", "--prompt=a"], "got layers=9 for clip of 2 layers"),
        (["--text=clip:path={t5}", "--prompt=a"], "missing .*'hidden_size'"),
        (["--text=t5:path={t5},use=pooled", "--prompt=a"], "give nothing: a T5 has no pooled"),
        (
            ["--text=clip:path={small}", "--text=clip:path={large},length=9", "--prompt=a"],
            r"contexts of \[17, 9\] tokens to join",
        ),
        (["--text=clip:path={small}", "--prompt=\udce9"], "expected Unicode in UTF-8"),
        (["--text=clip:path={small},tokenizer={t5}", "--prompt=a"], "texts without the token 599"),
        (["--text=clip:path={small}", "--prompts=nowhere"], "no file 'nowhere'"),
        (["--text=clip:path={small}", "--prompt=a", "--out=c.npy"], "end in .npz"),
    ],
)
def test_what_cannot_work_is_refused(folders, tmp_path, argv, message):
    places = {name: folders / name for name in ("small", "large", "t5")}
    argv = [text.format(**places) for text in argv]
    with pytest.raises(UserError, match=message):
        embed.main([f"--out={tmp_path / 'c.npz'}", *argv])
    assert not (tmp_path / "c.npz").exists()
