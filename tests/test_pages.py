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


TABLE = """
[decoding]
processor = "AMD EPYC with AVX-512"
threads = 2
head = "decoding"
columns = [["ours", "ours *"], ["theirs", "reference *"], ["ratio", "ratio *"]]
rows = [["greedy", "test_gpt.py::test_greedy[1]"], ["beam 4", "test_gpt.py::test_beam[4]"]]
"""
GREEDY, BEAM = "test_gpt.py::test_greedy[1]", "test_gpt.py::test_beam[4]"
COMMAND = "Measured by `pytest bench/test_gpt.py`, torch 2.15, 2 threads"


@pytest.fixture
def speeds(pages, tmp_path, monkeypatch):
    """Of a table and a run of its own."""
    monkeypatch.setattr(pages.speeds, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(pages.speeds, "TABLES", tmp_path / "tables.toml")
    pages.speeds.TABLES.write_text(TABLE, encoding="utf-8")
    keep(
        pages.speeds,
        "2026-11-28",
        2,
        {GREEDY: (0.079, 0.244, 0.32, ", in a quieter run"), BEAM: (0.237, 0.474, 0.5, "")},
        new=True,
    )
    return pages.speeds


def keep(speeds, date, threads, results, new=False):
    """A run as pytest-benchmark writes it."""
    rows = [
        dict(
            fullname=name, extra_info=dict(ours=ours, reference=other, ratio=ratio, unit="s") | (dict(note=note) if note else {})
        )
        for name, (ours, other, ratio, note) in results.items()
    ]
    cpu = dict(brand_raw="AMD EPYC", flags=["avx2", "avx512f"])
    found = dict(datetime=f"{date}T10:00:00", machine_info=dict(cpu=cpu), benchmarks=rows)
    run = speeds.kept(found, threads=threads, torch="2.15")
    speeds.RESULTS.write_text(speeds.text([*([] if new else speeds.runs()), run]), encoding="utf-8")


def test_a_run_of_the_bench_is_added_and_shown(speeds):
    """What it replaces is an earlier one from then on, and a note about that has gone."""
    head = ["| decoding | ours | theirs | ratio |", "| --- | --- | --- | --- |"]
    beam = "| beam 4 | 237 ms | 474 ms | 0.50 |"
    first = "| greedy, in a quieter run | 79 ms | 244 ms | 0.32 |"
    assert [*speeds.table("decoding")] == [f"{COMMAND}, 28 November 2026:\n", *head, first, beam]
    assert [*speeds.earlier()][2:] == []
    keep(speeds, "2027-01-02", 2, {GREEDY: (0.0123456, 1.234567, 0.01, "")})
    when = f"{COMMAND}, 28 November 2026 to 2 January 2027:\n"
    assert [*speeds.table("decoding")] == [when, *head, "| greedy | 0.01 s | 1.23 s | 0.01 |", beam]
    what = "decoding, greedy, in a quieter run"
    assert [*speeds.earlier()][2:] == [
        f"| {what} | AMD EPYC with AVX-512, 2 threads | 28 November 2026 | 79 ms | 244 ms | 0.32 |"
    ]


def test_a_run_of_other_threads_replaces_nothing(speeds):
    before = [*speeds.table("decoding")]
    keep(speeds, "2027-01-02", 1, {GREEDY: (0.1, 0.2, 0.5, "")})
    assert [*speeds.table("decoding")] == before
    (row,) = [*speeds.earlier()][2:]
    assert row == "| decoding, greedy | AMD EPYC with AVX-512, 1 thread | 2 January 2027 | 100 ms | 200 ms | 0.50 |"
    speeds.TABLES.write_text(TABLE.replace("threads = 2", "threads = 3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"decoding: no run on AMD EPYC with AVX-512, 3 threads, has any of its benchmarks"):
        [*speeds.table("decoding")]


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
