"""Labelled spans of a row of words, and the schemes that write them as one tag a word.

    IOB2 (BIO)            B- begins a span, I- goes on with it, O is outside
    IOB1                  I- for all, B- only where a span follows another one of its type
    IOBES (BIOES, BILOU)  as IOB2, but E- (or L-) ends a span of several words, S- (or U-) is a span of one
    IO                    the type alone, or after I-: neighbours of one type are one span

A span is (type, start, end), `end` being the word after its last. Ramshaw and Marcus, 1995 (cmp-lg/9505040): IOB1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

SCHEMES = ("iob2", "iob1", "iobes", "io")
OUTSIDE = "O"


class Span(NamedTuple):
    type: str
    start: int
    end: int


class BadTag(ValueError):
    """A tag that its scheme has not, or not there; `place` is its index."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type: "B-PER" is ("B", "PER"); "O", and what is empty, is ("O", "")."""
    if tag in ("", OUTSIDE):
        return OUTSIDE, ""
    prefix, _, kind = tag.partition("-")
    return {"L": "E", "U": "S"}.get(prefix, prefix), kind


def prefixed(tag: str) -> bool:
    return tag[1:2] == "-" and tag[0] in "BIESLU" and len(tag) > 2


def to_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """The spans of a row of tags. Errors: `BadTag` for the first one that the scheme does not have there."""
    if scheme == "io":
        return runs([parts(tag)[1] if prefixed(tag) else tag if tag != OUTSIDE else "" for tag in tags])
    found: list[Span] = []
    begun, before, kind_before = 0, OUTSIDE, ""
    for n, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = parts(tag)
        if tag != OUTSIDE and not (prefixed(tag) and prefix in {"iob2": "BI", "iob1": "BI", "iobes": "BIES"}[scheme]):
            raise BadTag(n, f"{tag!r} is no tag of {scheme}")
        inside = before in ("B", "I") and kind == kind_before  # of a span that may go on
        goes_on = inside and prefix in ("I", "E")
        if scheme == "iobes" and before in ("B", "I") and not goes_on:
            raise BadTag(min(n, len(tags) - 1), f"{tag!r} after {tags[n - 1]!r}: iobes ends that span with E- or S-")
        if scheme != "iob1" and prefix in ("I", "E") and not goes_on:
            raise BadTag(n, f"{tag!r} begins a span: {scheme} begins one with B-{' or S-' if scheme == 'iobes' else ''}")
        if scheme == "iob1" and prefix == "B" and not inside:
            raise BadTag(n, f"{tag!r} follows no span of its type: iob1 has I- there")
        if before != OUTSIDE and not goes_on:
            found.append(Span(kind_before, begun, n))
        begun = begun if goes_on else n
        before, kind_before = prefix, kind
    return found


def runs(kinds: Sequence[str]) -> list[Span]:
    """Neighbours of one type as one span; "" is outside."""
    edges = [n for n in range(len(kinds)) if n == 0 or kinds[n] != kinds[n - 1]]
    return [Span(kinds[a], a, b) for a, b in pairwise([*edges, len(kinds)]) if kinds[a]]


def scheme_of(rows: Iterable[Sequence[str]]) -> str:
    """The scheme that all rows fit, the first of `SCHEMES`; "" where there is none."""
    left = list(SCHEMES)
    tags = [*map(list, rows)]
    if not all(prefixed(tag) for row in tags for tag in row if tag != OUTSIDE):
        return "" if any(prefixed(tag) for row in tags for tag in row) else "io"
    left.remove("io")
    return next((scheme for scheme in left if all(fits(row, scheme) for row in tags)), "")


def fits(tags: Sequence[str], scheme: str) -> bool:
    try:
        to_spans(tags, scheme)
    except BadTag:
        return False
    return True


def to_tags(spans: Iterable[Span], length: int, scheme: str = "iob2") -> list[str]:
    """A tag a word, of spans that do not overlap. IO cannot tell neighbours of one type apart."""
    tags, end, last = [OUTSIDE] * length, -1, ""
    for kind, start, stop in sorted(spans, key=lambda span: span.start):
        first = {"iob2": "B", "iobes": "B", "io": "I"}.get(scheme) or ("B" if start == end and kind == last else "I")
        tags[start:stop] = [f"{first}-{kind}"] + [f"I-{kind}"] * (stop - start - 1)
        if scheme == "iobes":
            tags[stop - 1] = f"{'S' if stop - start == 1 else 'E'}-{kind}"
        end, last = stop, kind
    return tags


def tag_set(types: Iterable[str]) -> list[str]:
    """The tags of IOB2 for these types: O, then B- and I- of each."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def follows(tags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs (before, after) of IOB2 tags, by index, that may not follow each other; before = -1 is where a row begins."""
    for n, tag in enumerate(tags):
        if tag.startswith("I-"):
            yield from ((m, n) for m in range(-1, len(tags)) if m < 0 or tags[m][2:] != tag[2:])
