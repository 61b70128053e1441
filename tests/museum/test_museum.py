"""Every exhibit's check is green without its bug and red with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from catalogue import EXHIBITS, page
from exhibit import Contract, Missed, broken, check, derandomized, names, plain, proof, rewritten
from hypothesis import settings

pytestmark = pytest.mark.filterwarnings("ignore")  # which warnings a check may cause, its own file says
UNFIT = r"Error\(s\) in loading state_dict"
"""What torch says, in a `RuntimeError`, where a twin's weights do not fit."""


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name.replace(" ", "-"))
def test_the_bug_is_caught(exhibit):
    check(exhibit, limit=2)
    with broken(exhibit), pytest.raises((AssertionError, ValueError, RuntimeError)) as caught:  # `Mismatch` is the first
        check(exhibit)
    assert not isinstance(caught.value, RuntimeError) or re.match(UNFIT, str(caught.value)), caught.value


def test_names_are_unique_and_threads_are_named():
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    for exhibit in EXHIBITS:
        assert exhibit.seen, exhibit.name
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in exhibit.seen), exhibit.name
        assert exhibit.story.endswith("."), exhibit.name
        assert 0 < exhibit.examples <= 40, exhibit.name


@pytest.mark.parametrize("path", sorted({exhibit.proof.partition(":")[0] for exhibit in EXHIBITS}))
def test_every_check_exists(path):
    for exhibit in (exhibit for exhibit in EXHIBITS if exhibit.proof.startswith(f"{path}:")):
        found = proof(exhibit)
        if exhibit.property:
            assert isinstance(found, Contract)
            assert exhibit.property in names(found)
            assert exhibit.property not in found.without, exhibit.name
        else:
            assert found.__name__.startswith("test_")


def test_a_function_is_as_it_was_afterwards():
    one = EXHIBITS[0]
    before = plain(one.function).__code__
    with pytest.raises(Missed, match="False"), broken(one):
        raise Missed(plain(one.function).__code__ is before)
    assert plain(one.function).__code__ is before


def test_others_draw_as_before():
    before = settings.default
    with derandomized():
        assert settings.default.derandomize
        assert settings.default is not before
    assert settings.default is before


def test_what_does_not_stand_once_is_refused():
    with pytest.raises(LookupError, match="0 times"):
        rewritten(replace(EXHIBITS[0], old="no such source"))
    with pytest.raises(LookupError, match="times"):
        rewritten(replace(EXHIBITS[0], old=" "))


def test_the_page_is_up_to_date():
    """Written by `PYTHONPATH=.:tests/shared:tests/museum python -m catalogue`."""
    assert (Path(__file__).parents[2] / "docs" / "museum.md").read_text(encoding="utf-8") == page()
