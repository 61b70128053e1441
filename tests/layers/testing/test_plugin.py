"""The pytest plugin: how contracts are collected, named, counted, reported and repeated.

Each run is a process of its own: in this one it would forget modules that torch can import only once.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from layers.testing import GENERIC
from layers.testing.items import QUICK

pytestmark = pytest.mark.processes
OTHERS = {"sizes_agree", "random_law", "random_rows", "heads_masked", "defaults"}
APPLIED = [*({p.name for p in GENERIC} - OTHERS), "exercised"]  # of a block with one input, that draws nothing

BLOCKS = """
import datetime, torch
from hypothesis import strategies as st
from torch import nn
from layers.checks import require_axes
from layers.testing import Contract, KnownFailure, Twin, tensor
from layers.weights import WeightMap

class Scale(nn.Module):
    factor = 1.0
    def __init__(self, dim):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim, self.weight, self.offset = dim, nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, x):
        require_axes(x, "x", "batch dim", dim=self.dim)
        return x * self.weight + self.offset * self.factor

class Reference(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, x):
        return x * self.gain + self.bias

class OffByAHair(Scale):
    factor = 1 + 1e-9

class Off(Scale):
    factor = 1.1

class Nonsense(Scale):
    factor = object()

class Twice(nn.Module):
    def forward(self, x):
        return 2 * x

def promise(block, name, **options):
    return Contract(
        block,
        arguments=dict(dim=st.integers(1, 9)),
        inputs=lambda a: dict(x=tensor("batch dim", dim=a.dim)),
        outputs=lambda a, s: ("batch", a.dim),
        twins=[Twin("plain", build=lambda a: Reference(a.dim), weights=WeightMap(("weight", "gain"), ("offset", "bias")))],
        invalid=[(dict(dim=0), "dim")],
        name=name,
        **options,
    )

def known(year):
    return {"forward": KnownFailure("off by a hair", "pytorch#1", "2.6", datetime.date(year, 1, 1))}
"""
SOUND = (
    BLOCKS
    + """
sound = promise(Scale, "Sound")
"""
)
MANY = (
    SOUND
    + """
