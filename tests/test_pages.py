"""The pages of blocks and models: each has what such a page has; what is written from code and bench is up to date."""

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
    marked = [
        page
        for page in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md"))
        if pages.MARKED.search(page.read_text())
    ]
    assert sorted(marked) == sorted(pages.PAGES)
    assert {*BLOCKS, *MODELS} < {*pages.PAGES}
    assert [page.name for page in pages.PAGES if pages.written(text := page.read_text(encoding="utf-8")) != text] == []


def test_a_page_that_is_not_is_seen(pages):
    text = "<!-- guarded: layers.residual -->\nold\n<!-- end -->\n"
    assert "old" not in pages.written(text)
    assert "stride in the first convolution" in pages.written(text)


def test_tables_of_speed_name_benchmarks_that_there_are(pages):
    speeds, found = pages.speeds, set()
    for table in speeds.tables().values():
        assert {len(row) for row in table["rows"]} == {len(column) for column in table["columns"]} == {2}
        found |= {
            benchmark for _, row in table["rows"] for _, specs in table["columns"] for _, benchmark in speeds.asked(specs, row)
        }
    for name in found | {name for run in speeds.runs() for name in run["results"]}:
        file, _, test = name.partition("::")
        assert name.startswith("by hand: ") or f"def {test.partition('[')[0]}(" in (ROOT / "bench" / file).read_text(), name
    assert speeds.text(speeds.runs()) == speeds.RESULTS.read_text(encoding="utf-8")


def test_a_run_of_the_bench_is_added_and_shown(pages, tmp_path, monkeypatch):
    """As pytest-benchmark writes it; what it replaces is an earlier one from then on, and a note about that has gone."""
    speeds, name = pages.speeds, "test_transformer.py::test_decoding[1]"
    before, earlier = [*speeds.table("transformer")], [*speeds.earlier()]
    (old,) = (row for row in before if row.startswith("| greedy, `zoo.optimize`, Hugging Face's"))
    result = dict(ours=0.0123456, reference=1.234567, ratio=0.01, unit="s")
    cpu = dict(brand_raw="AMD EPYC", flags=["avx2", "avx512f"])
    found = dict(datetime="2027-01-02T10:00:00", machine_info=dict(cpu=cpu), benchmarks=[dict(fullname=name, extra_info=result)])
    run = speeds.kept(found, threads=2, torch="2.15")
    text = speeds.text([*speeds.runs(), run])
    monkeypatch.setattr(speeds, "RESULTS", tmp_path / "results.json")
    speeds.RESULTS.write_text(text, encoding="utf-8")
    after = [*speeds.table("transformer")]
    assert after[0].endswith("27 November 2026 to 2 January 2027:\n")
    assert after[1:] == [row if row != old else row.partition(", in a")[0] + " | 0.01 s | 1.23 s | 0.01 |" for row in before[1:]]
    (new,) = {*speeds.earlier()} - {*earlier}
    what = "Transformer, greedy, `zoo.optimize`, Hugging Face's `generate`, in a quieter run"
    assert new == f"| {what} | AMD EPYC with AVX-512 | 28 November 2026 | 79 ms | 244 ms | 0.32 |"


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
