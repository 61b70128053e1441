"""The page of a run, `pytest --contract-report`: what it holds, of several processes too, and that its HTML is sound."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from layers.testing.page import Told, page, text

BLOCKS = """
import datetime
from torch import nn
from layers.testing import Contract, KnownFailure, tensor

class Twice(nn.Module):
    def forward(self, x):
        return 2 * x

class Broken(nn.Module):
    def forward(self, x):
        if x.ndim:
            raise RuntimeError("<script>alert('x & y')</script> \\x1b[31mred\\x1b[0m \\x00")

def promise(block, **options):
    return Contract(block, {}, lambda a: dict(x=tensor("b dim")), lambda a, s: ("b", "dim"), foreign=True, **options)

known = KnownFailure("<bent>", "pytorch#1", "2.6", datetime.date(2999, 1, 1))
sound = promise(Twice, without={"finite": "not <asked> for"})
wrong = promise(Broken, failing={"shape": known})
"""
ARGUMENTS = ("-p", "no:cacheprovider", "--hypothesis-profile=few", "-k", "smoke or shape or finite or parameters_used")
ALONE = ("br", "hr", "img", "input", "link", "meta")


class Document(HTMLParser):
    """Elements in order: (tag, attributes, text in them). Raises where one is closed that is not open, or left open."""

    def __init__(self, source):
        super().__init__()
        self.found, self.open = [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])
        if tag not in ALONE:
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag):
        return [element for element in self.found if element[0] == tag]


@pytest.mark.processes
@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_run_writes_its_page(processes, tmp_path):
    (tmp_path / "test_block.py").write_text(BLOCKS)
    (tmp_path / "test_mistake.py").write_text("raise TypeError('<not> collected')")
    command = [sys.executable, "-m", "pytest", *ARGUMENTS, "-n", processes, "--continue-on-collection-errors"]
    done = subprocess.run([*command, "--contract-report", "new folder/report.html"], cwd=tmp_path, capture_output=True, text=True)
    assert "new folder/report.html" in done.stdout, done.stdout + done.stderr
    document = Document((tmp_path / "new folder" / "report.html").read_text())
    assert [e[2] for e in document.all("th") if e[1].get("scope") == "row"] == [
        "test_block.py::Broken",
        "test_block.py::Twice",
        "seconds",
    ]
    cells = {e[1]["title"].partition(":")[0] + "/" + e[1]["class"] for e in document.all("td") if "title" in e[1]}
    assert cells == {"smoke/fail", "shape/known", "parameters_used/skip", "finite/skip",
                     "smoke/pass", "shape/pass", "finite/out"}  # fmt: skip
    reasons = [e[2] for e in document.all("li")]
    assert "test_block.py::Twice::finite: not <asked> for" in reasons
    assert "test_block.py::Twice::parameters_used: parameters_used cannot be checked for Twice: it has no parameters" in reasons
    assert any(r.startswith("test_block.py::Broken::shape: <bent> (pytorch#1, 2.6, until 2999") for r in reasons)
    failure, mistake = document.all("details")
    assert "<script>alert('x & y')</script> red \N{REPLACEMENT CHARACTER}" in failure[2]
    assert "smallest configuration: Broken() on x[b=" in failure[2]
    assert "TypeError: <not> collected" in mistake[2]
    assert not document.all("script")


def told(how, message="", name="Scale::forward[torch]"):
    return Told(f"test_block.py::{name}", "forward", how, message, 1.25)


def test_of_several_twins_the_worst_counts_and_every_link_leads_somewhere():
    tests = [told("pass"), told("fail", "off\nby one", "Scale::forward[jax]"), told("out", "why", "Other::forward")]
    document = Document(page(tests))
    fail, out = (e for e in document.all("td") if e[1].get("class") in ("fail", "out"))
    assert fail[1]["title"] == "forward[torch]: pass, 1.2 s\nforward[jax]: fail, 1.2 s: off"
    assert (fail[2], out[2]) == ("fail", "out")
    targets = {e[1]["href"].removeprefix("#") for e in document.all("a")}
    assert targets == {e[1]["id"] for e in document.found if "id" in e[1]}
    assert [e[2] for e in document.all("td") if e[1].get("class") == "seconds"] == ["2.5", "1.2", "3.8", "3.8"]
    assert "2 blocks, 3 properties: 1 failed, 0 known failures, 1 opted out, 0 skipped, 1 passed" in document.all("p")[0][2]


def test_the_page_is_whole_readable_in_the_dark_and_by_others():
    source = page([told("pass")])
    document = Document(source)
    assert not re.search(r"https?://|<script|@import|url\(", source)
    assert "prefers-color-scheme: dark" in source
    assert document.all("html")[0][1] == {"lang": "en"}
    assert document.all("caption")
    assert all(e[1].get("scope") in ("row", "col") for e in document.all("th"))
    assert Document(page([])).all("h1")


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_from_their_colours():
    found = re.findall(r"--(\w+): (#\w+);", page([]))
    full = [(name, "#" + "".join(2 * c for c in colour[1:]) if len(colour) == 4 else colour) for name, colour in found]
    for scheme in (full[:8], full[8:]):
        colours = dict(scheme)
        assert all(contrast(colours["ink"], colours[name]) >= 7 for name in colours.keys() - {"ink", "line"})


def test_text_is_escaped():
    assert text('a < b & "c" \x1b[1;31mred\x1b[0m\x07\ud800\n') == "a &lt; b &amp; &quot;c&quot; red\ufffd\ufffd\n"


def reported(tmp_path, name):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--contract-report", name]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".", "must be a file to write, "),
        ("test_block.py/new/report.html", ".*html cannot be written: .*test_block.py is no folder"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_run(name, why, tmp_path):
    (tmp_path / "test_block.py").write_text("")
    done = reported(tmp_path, name)
    assert done.returncode == 4
    assert re.search(f"--contract-report {why}", done.stderr)


@pytest.mark.processes
def test_a_page_that_cannot_be_written_in_the_end_is_a_line(tmp_path):
    (tmp_path / "test_block.py").write_text("import pathlib\n\ndef test_it():\n    pathlib.Path('report.html').mkdir()\n")
    done = reported(tmp_path, "report.html")
    assert done.returncode == 0
    assert re.search("contracts: the page was not written: .*report.html", done.stdout)
    assert "1 passed" in done.stdout
