"""Every character is drawn that a font of the machine has, and a note tells of the others. The fonts are the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from PIL import Image

from tasks import fonts, plots


def build(path: Path, family: str, characters: str, blank: str = "", weight: int = 400) -> Path:
    """A font in which the characters are black squares, or blank."""
    glyphs = {".notdef": "", **{f"g{ord(c):x}": c for c in characters + blank}}
    square, nothing = TTGlyphPen(None), TTGlyphPen(None)
    square.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        square.lineTo(corner)
    square.closePath()
    filled, empty = square.glyph(), nothing.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder([*glyphs])
    font.setupCharacterMap({ord(c): name for name, c in glyphs.items() if c})
    font.setupGlyf({name: filled if c and c in characters else empty for name, c in glyphs.items()})
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (700, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Bold" if weight == 700 else "Regular"})
    font.setupOS2(usWeightClass=weight)
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Callable[..., None]:
    """Has the fonts that matplotlib brings and none besides, but for those that the test puts there: file name and `build`'s."""
    own = [e for e in font_manager.fontManager.ttflist if e.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)

    def has(*families: str, characters: str, **options) -> None:
        for family in families:
            font_manager.fontManager.addfont(build(tmp_path / f"{family}.ttf", family, characters, **options))

    return has


def lettered(text: str) -> tuple[list[str], list[str], Figure]:
    """The families that a text was given besides the default ones, notes, and the figure."""
    figure = Figure()
    written = figure.text(0.5, 0.5, text)
    default = written.get_fontfamily()
    notes = fonts.prepare(figure)
    assert written.get_fontfamily()[: len(default)] == default
    return written.get_fontfamily()[len(default) :], notes, figure


SCRIPTS = {
    "猫": "Chinese",
    "、": "Chinese",
    "ね": "Japanese",
    "ー": "Japanese",
    "고": "Korean",
    "क": "Devanagari",
    "ก": "Thai",
    "🦊": "emoji",
}


@pytest.mark.parametrize("character", SCRIPTS)
def test_a_font_that_has_the_character_draws_it(tmp_path, machine, character):
    machine("Zooproof Squares", characters=character)
    assert lettered(f"a {character}")[0] == ["Zooproof Squares"]
    figure = Figure()
    figure.text(0.5, 0.5, character, fontsize=100)
    notes = plots.write(figure, tmp_path / "a.png")
    assert notes == [] or not fonts.SHAPES
    with Image.open(tmp_path / "a.png") as picture:
        dark = sum(picture.convert("L").histogram()[:128])
    assert dark == pytest.approx((0.7 * 100 / 72 * 120) ** 2, rel=0.1), "no black square"


@pytest.mark.parametrize("character", SCRIPTS)
def test_where_no_font_has_it_a_note_says_what_to_install(tmp_path, machine, character):
    figure = Figure(figsize=(3, 3))
    figure.text(0.5, 0.5, f"a {character}")
    (note,) = plots.write(figure, tmp_path / "a.png")
    assert f"no font here has some characters of: {SCRIPTS[character]}; install " in note
    assert "fonts-" in note
    assert figure.get_supxlabel().replace("\n", " ") == note
    assert (tmp_path / "a.png").stat().st_size > 0


def test_what_the_default_font_has_needs_nothing_more(machine):
    machine("Zooproof Everything", characters="aé→ξЖ")
    assert lettered("aé→ξЖ\n\t \u200d\ufe0f")[:2] == ([], [])


def test_fonts_that_draw_nothing_or_anything_are_not_used(machine):
    """The glyphs of colour fonts are blank to matplotlib; last resorts have a box for everything."""
    machine("Zooproof Colours", characters="a", blank="猫")
    machine("Zooproof Last Resort", characters="猫")
    families, notes, _ = lettered("猫")
    assert families == []
    assert len(notes) == 1


def test_one_font_for_a_script_and_others_for_what_it_lacks(machine):
    machine("Zooproof Few", characters="猫")
    machine("Zooproof Most", characters="犬鳥馬")
    machine("Zooproof Fewer", characters="犬")
    assert lettered("猫犬鳥馬")[:2] == (["Zooproof Most", "Zooproof Few"], [])


@pytest.mark.parametrize(("text", "family"), [("猫", "Zooproof CJK SC"), ("猫ね", "Zooproof CJK JP"), ("고", "Zooproof CJK KR")])
def test_of_one_font_for_three_languages_the_text_s_own(machine, text, family):
    machine("Zooproof CJK JP", "Zooproof CJK KR", "Zooproof CJK SC", "Zooproof Mono", characters="猫ね고")
    assert lettered(text)[0][-1:] == [family]