hair, nonsense = promise(OffByAHair, "OffByAHair"), promise(Nonsense, "Nonsense")
skipped = promise(Scale, "Skipped", without={"gradcheck": "too smooth to be worth it"})
gate = promise(Nonsense, "Gate")
bare = Contract(
    Twice,
    arguments={},
    inputs=lambda a: dict(x=tensor("batch dim")),
    outputs=lambda a, s: ("batch", "dim"),
    without={"bad_argument": "there is none", "sizes_agree": "there is one input", "bad_input": "it takes any shape"},
    name="Bare",
)
failing, mended, expired = (
    promise(Off, "Failing", failing=known(2999)),
    promise(Scale, "Mended", failing=known(2999)),
    promise(Off, "Expired", failing=known(2001)),
)
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run pytest on files in a folder of their own; gives its output."""

    def make(*arguments, **files):
        folder = tmp_path_factory.mktemp("user")
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=dev", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.stdout + done.stderr

    return make


@pytest.fixture(scope="module")
def told(run):
    """What a run of two workers says of sound blocks, broken ones and files that cannot be collected."""
    mistakes = {
        "test_blank": BLOCKS + 'blank = promise(Scale, "Blank", without={"gradcheck": " "})',
        "test_typo": BLOCKS + 'typo = promise(Scale, "Typo", without={"gradchek": "typo"})',
        "test_other": BLOCKS + 'other = promise(Scale, "Other", without={"gradcheck": "of another file"})',
    }
    chosen = (
        "Sound or deterministic or (backward and Hair) or forward or gradcheck or (Gate and (smoke or shape or finite)) or Bare"
    )
    only = ("-k", f"({chosen}) and not compile and not export", "-n", "2", "-rA", "-v", "--continue-on-collection-errors")
    return run(*only, test_block=MANY, **mistakes)


def outcomes(text):
    """Test -> PASSED, FAILED, SKIPPED or XFAIL."""
    return {test: how for how, test in re.findall(r"\[gw\d\] \[ *\d+%\] (\w+) (\S+)", text)}


def test_one_test_for_each_property_and_twin(run):
    names = [line.strip() for line in run("--collect-only", "-q", test_block=SOUND).splitlines() if "::" in line]
    assert len(names) == len(APPLIED)
    assert "test_block.py::Sound::backward[plain]" in names
    assert "test_block.py::Sound::gradcheck" in names
    assert "test_block.py::Sound::exercised" in names
    foreign = BLOCKS + 'foreign = promise(Scale, "Foreign", foreign=True)\nours = promise(Scale, "Ours")'
    collected = run("--collect-only", "-q", test_block=MANY, test_foreign=foreign).splitlines()
    names = [line.strip() for line in collected if "::exercised" in line]
    assert "test_foreign.py::Ours::exercised" in names
    assert "test_foreign.py::Foreign::exercised" not in names
    assert "test_block.py::Sound::exercised" in names
    assert "test_block.py::Mended::exercised" not in names  # another contract of the same block


def test_a_sound_block_passes(told):
    found = [how for test, how in outcomes(told).items() if "::Sound::" in test]
    assert found == ["PASSED"] * (len(APPLIED) - 2)  # but compile and export, which were not selected


def test_quick_selects_few_properties_and_draws_few_examples(run):
    text = run("-m", "quick", "-v", "--hypothesis-show-statistics", test_block=SOUND)
    assert sorted(re.findall(r"::(\w+)(?:\[plain\])? PASSED", text)) == sorted(QUICK)
    assert f"1 blocks, {len(QUICK)} properties, 0 opted out, 0 known failures" in text


def test_a_failure_says_what_and_how_to_repeat_it(told, run):
    assert outcomes(told)["test_block.py::OffByAHair::backward[plain]"] == "FAILED"
    assert re.search(r"gradient \(eval\)\.bias: error [\d.e-]+ of the reference's root mean square, allowed [\d.e-]+", told)
    assert "first sub-module whose output differs" not in told  # there is none
    assert "usually: a `detach`, a write in place" in told
    assert re.search(r"smallest configuration: OffByAHair\(dim=1\) on x\[batch=\d, dim=1\], seed 0", told)
    test, blob = re.search(r"again: pytest '(test_block.py::OffByAHair::backward\[plain\])' --reproduce '(.+)'", told).groups()
    repeated = run(test, "--reproduce", blob, test_block=MANY)
    assert "1 failed" in repeated
    assert "seed 0" in repeated


def test_an_error_shows_the_line_of_the_block(told):
    assert "TypeError: unsupported operand type(s) for *: 'Parameter' and 'object'" in told
    assert "return x * self.weight + self.offset * self.factor" in told


def test_opting_out_needs_a_reason_and_is_counted(told):
    """In the summary of a run of several processes too."""
    assert outcomes(told)["test_block.py::Skipped::gradcheck"] == "SKIPPED"
    assert "opted out: too smooth to be worth it" in told
    assert re.search(r"\d+ blocks, \d+ properties, 3 opted out, 3 known failures", told)
    assert "  test_block.py::Skipped::gradcheck: too smooth to be worth it" in told
    assert "without['gradcheck'] must give a reason" in told
    assert "no property named gradchek" in told


def test_a_property_that_does_not_apply_may_be_opted_out_of(told):
    found = outcomes(told)
    assert found["test_block.py::Bare::deterministic"] == "PASSED"
    assert found["test_block.py::Bare::parameters_used"] == "SKIPPED"
    assert "parameters_used cannot be checked for Bare: it has no parameters" in told
    assert not {name for name in found if name.startswith("test_block.py::Bare::") and name.endswith(("argument", "agree"))}


def test_what_cannot_be_evaluated_is_one_failure(told):
    found = {test: how for test, how in outcomes(told).items() if "::Gate::" in test}
    assert found.pop("test_block.py::Gate::smoke") == "FAILED"
    assert len(found) >= 5
    assert set(found.values()) == {"SKIPPED"}
    assert "Gate::smoke fails: TypeError: unsupported operand type(s) for *" in told


def test_only_contracts_and_only_for_a_time(run):
    more = "\ndef test_plain():\n    raise AssertionError('not to be run')\n"
    text = run("--contracts-only", "--contract-seconds", "0", "-rs", "-v", test_block=SOUND + more)
    assert f"1 passed, {len(APPLIED) - 1} skipped, 1 deselected" in text
    assert "the tests of Sound have had their 0 seconds" in text
    assert f"{len(APPLIED) - 1} properties were not checked for lack of time" in text


def test_a_known_failure_is_strict_and_expires(told):
    found = {test.split("::")[1]: how for test, how in outcomes(told).items() if test.endswith("::forward[plain]")}
    assert (found["Failing"], found["Mended"], found["Expired"]) == ("XFAIL", "FAILED", "FAILED")
    assert "off by a hair (pytorch#1, 2.6, until 2999-01-01)" in told
    assert "known failure passes, remove it" in told
    assert "known failure expired on 2001-01-01" in told


def test_the_run_says_where_the_time_went(told):
    line = re.search(r"seconds by property: (.+)", told)[1]
    seconds = [float(part.split()[1]) for part in line.split(", ")]
    assert {part.split()[0] for part in line.split(", ")} >= {"forward", "backward", "gradcheck", "finite"}
    assert seconds == sorted(seconds, reverse=True)


def test_a_session_without_contracts_imports_neither_torch_nor_the_kit():
    lines = (
        "import sys, layers.testing.plugin, layers.testing; sys.exit(bool({'torch', 'hypothesis', 'einops'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", lines]).returncode == 0
