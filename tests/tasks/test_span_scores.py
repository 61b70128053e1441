"""Spans and their scores, against seqeval's published examples, and against the definitions by brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.spans import BadTag, Span, follows, scheme_of, tag_set, to_spans, to_tags
from tasks.span_scores import Found, count, entities, macro_f1, strict_entities, table, total

TRUE = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
SAID = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


def by_type(true, said, read=entities):
    return count(map(read, true), map(read, said))


def test_the_example_of_seqevals_readme():
    found = by_type(TRUE, SAID)
    assert found == {"MISC": Found(0, 1, 1), "PER": Found(1, 1, 1)}
    assert total(found).precision == total(found).recall == total(found).f1 == 0.5
    assert macro_f1(found) == 0.5
    assert [*table(found)][1:] == [
        "MISC  0.0000     0.0000  0.0000  1",
        "PER   1.0000     1.0000  1.0000  1",
        "all   0.5000     0.5000  0.5000  2",
    ]


def test_the_example_of_seqevals_strict_mode():
    true, said = [["B-NP", "I-NP", "O"]], [["I-NP", "I-NP", "O"]]
    assert total(by_type(true, said)).f1 == 1
    assert total(by_type(true, said, lambda tags: strict_entities(tags, "iob2"))) == Found(0, 0, 1)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-A I-B B-B I-A", [("A", 0, 1), ("B", 1, 2), ("B", 2, 3), ("A", 3, 4)]),
        ("B-A E-A I-A S-A I-A E-A E-A", [("A", 0, 2), ("A", 2, 3), ("A", 3, 4), ("A", 4, 6), ("A", 6, 7)]),
        ("O O", []),
        ("", []),
    ],
)
def test_tags_are_read_as_seqeval_does_by_default(tags, spans):
    assert entities(tags.split()) == spans


@pytest.mark.parametrize(
    ("scheme", "tags", "spans"),
    [
        ("iob2", "I-A B-A I-B I-B", [("A", 1, 2)]),
        ("iobes", "B-A I-A S-B B-A E-A E-B", [("B", 2, 3), ("A", 3, 5)]),
        ("iobes", "B-A O U-A B-A L-A", [("A", 2, 3), ("A", 3, 5)]),
        ("iob1", "B-A I-A B-A I-B", [("A", 1, 2), ("A", 2, 3), ("B", 3, 4)]),
        ("iob1", "I-A B-A B-B", [("A", 0, 1)]),
    ],
)
def test_the_strict_mode_drops_what_the_scheme_has_not(scheme, tags, spans):
    """Found with seqeval 1.2.2, which gave the same on 60,000 drawn rows."""
    assert strict_entities(tags.split(), scheme) == spans


def test_nothing_found_and_nothing_there():
    assert total(count([], [])) == Found(0, 0, 0)
    assert Found(0, 0, 0).f1 == Found(0, 0, 3).precision == Found(0, 3, 0).recall == 0
    with pytest.raises(ValueError, match="shorter"):
        count([[]], [])


# ---------------------------------------------------------------------------------------------------------------------- schemes

rows = st.lists(st.tuples(st.sampled_from(["", "", "A", "B"]), st.integers(1, 3)), max_size=6)


def spans_of(drawn):
    found, start = [], 0
    for kind, length in drawn:
        found += [Span(kind, start, start + length)] if kind else []
        start += length
    return found, start


@given(rows)
def test_every_scheme_reads_what_it_has_written(drawn):
    spans, length = spans_of(drawn)
    for scheme in ("iob2", "iob1", "iobes"):
        tags = to_tags(spans, length, scheme)
        assert to_spans(tags, scheme) == spans
        assert strict_entities(tags, scheme) == spans
        assert entities(tags) == spans
    merged = to_spans(to_tags(spans, length, "io"), "io")
    assert {n for span in merged for n in range(*span[1:])} == {n for span in spans for n in range(*span[1:])}
    assert all(one.type != other.type or one.end < other.start for one, other in pairwise(merged))


@given(rows)
def test_the_scheme_is_found(drawn):
    spans, length = spans_of(drawn)
    for scheme in ("iob2", "iob1", "iobes", "io"):
        tags = to_tags(spans, length, scheme)
        found = scheme_of([tags])
        assert to_spans(tags, found) == to_spans(tags, scheme)


@pytest.mark.parametrize(
    ("scheme", "tags", "place", "words"),
    [
        ("iob2", "O I-A", 1, "'I-A' begins a span"),
        ("iob2", "B-A S-A", 1, "no tag of iob2"),
        ("iob2", "A", 0, "no tag of iob2"),
        ("iob2", "B-", 0, "no tag of iob2"),
        ("iob1", "O B-A", 1, "follows no span of its type"),
        ("iobes", "B-A O", 1, "ends that span with E- or S-"),
        ("iobes", "O B-A", 1, "ends that span with E- or S-"),
        ("iobes", "S-A E-A", 1, "begins one with B- or S-"),
    ],
)
def test_what_a_scheme_has_not_is_named(scheme, tags, place, words):
    with pytest.raises(BadTag, match=words) as caught:
        to_spans(tags.split(), scheme)
    assert caught.value.place == place
    assert scheme_of([tags.split()]) != scheme


def test_what_may_not_follow_is_what_the_scheme_refuses():
    tags = tag_set(["A", "B"])
    assert tags == ["O", "B-A", "I-A", "B-B", "I-B"]
    refused = {*follows(tags)}
    for after, tag in enumerate(tags):
        for before, other in enumerate(tags):
            row = [f"B-{other[2:]}", other, tag] if other.startswith("I") else [other, tag]
            try:
                to_spans(row, "iob2")
                fits = True
            except BadTag:
                fits = False
            assert fits is ((before, after) not in refused), row
        assert ((-1, after) in refused) is tag.startswith("I")
