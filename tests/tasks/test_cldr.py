"""Pairs out of CLDR: pure, unambiguous, held out by value, and as Babel writes them."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pytest
from babel import dates, numbers, units
from hypothesis import settings

from layers.testing.profiles import CI
from tasks.data import SHARE, SPLITS, DataError
from tasks.data.cldr import KINDS, Cldr, pair, parse_locale
from tasks.data.cldr_forms import COUNTS, LOCALES, date_families, families
from tasks.data.cldr_values import Draw, Family

ROOT = Path(__file__).parents[2]
FEWER = 1 if settings().max_examples >= CI else 5
"""As of all that is drawn, where the oldest torch comes with the oldest Babel."""


@pytest.fixture(scope="module")
def german() -> Cldr:
    return Cldr("de", "en")


def draws(made: Cldr, number: int) -> list[tuple[str, str, str]]:
    """(split, source, target), four fifths of them of train."""
    shares = {"train": number * 4 // 5, "valid": number // 10, "test": number // 10}
    return [(split, *made.pair(1, n, split)) for split, size in shares.items() for n in range(size)]


def test_a_pair_is_a_pure_function_of_seed_split_and_index(german: Cldr):
    first = [german.pair(3, n) for n in range(200)]
    assert [german.pair(3, n) for n in reversed(range(200))] == first[::-1]
    assert [pair("de", "en", 3, n) for n in range(200)] == first
    assert list(islice(german.pairs(3), 200)) == first
    assert len({german.pair(seed, 0) for seed in range(50)}) > 40
    assert len(set(first)) > 150
    assert set(first).isdisjoint(german.pair(3, n, "test") for n in range(200))


@pytest.mark.processes
def test_another_process_draws_the_same_bytes(german: Cldr):
    """Whatever its hash seed, its time zone, its date and its locale are."""
    texts = "[c.pair(0, n, split) for split in SPLITS for n in range(300)]"
    script = "import hashlib; from tasks.data.cldr import *; c = Cldr(); "
    script += f"print(hashlib.sha256(repr({texts}).encode()).hexdigest())"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "fr_FR.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    here = repr([german.pair(0, n, split) for split in SPLITS for n in range(300)])
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


@pytest.mark.parametrize(
    ("source", "target", "number"),
    [
        ("de", "en", 50_000),
        ("en", "de", 20_000),
        ("en", "fr", 10_000),
        ("ja", "en", 10_000),
        ("he", "pl", 20_000),
        ("en_ZA", "sv", 10_000),
    ],
)
def test_a_source_has_one_target_and_one_split(source: str, target: str, number: int):
    targets: dict[str, str] = {}
    splits: dict[str, str] = {}
    number //= FEWER
    for split, text, translated in draws(Cldr(source, target), number):
        assert targets.setdefault(text, translated) == translated, text
        assert splits.setdefault(text, split) == split, text
    assert len(targets) > number // 2  # or nothing was tried
    assert set(splits.values()) == set(SPLITS)


def test_ambiguous_forms_are_told_apart():
    """The clashes that the above would meet: they exist, and the families as they are would fall into them."""
    made = Cldr("en", "fr")
    assert units.format_unit(4, "length-meter", "narrow", locale="en") == units.format_unit(
        4, "duration-minute", "narrow", locale="en"
    )
    kept = [
        form
        for kind in ("quantity", "duration")
        for f in made.families[kind]
        for form in f.forms
        if f.key in ("length-meter", "minute")
    ]
    assert 2 < len(kept) < 6
    hebrew = Cldr("he", "uk")  # in CLDR before 48 there are forms without a number, for one mile and for less
    miles = next(family for family in hebrew.families["quantity"] if family.key == "length-mile")
    assert miles.forms
    for form in miles.forms:
        assert len({form(Decimal(n), hebrew.source) for n in ("0.14", "0.2", "0.4", "1")}) == 4
    day = next(family for family in date_families() if family.kind == "date")
    english, german = parse_locale("en"), parse_locale("de")
    may = [day.write(dt.date(2024, 5, 3), n, english, german) for n in range(3)]
    june = [day.write(dt.date(2024, 6, 3), n, english, german) for n in range(3)]
    assert may[2] == may[1] == ("May 3, 2024", "3. Mai 2024")  # the medium form is the long one
    assert june[1:] == [("June 3, 2024", "3. Juni 2024"), ("Jun 3, 2024", "03.06.2024")]


def test_a_form_that_loses_something_is_left_out(german: Cldr):
    lossy = Family("date", "x", lambda draw: draw.below(1000), [lambda value, locale: str(value // 100)])
    faithful = Family("date", "x", lambda draw: draw.below(1000), [lambda value, locale: str(value)])
    assert not german.sound(lossy, {}).forms
    assert german.sound(faithful, {}).forms
    assert not german.sound(faithful, {str(n): "taken" for n in range(1000)}).forms


def test_held_out_is_the_value_in_all_forms_and_locales(german: Cldr):
    for family in families(parse_locale("de"), parse_locale("en")):
        values = [family.draw(Draw("here", n)) for n in range(300)]
        open_values = [value for value in values if not family.closed(value)]
        splits = [family.split(value) for value in open_values]
        if len({*map(repr, open_values)}) > 200:
            assert 2 <= splits.count("test") < 45, family.key
            assert 2 <= splits.count("valid") < 45, family.key
        assert all(family.split(value) == "train" for value in values if family.closed(value))


def test_what_cannot_be_guessed_is_in_train_alone(german: Cldr):
    names = {*german.source.territories.values(), *german.source.languages.values()}
    held_out = [german.pair(0, n, split)[0] for split in ("test", "valid") for n in range(2000)]
    assert names.isdisjoint(held_out)
    trained = {german.pair(0, n)[0] for n in range(60_000)}
    bare = [f for f in german.families["name"] if f.key in ("territories", "languages")]
    alone = {f.forms[0](f.draw(Draw("any", n)), german.source) for f in bare for n in range(5000)}
    assert len(alone) > 400
    assert len(alone & trained) > 0.99 * len(alone)
    assert not [text for text in held_out if text.endswith((" Euro", " Meter")) and text.split()[0] in ("1", "1,00", "7", "7,00")]


def test_texts_are_babels(german: Cldr):
    """Every form against the public formatter that a reader would call."""
    de = "de"
    day, moment = dt.date(2024, 4, 1), dt.datetime(2024, 4, 1, 15, 4)
    short, medium = dt.time(15, 4), dt.time(15, 4, 5)
    lengths = [("length-mile", "long"), ("length-mile", "short"), ("length-meter", "long"), ("length-meter", "short")]
    expected = {
        "date": {
            dates.format_date(day, "full", locale=de),
            dates.format_date(day, "short", locale=de),
            dates.format_skeleton("yMMMd", day, locale=de),
        },
        "time": {dates.format_time(short, "short", locale=de), dates.format_time(medium, "medium", locale=de)},
        "quantity": {units.format_unit(Decimal("2.5"), unit, length, locale=de) for unit, length in lengths},
        "currency": {
            numbers.format_currency(Decimal("12.5"), "EUR", locale=de),
            numbers.format_currency(Decimal("12.5"), "EUR", locale=de, format_type="name"),
        },
        "interval": {dates.format_interval(day, day + dt.timedelta(40), "yMMMd", locale=de)},
        "duration": {"3 Stunden, 20 Minuten", dates.format_timedelta(dt.timedelta(hours=-3), add_direction=True, locale=de)},
        "name": {"Deutsch (Österreich)", "Frankreich, Japan und Peru", "Französisch oder Japanisch", "Frankreich"},
    }
    values = {
        "date": [day], "time": [dt.datetime(2000, 1, 1, 15, 4, 5)], "quantity": [Decimal("2.5")], "currency": [Decimal("12.5")],
        "interval": [(day, day + dt.timedelta(40))], "duration": [(3, 20), -3],
        "name": ["de_AT", ("FR", "JP", "PE"), ("fr", "ja"), "FR"],
    }  # fmt: skip
    for kind, texts in expected.items():
        written = set()
        for family in german.families[kind]:
            for form in family.forms:
                for value in values[kind]:
                    try:
                        written.add(form(value, german.source))
                    except (KeyError, TypeError, ValueError, AttributeError):  # another family's value
                        continue
        assert texts <= written, kind
    assert dates.format_datetime(moment, "short", locale=de) in {
        f(moment, german.source) for f in german.families["date"][4].forms
    }


def test_all_kinds_come_and_the_formats_vary(german: Cldr):
    for kind in KINDS:
        only = Cldr("de", "en", [kind])
        found = only.distinct(200, 0)
        assert len(dict(found)) == 200
        assert all(source.strip() and target.strip() for source, target in found)
    assert sum(len(f.forms) for kind in KINDS for f in german.families[kind]) > 400


@pytest.mark.parametrize(("source", "target"), [("fa", "hi"), ("zh-Hant", "pt_BR"), ("ar", "th"), ("ab", "de")])
def test_any_two_locales(source: str, target: str):
    found = Cldr(source, target).distinct(300, 0)
    assert len(found) == 300
    assert all(text.strip() and "{0}" not in text for row in found for text in row)


@pytest.mark.parametrize(
    ("name", "near"),
    [("dee", "de"), ("german", "de"), ("en_UX", "en_US"), ("pt-PX", "pt_PT"), ("", ""), ("root", ""), ("Japanes", "ja")],
)
def test_an_unknown_locale_names_its_neighbours(name: str, near: str):
    with pytest.raises(DataError) as caught:
        Cldr(name, "en")
    message = str(caught.value)
    assert message.startswith(f"unknown locale {name!r}")
    assert "\n" not in message
    assert near in message.split("; locales are")[0].split("nearest are ")[-1].split(", ") or not near


def test_names_of_locales_are_read_generously():
    assert str(parse_locale("DE-at")) == "de_AT"
    assert str(parse_locale("zh_hant")) == "zh_Hant"


def test_complaints(german: Cldr, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"kinds must be some of date.*, got poem"):
        Cldr(kinds=["date", "poem"])
    with pytest.raises(DataError, match="kinds"):
        Cldr(kinds=[])
    with pytest.raises(DataError, match="split must be test, valid, train, got 'dev'"):
        german.pair(0, 0, "dev")
    clock = Cldr(kinds=["time"])
    del clock.families["time"][1:]  # hours and minutes stay, of which 60 or so are held out
    with pytest.raises(DataError, match=r"give only .* of 200 different pairs for test"):
        clock.distinct(200, 0)
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(DataError, match=r'babel is not installed: pip install "zooproof\[translation\]"'):
        Cldr()


def test_a_pair_takes_few_draws(german: Cldr, monkeypatch: pytest.MonkeyPatch):
    """A value in twenty is of test; each attempt is one hash."""
    draws = []
    monkeypatch.setattr("tasks.data.cldr.Draw", lambda *where: draws.append(where) or Draw(*where))
    for split, most in (("train", 1.2), ("test", 30)):
        draws.clear()
        for index in range(200):
            german.pair(0, index, split)
        assert 200 <= len(draws) < 200 * most
    assert len(draws) > 200 * 5


def test_draws_are_even():
    counts = [0] * 7
    for n in range(7000):
        counts[Draw("even", n).below(7)] += 1
    assert max(counts) < 1150
    assert min(counts) > 850
    draw = Draw("a place")
    assert len({draw.below(1000) for _ in range(30)}) > 25  # one place gives many numbers
    assert SHARE == 20
    assert COUNTS[0] == 1
    assert "de_AT" in LOCALES
