"""Notebooks open in Colab, carry their outputs, and hold no errors, logs or paths of one machine."""

import base64
import json
import pathlib
import re

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{owner}/dit-jax/blob/main/notebooks/{name})"
)
OWNER = "OWNER"  # of the repository on GitHub
PATH = re.compile(r"""(?<![\w./:<-])/(?!dev/)[A-Za-z][\w.-]*/[\w./-]*""")  # /dev: is a chip there?
LARGEST = 100_000  # bytes of a picture

notebooks = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def cells(file, kind=None):
    found = json.loads(file.read_text())["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def outputs(file):
    return [output for cell in cells(file, "code") for output in cell["outputs"]]


def text_of(output):
    """What an output shows as text."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    return "".join("".join(part) for part in parts)


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_it_begins_with_a_title_a_badge_and_an_install_cell_and_ends_in_a_verdict(file):
    first, second, *_ = cells(file)
    assert re.match(r"# \S.*\n", source(first))
    assert BADGE.format(owner=OWNER, name=file.name) in source(first)
    assert second["cell_type"] == "code"
    assert 'if importlib.util.find_spec("dit") is None:' in source(second)
    assert f"github.com/{OWNER}/dit-jax" in source(second)
    assert source(second) == source(cells(NOTEBOOKS[0])[1]), "the same first cell in all"
    headings = re.findall(r"^## (.+)", "\n".join(map(source, cells(file, "markdown"))), re.M)
    assert "Verdict" in headings


@notebooks
def test_it_was_run_from_top_to_bottom_without_errors_or_logs(file):
    counts = [cell["execution_count"] for cell in cells(file, "code")]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output["output_type"] for output in outputs(file)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs(file))
    assert "quick mode" in text_of(outputs(file)[0])


@notebooks
def test_its_pictures_are_there_and_small(file):
    pictures = [o["data"]["image/png"] for o in outputs(file) if "image/png" in o.get("data", {})]
    assert pictures
    sizes = [len(base64.b64decode("".join(picture))) for picture in pictures]
    assert max(sizes) < LARGEST, sizes


@notebooks
def test_it_names_no_place_of_one_machine(file):
    shown = [*map(source, cells(file)), *map(text_of, outputs(file))]
    found = [path for part in shown for path in PATH.findall(part)]
    assert not found


def test_a_path_is_seen():
    for text in ("see /home/me/x", "'/tmp/y/'", "(/work/z.py)", "in /root/.cache/a"):
        assert PATH.search(text), text
    for text in (
        "../dit-jax/x",
        "https://a.org/b/c",
        "/dev/vfio",
        "alpha / sigma",
        "w/h/c",
        "</a>",
    ):
        assert not PATH.search(text), text
