"""The pages of blocks and models: each has what such a page has, and what is written from the code is up to date."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # which warnings tests cause as they are imported, their own files say
ROOT = Path(__file__).resolve().parent.parent
BLOCKS, MODELS = (sorted((ROOT / "docs" / room).glob("*.md")) for room in ("blocks", "models"))
each = pytest.mark.parametrize("page", [*BLOCKS, *MODELS], ids=lambda page: f"{page.parent.name}-{page.stem}")


@pytest.fixture(scope="module")
def pages():
    for library in ("diffusers", "gguf", "timm", "transformers"):  # which tests of blocks and models import
        pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_pages_are_up_to_date(pages):
    """Written by `python docs/pages.py`."""
    assert [*BLOCKS, *MODELS] == pages.PAGES
    assert [page.name for page in pages.PAGES if pages.written(text := page.read_text(encoding="utf-8")) != text] == []


def test_a_page_that_is_not_is_seen(pages):
    text = "<!-- guarded: layers.residual -->\nold\n<!-- end -->\n"
    assert "old" not in pages.written(text)
    assert "stride in the first convolution" in pages.written(text)


@each
def test_a_page_has_what_such_a_page_has(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    of_block, of_model = ["Equation", "Shapes", "Drawing"], ["Parts", "Members"]
    own = [*of_block, "Use"] if page in BLOCKS else [*of_model, "Use"]
    assert headings[1:] == [*own, "Equal to", "Guarded against"]
    assert len(re.findall(r"^```python$", text, re.M)) == 1
    assert page in BLOCKS or "arxiv.org" in text
    assert not re.search(r"^\| ---.*\|\n(?!\|)", text, re.M)  # a table without rows
    assert text.count("<!-- end -->") == len(re.findall(r"^<!-- (?:proven|guarded|parts|members): ", text, re.M))


@each
def test_drawings_fit_on_a_small_screen(page):
    for block in re.findall(r"^```text$(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        assert max(map(len, block.splitlines())) <= 80
