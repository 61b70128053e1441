"""What a failure teaches: where it begins, and what usually causes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from broken_blocks import Centred, Counting, Noisy, SecretDropout, Sound, contract
from hypothesis import strategies as st
from torch import nn

from layers.testing import GENERIC, Contract, Twin, tensor
from layers.testing.teaching import USUALLY, first_difference
from layers.weights import WeightMap


class Deep(nn.Module):
    """Three layers in a row, of which the broken one stands in the middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 3), middle, nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def deep(middle, **options):
    return Contract(
        lambda: Deep(middle()),
        arguments={},
        inputs=lambda a: dict(x=tensor("batch time dim", dim=3, time=st.integers(2, 3))),
        outputs=lambda a, s: ("batch", "time", 3),
        name="Deep",
        **options,
    )


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("deterministic", Noisy),
        ("no_global_random", Noisy),
        ("train_eval", SecretDropout),
        ("batch_rows", Centred),
        ("history_independent", Counting),
    ],
)
def test_the_first_sub_module_that_differs_is_named(name, block):
    outcome = deep(lambda: block(3)).check(only=[name], examples=2)[0]
    where, usually = outcome.lessons
    assert where.startswith("first sub-module whose output differs: middle")
    assert usually == f"usually: {USUALLY[name]}"


class Before(Sound):
    def mix(self, x):
        return super().mix(x - x.mean(0))


class After(Sound):
    def mix(self, x):
        x = super().mix(x)
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("block", "where"),
    [
        (Before, "first sub-module whose output differs: linear (Linear), and what it is given differs already: look before it"),
        (After, "no sub-module's output differs: look at what the block does beside calling them"),
    ],
)
def test_the_block_itself_may_be_the_cause(block, where):
    assert first_difference(contract(block).example(), "batch_rows", None) == where


def test_beside_a_twin_the_map_tells_which_belong_together():
    twin = Twin(
        "torch",
        build=lambda a: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)),
        weights=WeightMap(("first", "0"), ("middle", "1"), ("last", "2")),
    )
    (outcome,) = deep(lambda: nn.LayerNorm(3, eps=1e-2), twins=[twin]).check(only=["forward"], examples=2)
    assert outcome.lessons[0] == "first sub-module whose output differs: middle (LayerNorm), from the same input"


def test_what_cannot_be_told_is_left_out():
    class Stubborn(Sound):
        def mix(self, x):
            raise TypeError("no such thing")

    assert not first_difference(contract(Stubborn).example(), "deterministic", None)
    assert not first_difference(contract(Sound).example(), "gradcheck", None)


def test_a_block_that_cannot_be_built_is_a_failure_and_no_more():
    class Unbuilt(Sound):
        def __init__(self, **arguments):
            raise RuntimeError("no such width")

    (outcome,) = contract(Unbuilt).check(only=["train_eval"], examples=2)
    assert outcome.how == "failed"
    assert outcome.message.startswith("RuntimeError: no such width")
    assert outcome.lessons == (f"usually: {USUALLY['train_eval']}",)


@pytest.mark.processes
def test_the_failures_that_the_docs_show_are_what_is_printed(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "check-your-block.md").read_text()
    code, shown = re.search(r"```python\n([^`]*class Dropping.*?)```.*?```text\n(.*?)```", page, re.S).groups()
    (tmp_path / "test_three.py").write_text(code)
    names = "(Block and forward and torch) or (Centred and batch_rows) or (Dropping and deterministic)"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=few", "-k", names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = [line for line in shown.splitlines() if not line.startswith(("layers.testing", "smallest"))]  # hypothesis's choice
    lines = [line.partition(" --reproduce")[0] for line in told]
    assert len([line for line in lines if line.startswith("usually: ")]) == 3
    assert not [line for line in lines if line not in done.stdout], done.stdout


def test_every_property_has_a_usual_cause():
    assert USUALLY.keys() == {p.name for p in GENERIC}
