"""docs/export.md against bench/export.py, and the greedy loop of exported files: nothing is exported or timed here."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import FAMILIES, on_meta

from zoo.deployment.export import ENDINGS
from zoo.deployment.exported_decoding import greedy
from zoo.gan import GAN

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_export", ROOT / "bench" / "export.py")
    module = sys.modules["bench_export"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_export"]


def test_the_page_has_a_row_for_every_architecture(bench):
    rows = bench.cells((ROOT / "docs" / "export.md").read_text())
    assert [*rows] == [*bench.ROWS]
    assert [*bench.TARGETS] == [*ENDINGS]
    assert all(cell for row in rows.values() for cell in row.values())
    assert {to for row in rows.values() for to, cell in row.items() if cell == "not run"} <= {"aot"}
    assert [name for name, row in rows.items() if row["executorch"] != "-"] == [*bench.OF_EXECUTORCH]
    kinds = {type(on_meta(name.partition(",")[0])) for name in rows}
    assert kinds == {type(on_meta(name)) for name in FAMILIES}
    assert GAN in kinds


def test_a_cell_is_written_and_the_others_stay(bench, tmp_path, monkeypatch):
    page = ROOT / "docs" / "export.md"
    monkeypatch.setattr(bench, "PAGE", tmp_path / "export.md")
    bench.PAGE.write_text(before := page.read_text())
    monkeypatch.setattr(bench, "cell", lambda row, to, folder, rounds: f"{row} {to}")
    monkeypatch.setattr(sys, "argv", ["export.py", "gpt_small", "--to", "onnx"])
    assert bench.main() == 0
    expected = bench.cells(before)
    for row in ("gpt_small", "gpt_small, step"):
        expected[row]["onnx"] = f"{row} onnx"
    assert bench.cells(bench.PAGE.read_text()) == expected
    assert bench.between(bench.PAGE.read_text(), "decoding") == bench.between(before, "decoding")
    bench.PAGE.write_text(before.replace("<!-- formats: end -->", ""))
    with pytest.raises(ValueError, match=r"export\.md must have one line <!-- formats: .* and one line <!-- formats: end -->"):
        bench.main()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(max_new_tokens=0), "max_new_tokens must be positive, got 0"),
        (dict(tokens=np.ones(3, np.int64)), "tokens must be (b, n), not empty, got (3,)"),
        (dict(tokens=np.ones((2, 0), np.int64)), "tokens must be (b, n), not empty, got (2, 0)"),
        (dict(source_mask=np.ones((1, 2))), "known must be nothing, got 'source_mask'"),
    ],
)
def test_bad_input_of_the_greedy_loop_is_named(given, said):
    pytest.importorskip("onnxruntime", reason="exports need zooproof[export]")
    session = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="tokens"), SimpleNamespace(name="past_keys_0")])
    with pytest.raises(ValueError, match=re.escape(said)):
        greedy(session, **(dict(tokens=np.ones((1, 2), np.int64), max_new_tokens=1) | given))
