"""Who may import whom, and how long a file may be: the layer table of the house."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What any room may import. Names are files or folders of ``dit``; all may import their own folder.
BASE = {"types", "rng", "config", "storage"}
# What a config's loss is made of.
MODEL = {"models", "codecs", "concat", "text", "diffusion", "objectives"}
LIBRARY = BASE | {"experiment", "recipe", "draw", "media"}
COMMAND = LIBRARY | {"cli", "parallel"}
MAY_IMPORT = {
    "__init__": set(),
    "types": set(),
    "rng": {"types"},
    "config": {"types"},
    "storage": {"types"},
    # rooms
    "scenes": BASE,
    "data": BASE | {"scenes"},
    "codecs": BASE | {"models", "interop", "training"},
    "models": BASE,
    "diffusion": BASE,
    "concat": BASE | {"codecs", "diffusion"},
    "lpips": BASE,
    "objectives": BASE | {"diffusion", "lpips"},
    "sampling": BASE | {"diffusion"},
    "parallel": BASE,
    "training": BASE | {"objectives", "parallel", "data"},
    "evaluation": BASE | {"parallel", "scenes", "interop", "models", "text"},
    "interop": BASE | {"models"},
    "text": BASE | {"models", "interop"},
    "scaling": BASE | {"models", "diffusion", "training", "parallel"},
    "tiles": BASE,
    "media": BASE | {"tiles"},
    # what joins them
    "config_file": BASE,
    "init_from": BASE | {"training", "interop", "models"},
    "sections": BASE | {"training", "config_file", "init_from"},
    "wired": BASE | {"concat", "sections", "text", "data"},
    "experiment": BASE
    | MODEL
    | {"data", "training", "parallel", "config_file", "init_from", "sections", "wired"},
    "recipe": BASE | {"diffusion", "sampling"},
    "given": BASE | {"data", "diffusion", "edits", "experiment", "recipe"},
    "edits": BASE | {"concat", "diffusion", "experiment", "recipe"},
    "prompts": BASE | {"edits", "experiment", "recipe", "text"},
    "guided": BASE | {"diffusion", "experiment", "models", "prompts", "recipe", "sampling"},
    "rollouts": BASE
    | {"diffusion", "experiment", "guided", "models", "recipe", "sampling", "sections"},
    "experts": BASE | {"cli", "experiment", "models", "recipe", "sections", "training"},
    "draw": BASE
    | {
        "edits",
        "experts",
        "guided",
        "prompts",
        "recipe",
        "rollouts",
        "experiment",
        "media",
        "models",
    }
    | {"diffusion", "sampling", "parallel", "training"},
    "carry": BASE | {"experiment", "init_from", "interop", "models", "parallel", "training"},
    "encoders": BASE | {"draw", "parallel", "text"},
    "encode": BASE | {"data", "draw", "encoders", "parallel"},
    "quality": LIBRARY | {"evaluation", "parallel", "rollouts", "scaling"},
    "preflight": LIBRARY | {"models", "parallel", "training", "scaling"},
    "notebook": BASE | {"media"},
    "scoring": LIBRARY | {"evaluation", "parallel", "prompts"},
    "reconstruct": LIBRARY | {"data", "evaluation", "lpips", "parallel", "training"},
    # commands, and what they share; no other command is imported
    "cli": BASE,
    "prepare": COMMAND | {"data", "encode"},
    "convert": COMMAND
    | {
        "carry",
        "config_file",
        "experts",
        "interop",
        "models",
        "reconstruct",
        "sections",
        "training",
    },
    "train": COMMAND | {"data", "prompts", "reconstruct", "scoring", "training", "scaling"},
    "sample": COMMAND | {"data", "experts", "given", "prompts"},
    "embed": COMMAND | {"data", "evaluation", "prompts", "encoders"},
    "evaluate": COMMAND
    | {"data", "edits", "evaluation", "experts", "reconstruct", "rollouts", "scoring", "training"},
    "scaling/__main__": COMMAND | {"training"},
    "preflight/__main__": COMMAND | {"sections"},  # the mesh a config asks for
    "preflight/predicted": COMMAND | {"benchmark", "config_file"},  # tables look alike
    "benchmark": COMMAND | {"models", "sections", "training", "scaling"},
    "benchmark/stopwatch": COMMAND | {"training", "train"},  # runs a training command
    "__main__": {"cli", "config"},
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
    path = file.relative_to(ROOT / "dit").with_suffix("")
    row = next((str(p) for p in (path, *path.parents) if str(p) in MAY_IMPORT), None)
    assert row, f"{path} is not in the table"
    assert set(imported_rooms(file)) <= MAY_IMPORT[row] | {path.parts[0], "__version__"}


def test_the_table_has_no_circle_and_no_row_without_files():
    graph = {row: names - {row.partition("/")[0]} for row, names in MAY_IMPORT.items()}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError: one imports what stands on it
    modules = {str(f.relative_to(ROOT / "dit").with_suffix("")) for f in FILES}
    known = modules | {m.rpartition("/")[0] for m in modules}
    assert set(MAY_IMPORT) | set().union(*MAY_IMPORT.values()) <= known


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
