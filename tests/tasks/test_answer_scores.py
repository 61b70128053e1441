"""Exact match and F1 as SQuAD's official scripts count them, and the threshold of 2.0's."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.answer_scores import best_threshold, exact, f1, measure, normalised, scores, summary


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("The  Cat!", "cat"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("\tone\n two\u00a0three ", "one two three"),
        ("“the” x", "“ ” x"),  # articles go where they stand between other marks, which are no ASCII
        ("a-the", "athe"),  # punctuation goes first
        ("The", ""),
        ("...", ""),
        ("Ünï", "ünï"),
        ("3.14", "314"),
        ("a_b", "ab"),
    ],
)
def test_case_articles_punctuation_and_spaces_do_not_count(answer, same):
    assert normalised(answer) == same


def test_f1_is_of_words_as_often_as_they_are_there():
    assert f1("the cat sat", "cat sat down") == pytest.approx(0.8)
    assert f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert f1("dog", "cat") == exact("dog", "cat") == 0
    assert f1("Cat.", "the cat") == exact("Cat.", "the cat") == 1


def test_an_empty_answer_is_right_where_there_is_none():
    assert f1("", "") == f1("the", "...") == 1
    assert f1("", "cat") == f1("cat", "") == f1("cat", "the") == 0
    assert measure("", []) == (1, 1)
    assert measure("x", []) == (0, 0)
    assert measure("x", ["", "the", "x"]) == (1, 1)
    assert measure("", ["the", "x"]) == (0, 0), "an answer of no words is no gold answer beside another"


def test_the_nearest_of_several_right_answers_counts():
    assert measure("in 1066", ["1066", "in the year 1066"]) == (0, pytest.approx(0.8))
    assert measure("1066", ["year", "1066"]) == (1, 1)


def test_scores_by_whether_there_is_an_answer():
    found = scores(["a cat", "x", "", ""], [["cat"], ["x y"], [], ["z"]])
    assert found == {
        "exact": 0.5, "f1": pytest.approx((1 + 2 / 3 + 1) / 4),
        "has_answer_exact": pytest.approx(1 / 3), "has_answer_f1": pytest.approx(5 / 9), "no_answer_exact": 1, "no_answer_f1": 1,
    }  # fmt: skip
    assert scores(["x"], [["x"]]) == {"exact": 1, "f1": 1}
    assert summary({"no_answer_f1": 0.5}) == "no answer f1 0.5000"
    with pytest.raises(ValueError, match="shorter"):
        scores(["x"], [])


CASES = st.lists(
    st.tuples(st.sampled_from(["x", "x y", "z", ""]), st.integers(-2, 3).map(float), st.sampled_from([[], ["x"], ["x y", "x"]])),
    min_size=1, max_size=7,
)  # fmt: skip


@example([("x", 0.0, ["x"]), ("x", 0.0, [])], "f1")  # no threshold is between equal numbers
@given(CASES, st.sampled_from(["exact", "f1"]))
def test_the_threshold_is_the_best_of_all(cases, key):
    """By trying all of them; what it promises is what applying it gives."""
    found, nothing, right = zip(*cases, strict=True)

    def applied(threshold):
        said = ["" if n > threshold else x for x, n in zip(found, nothing, strict=True)]
        return scores(said, right)[key]

    best = best_threshold(found, nothing, right, key)
    assert best.score == pytest.approx(applied(best.value))
    assert best.score == pytest.approx(max(applied(t) for t in [-3.0, *nothing]))
    assert all(
        applied(t) < best.score - 1e-12 for t in [-3.0, *nothing] if t < best.value - 1e-12 and applied(t) != applied(best.value)
    )


def test_thresholds_come_from_the_numbers_of_the_model():
    """huggingface/transformers 7319: thresholds were chosen on zeros in place of these, so that they were 0 always."""
    found, right = ["x", "y", "z"], [["x"], [], ["z"]]
    assert best_threshold(found, [-5.0, 4.0, 1.5], right) == (1.5, 1)
    assert best_threshold(found, [0.0, 0.0, 0.0], right) == (0.0, pytest.approx(2 / 3))
    assert best_threshold(found, [-5.0, -4.0, -3.0], [[], [], []]) == (-6.0, 1), "below all: no question is answered"
    with pytest.raises(ValueError, match="as many"):
        best_threshold(found, [0.0], right)
