"""Who may import whom, and how long a file may be: the layer table of the house."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# anyone may import these; they import nothing else of ours
BASE = {"types", "rng", "config", "storage"}
MAY_IMPORT = {
    "types": set(),
    "rng": BASE,
    "config": BASE,
    "media": BASE,
    "storage": {"types"},
    "data": BASE,
    "codecs": BASE,
    "text": BASE,
    "models": BASE,
    "diffusion": BASE,
    "objectives": BASE | {"diffusion"},
    "sampling": BASE | {"diffusion"},
    "parallel": BASE,
    "training": BASE | {"objectives", "parallel", "data"},
    "evaluation": BASE | {"parallel"},
    "interop": BASE | {"models", "codecs", "text"},
    "scaling": BASE | {"models", "diffusion", "training", "parallel"},
}
FILES = sorted((ROOT / "dit").rglob("*.py"))


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dit" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_follow_the_layer_table(file):
    room = file.relative_to(ROOT / "dit").parts[0].removesuffix(".py")
    if file.name == "__main__.py":  # an entry point
        return
    if room not in MAY_IMPORT:  # an entry point, or what wires for them
        wires = file.parent == ROOT / "dit" or room in ("benchmark", "preflight")
        assert wires, f"{room} is not in the table"
        return
    allowed = MAY_IMPORT[room] | {room, "__version__"}
    assert set(imported_rooms(file)) <= allowed


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.name == "__init__.py"],
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_no_module_hides_a_name_of_its_package(file):
    """Once imported, the module ``dit.room.name`` is what ``dit.room`` has under ``name``."""
    own, defined = ".".join(file.parent.relative_to(ROOT).parts), set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {n.id for n in node.targets if isinstance(n, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module != own:  # no module on purpose
            defined |= {alias.asname or alias.name for alias in node.names}
    modules = {p.name.removesuffix(".py") for p in file.parent.iterdir()}
    assert not defined & modules


@pytest.mark.parametrize(
    "file",
    [f for d in ("dit", "configs", "launch", "tests") for f in sorted((ROOT / d).rglob("*.py"))],
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_no_file_is_longer_than_four_hundred_lines(file):
    assert len(file.read_text().splitlines()) <= 400
