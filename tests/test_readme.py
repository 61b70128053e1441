"""Everything that README.md shows runs: Python blocks as they stand, and the commands as far as their options go."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from tasks import commands

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
LINES = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line]
COMMANDS = [line for line in LINES if "-m tasks." in line]


def title(code):
    """The first line that is not an import, for the test's name."""
    return next(line for line in code.splitlines() if line and not line.startswith(("import", "from")))[:40]


@pytest.mark.processes
@pytest.mark.parametrize("code", PYTHON, ids=title)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    """Each by itself in an empty folder. One that starts with the name of a test file is such a file."""
    monkeypatch.chdir(tmp_path)
    if name := re.match(r"# (test_\w+\.py)\n", code):
        Path(name[1]).write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--hypothesis-profile=dev", name[1]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\d\d passed", done.stdout), "the contract must become tests"
    else:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_know_the_options_that_are_shown(line):
    """And the values that they are given, as far as one can tell without the files."""
    program, *words = shlex.split(line.partition("-m ")[2], comments=True)
    commands.parse(program, importlib.import_module(program).COMMANDS, words)


def test_the_two_commands_are_there():
    assert "pip install -e . && python -m tasks.image_classification" in LINES
    assert "pip install tox && tox" in LINES


def test_every_model_is_in_the_table():
    table = README.partition("## Models")[2].partition("\n##")[0]
    families = {name.removesuffix("_bn") for name in zoo.names()}
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert families == {name.removesuffix("_bn") for name in re.findall(r"`(\w+)`", first_cells)}
