"""Short names: none too wide, none like another, and as much of each as there is room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.names import plain, shortened, width

LONG = ["x" * 19, "x" * 20, "y" * 30, "猫" * 9, "猫" * 10]
PIECES = st.sampled_from(["", "a", "b", "ab", "0", "…", "…1", "…2", "\n", "\udcff", *LONG])
NAMES = st.one_of(st.lists(PIECES, max_size=5).map("".join), st.text(st.characters(), max_size=30))


@given(st.lists(NAMES, max_size=30), st.integers(12, 24))
def test_names_that_differ_stay_different_and_fit(names, limit):
    found = shortened(names, limit)
    assert len(found) == len(names)
    assert len(set(zip(names, found, strict=True))) == len(set(names)) == len(set(found))
    for name, short in zip(names, found, strict=True):
        assert width(short) <= limit
        assert plain(short) == short
        assert short == plain(name) or "…" in short
    assert shortened(names, limit) == found


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "Zs"], include_characters=" "), max_size=10), max_size=9))
def test_names_that_fit_are_left_alone(names):
    assert shortened(names) == names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["great white shark, man-eater, man-eating shark", "ant"], ["great white shark, …", "ant"]),
        (["synthetic_dataset_class_a", "synthetic_dataset_class_b"], ["synthetic…et_class_a", "synthetic…et_class_b"]),
        (
            ["photographs_of_the_cat_in_the_garden", "photographs_of_the_dog_in_the_garden"],
            ["photo…cat_in_the_ga…", "photo…dog_in_the_ga…"],
        ),
        (["x" * 30, "x" * 29, "x" * 28], ["xxxxx…x", "xxxxxxxxxxxxxxxxxx…1", "xxxxxxxxxxxxxxxxxx…2"]),
        (["a" * 25, "a" * 19 + "…"], ["aaaaaaaaa…aaaaaaaaaa", "aaaaaaaaaaaaaaaaaaa…"]),
        (["猫" * 12], ["猫猫猫猫猫猫猫猫猫…"]),
        (["a\tb\n\x7f", "\udce4"], ["a␉b␊�", "�"]),
        (["\x07", "␇"], ["␇…1", "␇…2"]),
        (["\x07", "␇", "␇…1"], ["␇…2", "␇…3", "␇…1"]),
    ],
)
def test_where_a_name_is_cut(names, expected):
    """At its end; where others would look the same then, in its middle, or before the difference; in the end by number."""
    assert shortened(names) == expected
