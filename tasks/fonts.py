"""Fonts for the characters that a picture has, whatever their script, of those that the machine has.

Text that the default font lacks is drawn character by character with others: every text is given a list of families, and no
setting of matplotlib's changes. From 3.11 on matplotlib joins and orders letters as Arabic and Devanagari need it; before, they
stand apart, from left to right, and a note says so.
"""

from __future__ import annotations

import contextlib
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

SHAPES = hasattr(ft2font, "__libraqm_version__")
"""Whether matplotlib joins and orders letters."""
SHAPED = {
    "Arabic", "Bengali", "Devanagari", "Gujarati", "Gurmukhi", "Hebrew", "Kannada", "Khmer", "Malayalam", "Myanmar", "Nko",
    "Oriya", "Sinhala", "Syriac", "Tamil", "Telugu", "Thaana", "Tibetan",
}  # fmt: skip
"""Scripts whose letters join, change places, or run from right to left."""
BLOCKS = {
    "Japanese": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Korean": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)),
    "Chinese": ((0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF)),
    "emoji": ((0x1F000, 0x1FAFF),),
}
"""First and last code points; the first name that holds a character is its script."""
CJK, SYMBOLS = ("Noto Sans CJK", "fonts-noto-cjk"), ("Symbola", "fonts-symbola")
INSTALL = {"Chinese": CJK, "Japanese": CJK, "Korean": CJK, "emoji": SYMBOLS, "symbols": SYMBOLS}
"""A font, and Debian's package that has it; for other scripts it is Noto Sans SCRIPT, in fonts-noto-core."""
VARIANTS = {"Chinese": "SC", "Japanese": "JP", "Korean": "KR"}
"""How the families of one CJK font are told apart."""
STAND_INS = ("last resort", "lastresort", "adobe blank", "fallback sil")
"""Names of fonts that have a box, or nothing, for every character."""


def script(character: str) -> str:
    """Which script a character belongs to, as far as the advice on fonts needs it: "Chinese", "emoji", "Devanagari"."""
    code = ord(character)
    for name, blocks in BLOCKS.items():
        if any(first <= code <= last for first, last in blocks):
            return name
    if unicodedata.category(character)[0] in "LM":
        return unicodedata.name(character).split()[0].capitalize()
    return "symbols"


def needed(text: str) -> set[str]:
    """The characters that must have a glyph: not spaces, line breaks, joiners and variation selectors."""
    unseen = ("Cc", "Cf", "Zs", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) not in unseen and not 0xFE00 <= ord(c) <= 0xFE0F}


def drawn(path: Any, characters: Iterable[str], face: int = 0) -> set[str]:
    """Those of the characters for which the font has a glyph that is not blank, as the glyphs of colour fonts are."""
    try:
        font = ft2font.FT2Font(path, face_index=face) if face else ft2font.FT2Font(path)
        return {c for c in characters if font.get_char_index(ord(c)) and has_outline(font, c)}
    except (OSError, RuntimeError, ValueError):
        return set()


def has_outline(font: Any, character: str) -> bool:
    font.load_char(ord(character), flags=ft2font.LoadFlags.NO_SCALE)
    return len(font.get_path()[0]) > 0


def find(characters: set[str]) -> tuple[list[str], set[str]]:
    """Families that have what the default font lacks of the characters, and what none has.

    Fonts that were installed after matplotlib made its list join that list.
    """
    default = font_manager.findfont(FontProperties())
    lacking = characters - drawn(default, characters, getattr(default, "face_index", 0))
    families, lacking = choose(lacking)
    if lacking and add_new_fonts():
        more, lacking = choose(lacking)
        families += more
    return families, lacking


def add_new_fonts() -> bool:
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with contextlib.suppress(Exception):  # whatever is wrong with a font, as matplotlib does when it makes its list
            font_manager.fontManager.addfont(path)
    return len({entry.fname for entry in font_manager.fontManager.ttflist}) > len(known)


def choose(characters: set[str]) -> tuple[list[str], set[str]]:
    """For each script the family that has most of its characters, others for what that lacks; and what none has."""
    families: list[str] = []
    lacking = set(characters)
    for regular in (True, False):
        if not lacking:
            break
        fonts = {name: drawn(path, lacking, face) for name, path, face in files(regular)}
        for name in sorted({script(c) for c in lacking}, key=lambda name: (name == "Chinese", name)):  # all three write these
            wanted = {c for c in lacking if script(c) == name}
            for family in sorted(fonts, key=lambda f: (len(fonts[f] & wanted), *suits(f, name, families)), reverse=True):
                if fonts[family] & wanted & lacking:
                    families.append(family)
                    lacking -= fonts[family]
    return families, lacking


def suits(family: str, name: str, families: list[str]) -> tuple[bool, bool, bool]:
    """Larger is better, among fonts that have as many characters of a script."""
    lower = family.lower()
    return family.endswith(VARIANTS.get(name, "")), family in families, "sans" in lower and "mono" not in lower


def files(regular: bool) -> list[tuple[str, str, int]]:
    """Name, file and face of the families with an upright font of regular weight, or of the others."""
    entries: dict[str, list[Any]] = defaultdict(list)
    for entry in font_manager.fontManager.ttflist:
        weight = font_manager.weight_dict.get(str(entry.weight), entry.weight)
        entries[entry.name].append((weight != 400 or entry.style != "normal", entry.stretch != "normal", entry.fname, entry))
    best = {name: min(found, key=lambda e: e[:3]) for name, found in sorted(entries.items())}
    return [
        (name, entry.fname, getattr(entry, "index", 0))
        for name, (odd, _, _, entry) in best.items()
        if odd is not regular and not any(stand_in in name.lower() for stand_in in STAND_INS)
    ]


def notes(characters: set[str], lacking: set[str]) -> list[str]:
    """What cannot be drawn, or not as it should be, and what helps."""
    told = []
    if lacking:
        scripts = sorted({script(c) for c in lacking})
        packages: dict[str, dict[str, None]] = defaultdict(dict)
        for name in scripts:
            font, package = INSTALL.get(name, (f"Noto Sans {name}", "fonts-noto-core"))
            packages[package][font] = None
        fonts = [f"{', '.join(names)} (Debian: {package})" for package, names in packages.items()]
        told.append(f"no font here has some characters of: {', '.join(scripts)}; install {', '.join(fonts)}")
    if not SHAPES and (apart := sorted(SHAPED & {script(c) for c in characters - lacking})):
        told.append(f"matplotlib {matplotlib.__version__} writes {', '.join(apart)} letter by letter; matplotlib 3.11 joins them")
    return told


def isolated(text: str) -> str:
    """A text that runs from right to left, such that it changes the order of nothing beside it."""
    turns = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    return f"\u2068{text}\u2069" if SHAPES and turns else text


def prepare(figure: Figure) -> list[str]:
    """Give every text of the figure the fonts that it needs; what they lack is noted below the figure, and returned.

    A dollar is a dollar, not the start of a formula.
    """
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    characters = needed("".join(text.get_text() for text in texts))
    families, lacking = find(characters)
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if told := notes(characters, lacking):
        wide = int(figure.get_figwidth() * 18)
        lines = [textwrap.fill(note, wide, break_on_hyphens=False) for note in told]
        figure.supxlabel("\n".join(lines), fontsize=7, color="0.4", x=0.01, ha="left")
    return told
