"""Every command of the launchers that is written down is tried: in dry run, and nothing else can run."""

import ast
import pathlib
import re
import shlex

import pytest
from launch_tools import LAUNCH, dry, launch

from dit import cli, experiment, train

ROOT = LAUNCH.parent


VERBS = re.compile(r"(?<= )\w+(?:\|\w+)+(?= )")  # status|logs|delete


def commands(text):
    """The commands that call a launcher, lines that go on joined, in the words of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if re.match(r"python launch/\w+\.py ", line):
            found = VERBS.search(line)
            for verb in found[0].split("|") if found else [""]:
                yield shlex.split(VERBS.sub(verb, line) if found else line)


def documented():
    for file in (LAUNCH / "README.md", LAUNCH / "JOURNEYS.md", ROOT / "README.md"):
        yield from ((file.name, words) for words in commands(file.read_text()))
    for file in sorted(LAUNCH.glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        yield from ((file.name, words) for words in commands(text))


DOCUMENTED = list(documented())


@pytest.mark.parametrize(
    ("where", "words"), DOCUMENTED, ids=[f"{w}-{i}" for i, (w, _) in enumerate(DOCUMENTED)]
)
def test_a_documented_command_is_good(where, words):
    script, *args = words[1:]
    args = [re.sub(r"\b(BUCKET|DATA)\b", lambda m: m[0].lower(), word) for word in args]
    args = [word for word in args if word != "--dry-run"]
    name = pathlib.Path(script).name
    text = dry(name, *args)
    assert text.strip()
    if "dit.train" in args:
        command = args[args.index("dit.train") + 1 :]
        given, overrides = cli.parse(train.arguments(), command)
        experiment.load_config(str(ROOT / given.config), overrides)


def test_the_documents_show_every_launcher_and_every_way():
    shown = {(pathlib.Path(words[1]).name, words[2]) for _, words in DOCUMENTED}
    for verb in ("create", "run", "status", "logs", "stop", "delete"):
        assert ("tpu_vm.py", verb) in shown
    for verb in ("run", "xpk", "status", "logs", "delete"):
        assert ("gke.py", verb) in shown
    assert {"local.py", "slurm.py"} <= {name for name, _ in shown}


@pytest.mark.parametrize("script", ["local.py", "tpu_vm.py", "gke.py", "slurm.py"])
def test_every_way_to_pass_flags_on_is_in_the_readme(script):
    text = (LAUNCH / "README.md").read_text()
    usage = launch(script, "--help").stdout
    given = set(re.findall(r"--[a-z-]+(?=[ =](?:FLAG|NAME|FILE|gs)\b)", usage))
    assert given
    assert all(f"`{name}=" in text or f" {name}=" in text for name in given)


def test_the_part_of_a_pod_in_the_readme_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (LAUNCH / "README.md").read_text(), re.DOTALL)
    (tmp_path / "part").write_text(text)
    args = ["run", "--name=dit", "--image=i", "--tpu=v5e", "--topology=16x16"]
    out = dry("gke.py", *args, f"--pod-spec={tmp_path}/part", "--", "x", "--workdir=/mnt/nfs/run")
    assert "memory: 800Gi" in out or 'memory: "800Gi"' in out


def test_the_lines_for_other_launchers_can_be_evaluated():
    (chip,) = re.findall(
        r'eval "\$\(python launch/flags.py (\w+)\)"', (LAUNCH / "README.md").read_text()
    )
    assert "export LIBTPU_INIT_ARGS=" in launch("flags.py", chip).stdout
