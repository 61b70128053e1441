"""Unlimited real text pairs: what Unicode's CLDR, through the package Babel, writes in two locales for one drawn value.

    Mo., 16. Juni 2003, 17:05           Mon, Jun 16, 2003, 5:05 PM
    1.250,5 Kilometer pro Stunde        1,250.5 kilometers per hour
    Spanisch (Mexiko)                   Spanish (Mexico)

A pair is a pure function of (seed, split, index), the same to the byte for a given version of Babel. Its target is a function of
its source: a form whose sources could mean two things is left out, and a year of two digits is one of 1950 to 2049.

Held out are values: a date, a time, an interval, a duration, an amount of a unit or currency, a combination of names. The value's
hash decides whether it belongs to train, valid or test, in all its forms, in all locales and for all seeds, so that no source of
one split occurs in another. What nobody can know without having seen it belongs to train alone: a name on its own, and whole
numbers below ten of a unit or currency, whose plurals may be words of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count, islice
from typing import Any

from tasks.data import SPLITS, DataError
from tasks.data.cldr_values import Draw, Family
from tasks.data.text_files import optional

KINDS = {"date": 4, "time": 1, "interval": 3, "duration": 3, "quantity": 4, "currency": 4, "name": 6}
"""Kinds of values, and how often each is drawn."""
PROBES = 24
"""Values of every family at which forms are compared, besides those that the family names."""


class Cldr:
    """Pairs from `source` to `target`, locales such as ``de``, ``pt_BR`` or ``zh-Hant``.

    Errors: `DataError` for a locale that CLDR lacks, naming the nearest ones, for an unknown kind, and without Babel.
    """

    def __init__(self, source: str = "de", target: str = "en", kinds: Sequence[str] = tuple(KINDS)) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS] or ([] if kinds else ["none"]):
            raise DataError(f"kinds must be some of {', '.join(KINDS)}, got {', '.join(unknown)}")
        self.source, self.target = parse_locale(source), parse_locale(target)
        from tasks.data.cldr_forms import families  # needs babel, which `parse_locale` has asked for

        claims: dict[str, Any] = {}
        sound = [self.sound(family, claims) for family in families(self.source, self.target) if family.kind in kinds]
        self.families = {kind: [f for f in sound if f.kind == kind and f.forms] for kind in kinds}
        self.lots = [kind for kind in kinds if self.families[kind] for _ in range(KINDS[kind])]

    def sound(self, family: Family, claims: dict[str, Any]) -> Family:
        """The family with those forms that both locales have, and whose sources no other value and no other target has."""
        values = [*family.probes, *(family.draw(Draw("probe", n)) for n in range(PROBES))]
        kept = replace(family, forms=[])
        for form in family.forms:
            grown = replace(kept, forms=[*kept.forms, form])
            try:
                pairs = [grown.write(value, len(kept.forms), self.source, self.target) for value in values]
            except (KeyError, ValueError, NotImplementedError):
                continue
            found: dict[str, Any] = {}
            meant = [(source, (target, family.key, value)) for value, (source, target) in zip(values, pairs, strict=True)]
            if all(claims.get(source, claim) == found.setdefault(source, claim) == claim for source, claim in meant):
                claims.update(found)
                kept = grown
        return kept

    def pair(self, seed: int, index: int, split: str = "train") -> tuple[str, str]:
        """Source and target number `index`; the same value comes again as often as chance has it."""
        if split not in SPLITS:
            raise DataError(f"split must be {', '.join(SPLITS)}, got {split!r}")
        for attempt in range(10_000):
            draw = Draw("cldr", seed, split, index, attempt)
            family = draw.pick(self.families[draw.pick(self.lots)])
            value = family.draw(draw)
            if family.split(value) == split:
                return family.write(value, draw.below(len(family.forms)), self.source, self.target)
        raise DataError(f"{self.source} and {self.target} share no forms of values that belong to {split}")

    def pairs(self, seed: int, split: str = "train") -> Iterator[tuple[str, str]]:
        """Pairs 0, 1, 2, ... without an end."""
        return (self.pair(seed, index, split) for index in count())

    def distinct(self, number: int, seed: int, split: str = "test") -> list[tuple[str, str]]:
        """The first `number` pairs with different sources, for a set to measure on."""
        found: dict[str, str] = {}
        for source, target in islice(self.pairs(seed, split), 20 * number + 1000):
            found.setdefault(source, target)
            if len(found) == number:
                return list(found.items())
        raise DataError(f"{self.source} and {self.target} give only {len(found)} of {number} different pairs for {split}")


@lru_cache(maxsize=8)
def cldr(source: str = "de", target: str = "en") -> Cldr:
    """All kinds of pairs between two locales; made once."""
    return Cldr(source, target)


def pair(source: str, target: str, seed: int, index: int, split: str = "train") -> tuple[str, str]:
    """One pair, a pure function of its arguments."""
    return cldr(source, target).pair(seed, index, split)


def parse_locale(name: str) -> Any:
    """A Babel locale; the `DataError` for an unknown name tells the nearest ones, by identifier or by English name."""
    babel = optional("babel")
    known = optional("babel.localedata").locale_identifiers()
    folded = {identifier.lower(): identifier for identifier in known if identifier != "root"}
    if found := folded.get(name.replace("-", "_").lower()):
        return babel.Locale.parse(found)
    languages = {text.lower(): code for code, text in babel.Locale("en").languages.items() if code in folded}
    near = difflib.get_close_matches(name.replace("-", "_").lower(), [*folded, *languages], n=3)
    hint = f"; nearest are {', '.join(dict.fromkeys(languages.get(n) or folded[n] for n in near))}" if near else ""
    raise DataError(f"unknown locale {name!r}{hint}; locales are written like de, pt_BR or zh_Hant")
