"""What README.md and the pages of docs/ show runs: Python blocks as they stand, commands as far as their options go."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import zoo
from tasks import commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("docs/**/*.md")))
}
BLOCKS = dict.fromkeys(block for page in PAGES.values() for block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
PRINTED = {
    block[2]: printed[2]
    for page in PAGES.values()
    for block, printed in itertools.pairwise(FENCED.finditer(page))
    if (block[1], printed[1]) == ("python", "text") and not page[block.end() : printed.start()].strip()
}
"""Of blocks that are followed by what they print."""
PYTHON = [code for language, code in BLOCKS if language == "python"]
TESTS = {found[1]: code for code in PYTHON if (found := re.match(r"# (test_\w+\.py)\n", code))}
"""Files of tests, which begin with their names."""
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line]
OWN_PAGES = {"layers": "docs/blocks/", "zoo": "docs/models/"}
COMMANDS = list(dict.fromkeys(line for line in LINES if "-m tasks." in line))


def title(code):
    """The first line that is not an import, for the test's name."""
    return next(line for line in code.splitlines() if line and not line.startswith(("import", "from")))[:40]


@pytest.mark.processes
@pytest.mark.parametrize("code", [code for code in PYTHON if code not in TESTS.values()], ids=title)
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    """Each by itself in an empty folder; what stands below a block is what it prints."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"readme{PYTHON.index(code)}")  # torch 2.6 looks there for its classes, and remembers it
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "README.md", "exec"), vars(module))
    if code in PRINTED:
        assert capsys.readouterr().out.rstrip() == PRINTED[code].rstrip()


@pytest.mark.processes
def test_blocks_that_are_test_files_pass(tmp_path):
    """In a folder with nothing else."""
    for name, code in TESTS.items():
        (tmp_path / name).write_text(code)
    command = [sys.executable, "-m", "pytest", "-v", "-W", "error", "--hypothesis-profile=dev"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TESTS:
        assert len(re.findall(rf"^{name}::.* PASSED", done.stdout, re.M)) >= 10, "the contract must become tests"


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_know_the_options_that_are_shown(line):
    """And the values that they are given, as far as one can tell without the files."""
    program, *words = shlex.split(line.partition("-m ")[2], comments=True)
    commands.parse(program, importlib.import_module(program).COMMANDS, words)


@pytest.mark.parametrize(
    "line",
    [
        "tasks.image_classification --epochs 10 --batch_size 64",
        "tasks.translation --dataset_path corpora --epochs 20 --batch-size 32",
    ],
)
def test_lines_that_one_types_by_habit_are_trainings(line):
    program, *words = line.split()
    module = importlib.import_module(program)
    command, given = commands.parse(program, module.COMMANDS, words)
    assert command is module.COMMANDS["train"]
    assert (given["epochs"], given["batch_size"]) == (int(words[-3]), int(words[-1]))


def test_the_two_commands_are_there():
    assert "pip install -e . && python -m tasks.image_classification" in LINES
    assert "pip install tox && tox" in LINES


def test_the_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 250


def test_the_chinese_readme_is_in_step():
    """Code, levels of headings and links are the same, in order."""
    english, chinese = (page.replace("README.zh-CN.md", "README.md") for page in (PAGES["README.md"], PAGES["README.zh-CN.md"]))
    for pattern in (r"^```\w+\n.*?^```$", r"^#+(?= )", r"\]\(([^)\s]+)\)", r"^\| --- "):
        assert re.findall(pattern, english, re.M | re.S) == re.findall(pattern, chinese, re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if heading:
            headings = [line.lstrip("# ").lower() for line in path.read_text().splitlines() if line.startswith("#")]
            assert heading in {re.sub(r"[^\w -]", "", h).replace(" ", "-") for h in headings}, f"{page}: {target}"


def test_the_site_has_all_pages():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in leaves(part)]

    pages = leaves(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("room", ["layers", "layers.testing", "zoo", "zoo.generation", "zoo.pretrained", "zoo.deployment"])
def test_the_reference_has_all_files(room):
    """Each once: those of blocks and models on their own pages."""
    files = {f"{room}.{path.stem}".removesuffix(".__init__") for path in (ROOT / room.replace(".", "/")).glob("*.py")}
    pages = [f"docs/reference/{room}.md", *(page for page in PAGES if page.startswith(OWN_PAGES.get(room, "no page")))]
    named = [name for page in pages for name in re.findall(r"^::: (\S+)$", PAGES[page], re.M)]
    assert len(named) == len(set(named))
    assert sorted({*named, room}) == sorted(files)


def test_files_that_are_named_exist():
    """Of paths in code quotes, those that begin with a room."""
    room = r"`((?:layers|zoo|tasks|tests|bench|deploy|docs|notebooks)/[\w./-]+)`"
    named = {path for page in PAGES.values() for path in re.findall(room, page)}
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_every_model_is_in_the_table():
    families = {name.removesuffix("_bn") for name in zoo.names()}
    first_cells = " ".join(line.split("|")[1] for line in PAGES["docs/models.md"].splitlines() if line.startswith("| `"))
    assert families == {name.removesuffix("_bn") for name in re.findall(r"`(\w+)`", first_cells)}
