"""`python -m tasks.export`: files of runs, run by onnxruntime alone, and what stands beside them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command import one_line

import zoo
from tasks import export
from zoo.deployment.export import ENDINGS, named
from zoo.deployment.exported_decoding import Encoder

onnxruntime = pytest.importorskip("onnxruntime", reason="exports need zooproof[export]")
TOKENS = torch.tensor([[4, 7, 5, 2, 1], [6, 3, 2, 0, 0], [5, 5, 5, 5, 5]])
RUNS = {
    "image": {"images": torch.randn(3, 3, 40, 33, generator=torch.Generator().manual_seed(0))},
    "text": {"tokens": TOKENS, "mask": TOKENS > 0, "types": torch.zeros_like(TOKENS)},
    "pair": {"tokens": TOKENS, "mask": TOKENS > 0, "types": (torch.arange(5) > 2).long().expand(3, 5)},
    "translation": {"source": TOKENS, "source_mask": TOKENS > 0},
    "generation": {"tokens": TOKENS},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_a_file_that_onnxruntime_runs(name, served, tmp_path, capsys):
    out = tmp_path / "new" / "model.onnx"
    assert export.main([str(served[name]), "--out", str(out)]) == 0
    model, given = zoo.load(served[name]).eval(), RUNS[name]
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["inputs"] == [*given]
    assert str(out) in capsys.readouterr().out
    with torch.no_grad():
        model = Encoder(model) if name == "translation" else model
        expected = named(model, model(**given))
    assert about["outputs"] == [*expected]
    found = onnxruntime.InferenceSession(out).run(None, {key: x.numpy() for key, x in given.items()})
    for (key, ours), theirs in zip(expected.items(), found, strict=True):
        assert (torch.from_numpy(theirs) - ours).abs().max() <= 1e-5 * ours.abs().max(), key
    if name == "image":
        assert about["classes"] == ["dark", "light"]
        assert about["preprocess"] == model.preprocess.config()
        assert [path.name for path in sorted(out.parent.iterdir())] == ["model.json", "model.onnx"]
    else:
        assert (out.parent / about["tokenizer"]).read_bytes() == (served[name] / "tokenizer.json").read_bytes()
    if name in ("text", "pair"):
        assert about["classes"] == model.config["classes"]


def test_images_of_one_size_alone(served, tmp_path):
    out = tmp_path / "model.onnx"
    assert export.main([str(served["image"]), "--fixed_size", "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    assert json.loads(out.with_suffix(".json").read_text())["fixed"] == ["height", "width"]
    with pytest.raises(Exception, match="Got: 40 Expected: 32"):
        session.run(None, {"images": RUNS["image"]["images"].numpy()})


def test_the_formats_are_those_of_zoo():
    assert export.FORMATS == ENDINGS


def test_the_example_for_executorch_is_the_largest_of_all_calls(served, tmp_path, monkeypatch):
    asked = {}

    def note(model, example, path, **options):
        asked[path.stem] = {name: [*x.shape] for name, x in example.items()}
        path.write_bytes(b"")

    monkeypatch.setattr(zoo, "export", note)
    for name in ("image", "text", "translation"):
        out = tmp_path / f"{name}.pte"
        assert export.main([str(served[name]), "--to", "executorch", "--out", str(out)]) == 0
        assert json.loads(out.with_suffix(".json").read_text())["largest"] == asked[name]
    assert asked["image"] == {"images": [2, 3, 32, 32]}
    positions = zoo.load(served["text"]).positions.max_positions
    assert asked["text"] == {key: [2, min(positions, 128)] for key in ("tokens", "mask", "types")}
    assert asked["translation"] == {key: [2, 128] for key in ("source", "source_mask")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give the folder of one run, such as runs/NAME, got 0"),
        (["{image}", "{text}"], "give the folder of one run, such as runs/NAME, got 2"),
        (["{folder}/nowhere"], "nowhere is not there: the folder of a run is expected"),
        (["{folder}"], "is no run: runs of image_classification, text_classification, translation, text_generation are exported"),
        (["{token}"], "is a run of tasks.token_classification: runs of image_classification"),
        (["{image}", "--to", "tflite"], "--to must be one of onnx, torch, aot, torchscript"),
        (["{image}", "--out", "{folder}/x.pt"], "--out must end in .onnx for --to onnx"),
        (["{text}", "--fixed_size"], "--fixed_size is for runs of image_classification"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(words, said, served, tmp_path, capsys):
    places = {**served, "folder": tmp_path}
    assert said in one_line(capsys, export.main, *(word.format(**places) for word in words))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("error", [ValueError("fixed must have 'height'"), RuntimeError("the file fails; see `fixed`")])
def test_who_must_fix_a_size_is_told_by_which_option(error, tmp_path, capsys, monkeypatch):
    def fail(options, out):
        raise error

    monkeypatch.setattr(export, "write", fail)
    option = "; --fixed_size fixes those of images, and of texts `zoo.export` does, called in Python\n"
    assert one_line(capsys, export.main, str(tmp_path)) == f"error: {tmp_path}: {error}{option}"
    assert one_line(capsys, export.main, str(tmp_path), "--fixed_size") == f"error: {tmp_path}: {error}\n"


def test_a_file_of_the_run_is_not_written_over(tmp_path, capsys):
    """What stands beside config.onnx would be config.json; what an export left may be written anew."""
    beside = tmp_path / "config.json"
    for content in ('{"model": "resnet20"}', "{", "[]"):
        beside.write_text(content)
        said = one_line(capsys, export.main, "nowhere", "--out", str(beside.with_suffix(".onnx")))
        assert f"--out: {beside} would be written too, and is there, of something else: choose another name" in said
        assert beside.read_text() == content
    beside.write_text('{"format": "onnx", "inputs": [], "outputs": []}')
    assert "nowhere is not there" in one_line(capsys, export.main, "nowhere", "--out", str(beside.with_suffix(".onnx")))


def test_a_missing_package_is_named(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.deployment.export.find_spec", lambda name: None)
    run = shutil.copytree(served["image"], tmp_path / "image")
    before = sorted(run.iterdir())
    assert "onnx is not installed: pip install 'zooproof[export]'" in one_line(capsys, export.main, str(run))
    assert sorted(run.iterdir()) == before
