"""The notebooks run as scripts, and each has what a notebook of this project has, in both languages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NEWEST = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
SECONDS = 1800
"""After which a notebook hangs; on one quiet thread it takes at most 20."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path):
    """(is it text, its text) for all cells, without the comment signs of text."""
    found = []
    for cell in re.split(r"^# %%", path.read_text(), flags=re.M)[1:]:
        head, _, body = cell.partition("\n")
        text = "markdown" in head
        found.append((text, re.sub(r"^# ?", "", body, flags=re.M).strip() if text else body.strip()))
    return found


def languages(text):
    """The English part of a cell, and the Chinese one, which begins at the first paragraph with a Chinese character."""
    paragraphs = text.split("\n\n")
    first = next((n for n, paragraph in enumerate(paragraphs) if CHINESE.search(paragraph)), len(paragraphs))
    return "\n\n".join(paragraphs[:first]), "\n\n".join(paragraphs[first:])


def test_there_are_notebooks():
    assert [path.stem.partition("-")[0] for path in NOTEBOOKS] == [str(n + 1) for n in range(len(NOTEBOOKS))]
    assert NOTEBOOKS


@pytest.mark.processes
@pytest.mark.skipif(not NEWEST, reason="a minute or two: on the newest torch alone")
@each
def test_it_runs(path, tmp_path):
    """In an empty folder, in which it leaves nothing of its own, on one thread."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    variables.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {".hypothesis"}  # its cache of constants


@each
def test_it_begins_with_a_question(path):
    text, body = cells(path)[0]
    english, chinese = languages(body)
    assert text
    assert re.match(rf"# {path.stem[0]}\. ", english)
    assert english.endswith("?"), english
    assert chinese.endswith("？"), chinese  # noqa: RUF001


@each
def test_all_text_is_in_both_languages(path):
    """English first; as many headings, items and code words in Chinese, and the same threads."""
    for text, body in cells(path):
        if text:
            english, chinese = languages(body)
            assert english, body
            assert len(CHINESE.findall(chinese)) >= 10, body
            assert not CHINESE.search(english), body
            for pattern in (r"^#+ ", r"^- ", r"`[^`]+`", r"[\w./-]+#\d+"):
                assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), (pattern, body)


@each
def test_it_has_three_exercises_with_solutions_that_are_tested(path):
    found = cells(path)
    for n in (1, 2, 3):
        places = [i for i, (text, body) in enumerate(found) if text and body.startswith(f"## Exercise {n}\n")]
        assert len(places) == 1
        text, solution = found[places[0] + 1]
        assert not text
        assert solution.startswith(f"# Solution {n}\n")
        assert re.search(r"^\s*assert ", solution, re.M)


@each
def test_each_section_shows_a_picture(path):
    """All that claim something: those between the question at the start and the exercises."""
    helpers = [
        name for name, body in re.findall(r"^def (\w+)\(.*?\):\n((?: .*\n|\n)+)", path.read_text(), re.M) if "plt.show()" in body
    ]
    shows = re.compile("|".join([r"plt\.show\(\)", *(rf"^{name}\(" for name in helpers)]), re.M)
    sections = []
    for text, body in cells(path):
        if text and body.startswith("## "):
            sections.append([body.partition("\n")[0], False])
        elif not text and sections and shows.search(body):
            sections[-1][1] = True
    claims = [section for section in sections if not re.match("## (Exercise|What commonly)", section[0])]
    assert len(claims) >= 3
    assert [heading for heading, shown in claims if not shown] == []


@each
def test_it_shows_pictures_and_ends_with_what_goes_wrong(path):
    found = cells(path)
    assert sum("plt.show()" in body for text, body in found if not text) >= 3
    text, body = found[-1]
    assert text
    assert body.startswith("## What commonly goes wrong\n")
    assert len(re.findall(r"\w#\d+", languages(body)[0])) >= 3


@each
def test_it_is_short_and_listed(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 370
    assert f"notebooks/{path.name}" in (ROOT / "docs" / "index.md").read_text()
