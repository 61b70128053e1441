"""How well spans are found: precision, recall and F1, by seqeval's definitions, which are those of conlleval.

A span counts as found if type, start and end are right. `entities` reads tags as seqeval does by default, whatever the scheme:
Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003 (cs/0306050). `strict_entities` is its strict mode, which
drops what the scheme does not allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tasks.data.spans import OUTSIDE, Span, parts


class Found(NamedTuple):
    """Counts of spans: found and right, found, and there in truth."""

    right: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.predicted + self.true) if self.predicted + self.true else 0.0


def count(true: Iterable[Iterable[Span]], predicted: Iterable[Iterable[Span]]) -> dict[str, Found]:
    """By type, in order, of rows of spans. Errors: `ValueError` for another number of rows."""
    right, said, there = Counter[str](), Counter[str](), Counter[str]()
    for one, other in zip(true, predicted, strict=True):
        one, other = {*one}, {*other}
        right.update(span.type for span in one & other)
        said.update(span.type for span in other)
        there.update(span.type for span in one)
    return {kind: Found(right[kind], said[kind], there[kind]) for kind in sorted(there.keys() | said.keys())}


def total(by_type: Mapping[str, Found]) -> Found:
    """All types together: the micro average."""
    return Found(*(sum(numbers) for numbers in zip(*by_type.values(), strict=True))) if by_type else Found(0, 0, 0)


def macro_f1(by_type: Mapping[str, Found]) -> float:
    """The mean over the types that are there in truth, or were said."""
    return sum(found.f1 for found in by_type.values()) / max(len(by_type), 1)


def table(by_type: Mapping[str, Found]) -> Iterator[str]:
    """Lines: type, precision, recall, F1, spans; the last is of all together."""
    rows = {**by_type, "all": total(by_type)}
    width = max(map(len, ["type", *rows]))
    yield f"{'type':<{width}}  precision  recall  F1      spans"
    for kind, found in rows.items():
        yield f"{kind:<{width}}  {found.precision:.4f}     {found.recall:.4f}  {found.f1:.4f}  {found.true:,}"


# ---------------------------------------------------------------------------------------------------------- tags as seqeval reads


def entities(tags: Sequence[str]) -> list[Span]:
    """The spans of any tags, broken ones too: a tag of another type, or after an end, begins a span. `O` and "" are outside."""
    found: list[Span] = []
    begun, before, kind_before = 0, OUTSIDE, ""
    for n, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = parts(tag)
        if before != OUTSIDE and (before in "ES" or prefix in "BSO" or kind != kind_before):
            found.append(Span(kind_before, begun, n))
        if prefix != OUTSIDE and (prefix in "BS" or before in "ESO" or kind != kind_before):
            begun = n
        before, kind_before = prefix, kind
    return found


BEGINS = {"iob2": "B", "iobes": "BS", "iob1": "IB"}
GOES_ON = {"iob2": "I", "iobes": "IE", "iob1": "I"}


def strict_entities(tags: Sequence[str], scheme: str) -> list[Span]:
    """The spans that are right in the scheme: of IOB2 each begins with B-, of IOBES it also ends with E- or is one S-; in IOB1
    B- follows its own type, and what follows it closes it."""
    rows = [*map(parts, tags), (OUTSIDE, "")]
    found, n = [], 0
    while n < len(tags):
        (prefix, kind), end = rows[n], n + 1
        alone = scheme == "iob1" and prefix == "B" and (n == 0 or rows[n - 1][1] != kind)
        if prefix not in BEGINS[scheme] or alone:
            n += 1
            continue
        while rows[end - 1][0] not in "ES" and rows[end][0] in GOES_ON[scheme] and rows[end][1] == kind:
            end += 1
        last, following = rows[end - 1][0], rows[end]
        whole = (
            last in "ES" if scheme == "iobes" else scheme == "iob2" or not (last == "B" == following[0] and following[1] != kind)
        )
        found += [Span(kind, n, end)] if whole else []
        n = end
    return found