def test_regular_fonts_come_before_bold_ones(machine):
    machine("Zooproof Bold", characters="猫犬", weight=700)
    assert lettered("猫犬")[0] == ["Zooproof Bold"]
    machine("Zooproof Thin", characters="猫")
    assert lettered("猫犬")[0] == ["Zooproof Thin", "Zooproof Bold"]


def test_a_font_that_was_installed_since_is_found(tmp_path, machine, monkeypatch):
    path = build(tmp_path / "new.ttf", "Zooproof New", "猫")
    (broken := tmp_path / "broken.ttf").write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path), str(broken)])
    assert lettered("猫")[:2] == (["Zooproof New"], [])


def test_a_font_that_is_gone_or_broken_is_passed_over(tmp_path, machine):
    machine("Zooproof Gone", "Zooproof Broken", characters="猫犬")
    (tmp_path / "Zooproof Gone.ttf").unlink()
    (tmp_path / "Zooproof Broken.ttf").write_bytes(b"no font")
    families, notes, _ = lettered("猫")
    assert families == []
    assert len(notes) == 1


@pytest.mark.parametrize("shapes", [False, True])
def test_letters_that_join_need_a_later_matplotlib(machine, monkeypatch, shapes):
    monkeypatch.setattr(fonts, "SHAPES", shapes)
    _, notes, _ = lettered("قطة, שלום, cat")
    assert [("Arabic, Hebrew" in note, "matplotlib 3.11" in note) for note in notes] == ([] if shapes else [(True, True)])


def test_matplotlib_joins_letters_where_we_say_so():
    """Laam and alif are one glyph, or two."""
    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    font.set_text("لا")
    assert fonts.SHAPES is (tuple(map(int, matplotlib.__version__.split(".")[:2])) >= (3, 11))
    assert font.get_num_glyphs() == (1 if fonts.SHAPES else 2)


ODD = [
    *("\x07", "\n\t\r", "\u2028", "\udce4", "\ue000", "\U000e0041", "\u0378", "\ufeff"),
    *("👩\u200d🔬", "✈\ufe0f", "e\u0301", "\u202eabc", "$x_", "\\$", "\\", ""),
]


def test_no_text_warns_or_fails(tmp_path, machine):
    """Control characters, halves of characters, private, unassigned and invisible ones, formulas that are none."""
    before = dict(matplotlib.rcParams)
    n = len(ODD)
    pixels, counts = torch.zeros(n, 1, 4, 4, dtype=torch.uint8), torch.eye(n)[torch.arange(n).roll(1)]
    labels = torch.arange(n)
    plots.attention(torch.eye(n), ODD, ODD, tmp_path / "a.png")
    plots.confusion(labels, labels.roll(1), ODD, tmp_path / "b.png", "".join(ODD))
    plots.confusion(labels, labels.roll(1), [*ODD, *map(str, range(40))], tmp_path / "c.png", "".join(ODD))
    plots.mistakes(pixels, labels, counts, ODD, tmp_path / "d.png", limit=8, names=ODD)
    plots.explanations(pixels[:2], torch.rand(2, 4, 4), ODD[:2], ODD[2:4], "why", tmp_path / "e.png")
    assert len({*tmp_path.iterdir()}) == 5
    assert dict(matplotlib.rcParams) == before, "a setting of matplotlib has changed"


def test_ticks_and_titles_get_their_fonts(tmp_path, machine, drawn):
    machine("Zooproof Squares", characters="猫犬")
    labels = torch.tensor([0, 1, 1])
    assert plots.confusion(labels, labels.roll(1), ["猫", "犬"], tmp_path / "confusion.png", "猫") == []
    (figure,) = drawn
    texts = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels(), figure._suptitle]
    assert [text.get_text() for text in texts[:-1]] == ["猫", "犬"] * 2
    assert all(text.get_fontfamily()[-1] == "Zooproof Squares" for text in texts)


def test_names_that_cannot_be_drawn_are_told_apart_by_number(machine):
    machine("Zooproof Squares", characters="犬")
    assert plots.legible(["cat", "猫", "犬", "鳥"]) == ["cat", "1 猫", "犬", "3 鳥"]


@pytest.mark.parametrize("shapes", [False, True])
def test_a_name_from_right_to_left_leaves_its_neighbours_in_place(machine, monkeypatch, shapes):
    """By Unicode's isolates, which only a matplotlib that orders letters knows."""
    monkeypatch.setattr(fonts, "SHAPES", shapes)
    assert plots.legible(["cat 1", "قطة 2"]) == ["cat 1", "\u2068قطة 2\u2069" if shapes else "قطة 2"]
