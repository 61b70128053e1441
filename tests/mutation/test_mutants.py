"""The driver of `tox -e mutation`: its bugs, on a module of a few lines, and how it judges them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from itertools import islice

import mutants
import pytest
import score
from nearest import nearest

TOY = b'''"""A docstring: 1 + 1."""
from typing import Any
Kind = list[int] | None
SIZE = 3

def scaled(x: list[int], factor: int = 2, *, keep: bool = True) -> list[int]:
    """Twice 2."""
    require(factor > 0, "factor", factor, "positive")
    if not keep and x is None:
        raise ValueError(f"x must be {1 + 1}")
    x = call(x, factor, size=SIZE - 1)
    rest = x[1:]
    return rest + [-factor]

class Toy:
    def __repr__(self) -> str:
        return "Toy" + str(1)
'''


@pytest.fixture(scope="module")
def found():
    return list(mutants.every([("toy.py", TOY)]))


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("comparison", 'require(factor > 0, "factor", factor, "positive")', 'require(factor >= 0, "factor", factor, "positive")'),
        ("comparison", "if not keep and x is None:", "if not keep and x is not None:"),
        ("arithmetic", "x = call(x, factor, size=SIZE - 1)", "x = call(x, factor, size=SIZE + 1)"),
        ("constant", "SIZE = 3", "SIZE = 6"),
        ("constant", "rest = x[1:]", "rest = x[0:]"),
        ("logic", "if not keep and x is None:", "if not keep or x is None:"),
        ("logic", "if not keep and x is None:", "if keep and x is None:"),
        ("logic", "return rest + [-factor]", "return rest + [factor]"),
        ("statement", 'raise ValueError(f"x must be {1 + 1}")', "pass"),
        ("statement", "x = call(x, factor, size=SIZE - 1)", "pass"),
        ("arguments", "x = call(x, factor, size=SIZE - 1)", "x = call(factor, x, size=SIZE - 1)"),
        ("keyword", "x = call(x, factor, size=SIZE - 1)", "x = call(x, factor, )"),
        ("slice", "rest = x[1:]", "rest = x[1 + 1:]"),
        ("slice", "rest = x[1:]", "rest = x[1:-1]"),
    ],
)
def test_a_bug_of_each_kind(found, kind, old, new):
    assert (kind, old, new) in {(m.kind, m.old, m.new) for m in found}


def test_every_kind_is_described_and_found(found):
    assert {m.kind for m in found} == set(mutants.KINDS)


def test_a_default_is_at_work_from_the_import_on(found):
    assert {m.function for m in found if m.early} == {"", "scaled"}
    assert {m.kind for m in found if m.early} == {"constant"}


def test_texts_annotations_and_first_values_are_left_alone(found):
    changed = {TOY[m.start : m.end] for m in found if m.kind != "statement"}
    assert not any(b'"' in part or b"int" in part for part in changed)
    assert not [m for m in found if "Toy" in m.old or "Kind" in m.old]
    assert not [m for m in found if m.kind == "statement" and m.old.startswith("rest =")]  # what follows could not run


def test_a_sample_compiles_differs_and_is_the_same_for_a_seed():
    one, two, other = (list(mutants.sample([("toy.py", TOY)], seed)) for seed in (0, 0, 1))
    assert one == two != other
    assert len({(m.kind, m.start, m.end) for m in one}) == len(one)  # one of each place
    for mutant in one:
        assert ast.dump(ast.parse(mutant.apply(TOY))) != ast.dump(ast.parse(TOY))


def test_a_single_file_may_be_asked_for():
    ((path, text),) = mutants.sources(score.ROOT, ["layers/masks.py"])
    assert path == "layers/masks.py"
    assert (path, text) in mutants.sources(score.ROOT, ["layers"])


def test_every_listed_equivalent_is_still_in_the_source():
    assert all(score.listed(mutants.sources(score.ROOT, score.PACKAGES)).values())


def test_what_is_no_longer_in_the_source_may_not_be_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(score, "LISTED", tmp_path / "list.toml")
    row = '[[equivalent]]\nfile = "toy.py"\nfunction = "scaled"\nold = "rest = x[1:]"\nnew = "rest = x[{}:]"\nwhy = "none"\n'
    score.LISTED.write_text(row.format(0))
    assert score.listed([("toy.py", TOY)]) == {("toy.py", "scaled", "rest = x[1:]", "rest = x[0:]"): "none"}
    score.LISTED.write_text(row.format(7))
    with pytest.raises(SystemExit, match=r"no longer there:\ntoy.py scaled"):
        score.listed([("toy.py", TOY)])


def test_the_table_counts_a_timeout_as_killed_and_an_equivalent_not_at_all():
    drawn = list(islice(mutants.sample([("layers/toy.py", TOY)], 0), 4))
    rows = [vars(m) | dict(outcome=o) for m, o in zip(drawn, ("killed", "timeout", "survived", "survived"), strict=True)]
    lines = score.table(rows, {drawn[3].identity(): "none"}).splitlines()
    assert "| all | 4 | 2 | 1 | 1 | 1 | 66.7 % |" in lines
    assert [f"  - {drawn[2].old}", f"  + {drawn[2].new}"] == lines[-2:]


SCRIPT = """
import os, sys
from pathlib import Path
import score
from mutants import sample
score.ROOT = Path.cwd()
sys.path.insert(0, os.getcwd())
mutant = next(m for m in sample([("toymodule.py", b"SIZE = 3\\n")], 0))
assert mutant.text in ("2", "4", "6"), mutant  # 0 would be seen by both
loose, tight = ["test_toy.py::test_loose"], ["test_toy.py::test_tight"]
print(score.judge(None, [loose, tight]), score.judge(mutant, [loose]), score.judge(mutant, [loose, tight]))
"""


def test_the_tests_that_import_a_module_are_near():
    own, others = nearest("layers/positions.py")
    assert own == ["tests/layers/test_positions.py", "tests/layers/test_defaults.py"]
    assert "tests/layers/test_rotary.py" in others
    assert nearest("layers/recurrent_kernels.py")[0][0] == "tests/layers/test_recurrent.py"  # by way of layers.recurrent
    assert all(nearest(path) for path, _ in mutants.sources(score.ROOT, score.PACKAGES))


@pytest.mark.processes
def test_a_bug_is_killed_by_a_test_that_sees_it_and_survives_one_that_does_not(tmp_path):
    """In processes of its own, which take the changed module in place of the file."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "toymodule.py").write_bytes(b"SIZE = 3\n")
    (tmp_path / "test_toy.py").write_text(
        "from toymodule import SIZE\n\ndef test_loose():\n    assert SIZE > 0\n\ndef test_tight():\n    assert SIZE == 3\n"
    )
    paths = os.pathsep.join([str(score.ROOT), str(score.ROOT / "tests/mutation")])
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert told.stdout.strip() == "('survived', '') ('survived', '') ('killed', 'test_toy.py::test_tight')", told.stderr


BROKEN = """
import os, sys
from pathlib import Path
import score
score.ROOT = Path.cwd()
for name in sys.argv[1:]:
    try:
        score.collected([[name]], 1)
        print("collected")
    except SystemExit as error:
        print(error)
score.GRACE = score.PATIENCE = 1
print(score.judge(None, [["test_hangs.py"]], 2))
"""


@pytest.mark.processes
def test_what_cannot_be_collected_without_a_bug_kills_none_and_what_hangs_is_stopped(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_sound.py").write_text("def test_sound(): pass\n")
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    (tmp_path / "test_hangs.py").write_text("import time\n\ndef test_hangs():\n    time.sleep(3600)\n")
    paths = os.pathsep.join([str(score.ROOT), str(score.ROOT / "tests/mutation")])
    command = [sys.executable, "-c", BROKEN, "test_sound.py", "test_broken.py", "test_missing.py"]
    told = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert told.stdout.splitlines() == ["collected", "the run has failed", "the run has failed", "('timeout', '')"], told.stderr
    assert "tests cannot be collected without any mutant, killed: test_broken.py" in told.stderr
