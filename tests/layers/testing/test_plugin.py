"""The pytest plugin: how contracts are collected, named, counted, reported and repeated."""

from __future__ import annotations

import re

import pytest

from layers.testing import GENERIC

pytest_plugins = ["pytester"]

BLOCK = """
import datetime, torch
from hypothesis import strategies as st
from torch import nn
from layers.checks import require_axes
from layers.testing import Contract, KnownFailure, Twin, tensor
from layers.weights import WeightMap

class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim, self.weight, self.offset = dim, nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, x):
        require_axes(x, "x", "batch dim", dim=self.dim)
        return x * self.weight + self.offset * FACTOR

class Reference(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
    def forward(self, x):
        return x * self.gain + self.bias

scale = Contract(
    Scale,
    arguments=dict(dim=st.integers(1, 9)),
    inputs=lambda a: dict(x=tensor("batch dim", dim=a.dim)),
    outputs=lambda a, s: ("batch", a.dim),
    twins=[Twin("plain", build=lambda a: Reference(a.dim), weights=WeightMap(("weight", "gain"), ("offset", "bias")))],
    invalid=[(dict(dim=0), "dim")],
    OPTIONS
)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """pytest on BLOCK in a process of its own: in this one it would forget modules that torch can import only once."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # versions of BLOCK must not share a cache

    def make(*arguments, factor="1.0", options=""):
        pytester.makepyfile(test_block=BLOCK.replace("FACTOR", factor).replace("OPTIONS", options))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--hypothesis-profile=dev", *arguments)

    return make


def test_one_test_for_each_property_and_twin(run):
    result = run("--collect-only", "-q")
    names = [line.strip() for line in result.outlines if "::" in line]
    assert len(names) == len(GENERIC)
    assert "test_block.py::Scale::backward[plain]" in names
    assert "test_block.py::Scale::gradcheck" in names


def test_a_sound_block_passes_and_is_counted(run):
    result = run("-k", "not compile and not export")
    result.assert_outcomes(passed=len(GENERIC) - 2, deselected=2)
    result.stdout.fnmatch_lines([f"1 blocks, {len(GENERIC)} properties, 0 opted out, 0 known failures"])


def test_keyword_and_node_id_select_properties(run):
    run("-k", "backward").assert_outcomes(passed=1, deselected=len(GENERIC) - 1)
    run("test_block.py::Scale::forward[plain]").assert_outcomes(passed=1)


def test_a_failure_says_what_and_how_to_repeat_it(run):
    result = run("-k", "backward", factor="(1 + 1e-9)")
    result.assert_outcomes(failed=1, deselected=len(GENERIC) - 1)
    text = result.stdout.str()
    assert re.search(r"gradient \(eval\)\.bias: error [\d.e-]+ of the reference's root mean square, allowed [\d.e-]+", text)
    assert re.search(r"smallest configuration: Scale\(dim=1\) on x\[batch=\d, dim=1\], seed 0", text)
    again = re.search(r"again: pytest 'test_block.py::Scale::backward\[plain\]' --reproduce '(.+)'", text)
    repeated = run("test_block.py::Scale::backward[plain]", "--reproduce", again[1], factor="(1 + 1e-9)")
    repeated.assert_outcomes(failed=1)
    assert "seed 0" in repeated.stdout.str()


def test_an_error_shows_the_line_of_the_block(run):
    text = run("-k", "deterministic", factor="nonsense").stdout.str()
    assert "NameError: name 'nonsense' is not defined" in text
    assert "return x * self.weight + self.offset * nonsense" in text


def test_opting_out_needs_a_reason_and_is_counted(run):
    result = run("-k", "gradcheck", "-rs", options='without={"gradcheck": "too smooth to be worth it"},')
    result.assert_outcomes(skipped=1, deselected=len(GENERIC) - 1)
    result.stdout.fnmatch_lines(["1 blocks, * 1 opted out, *", "SKIPPED*opted out: too smooth to be worth it"])
    assert "must give a reason" in run(options='without={"gradcheck": " "},').stdout.str()
    assert "no property named gradchek" in run(options='without={"gradchek": "typo"},').stdout.str()


KNOWN = 'failing={"forward": KnownFailure("off by a hair", "pytorch#1", "2.6", datetime.date(%s, 1, 1))},'


def test_a_known_failure_is_strict_and_expires(run):
    broken = run("-k", "forward", factor="1.1", options=KNOWN % 2999)
    broken.assert_outcomes(xfailed=1, deselected=len(GENERIC) - 1)
    broken.stdout.fnmatch_lines(["*off by a hair (pytorch#1, 2.6, until 2999-01-01)"])
    mended = run("-k", "forward", options=KNOWN % 2999)
    mended.assert_outcomes(failed=1, deselected=len(GENERIC) - 1)
    assert "known failure passes, remove it" in mended.stdout.str()
    expired = run("-k", "forward", factor="1.1", options=KNOWN % 2001)
    assert "known failure expired on 2001-01-01" in expired.stdout.str()
