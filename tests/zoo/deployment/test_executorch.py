"""Models as files of ExecuTorch, run by its own runtime: `tox -e executorch`. Elsewhere what needs no ExecuTorch."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from small_models import FAMILIES, inputs_of
from torch import nn

import zoo
from zoo.deployment import export as module
from zoo.deployment.export import runner
from zoo.deployment.exported_decoding import Encoder, Step
from zoo.generation import decoding


@pytest.fixture(scope="module")
def executorch():
    return pytest.importorskip("executorch", reason="it needs zooproof[executorch]")


def small(name):
    torch.manual_seed(0)
    return zoo.create(name, **FAMILIES[name]).eval()


def settled(model):
    """Batch norms with statistics of their own."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


def same(run, model, given):
    with torch.no_grad():
        expected = module.named(model, model(**given))
    for (key, ours), theirs in zip(expected.items(), run(given), strict=True):
        assert theirs.shape == ours.shape
        assert module.relative_error(theirs, ours) < 1e-5, key


PROGRAM = """
import sys
import torch
from executorch.runtime import Runtime
path, images = sys.argv[1], torch.load(sys.argv[2])
method = Runtime.get().load_program(path).load_method("forward")
torch.save(method.execute([images])[0].clone(), sys.argv[2])
assert not {"zoo", "layers", "tasks"} & {name.partition(".")[0] for name in sys.modules}
"""


def test_a_cnn_runs_in_a_process_that_knows_nothing_of_this_project(executorch, tmp_path):
    model, path, other = settled(small("resnet20")), tmp_path / "resnet20.pte", tmp_path / "images.bin"
    zoo.export(model, torch.randn(3, 3, 33, 32), path, to="executorch")
    assert [*tmp_path.iterdir()] == [path]
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    assert weights < path.stat().st_size < 1.3 * weights
    images = torch.randn(1, 3, 17, 28)
    torch.save(images, other)
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), str(other)], cwd=tmp_path, check=True, capture_output=True)
    with torch.no_grad():
        assert module.relative_error(torch.load(other), model(images)) < 1e-5
    with pytest.raises(RuntimeError, match="failed with error 0x10"):
        runner(path, "executorch")({"images": torch.randn(4, 3, 33, 32)})


def test_an_encoder_of_a_transformer(executorch, tmp_path):
    model = Encoder(small("transformer_small")).eval()
    source = torch.tensor([[4, 7, 5, 2, 1, 6, 8, 3, 4], [6, 3, 2, 0, 0, 0, 0, 0, 0]])
    zoo.export(model, {"source": source, "source_mask": source > 0}, tmp_path / "encoder.pte", to="executorch")
    run = runner(tmp_path / "encoder.pte", "executorch")
    for rows, length in ((2, 9), (1, 4), (2, 1)):
        tokens = source[:rows, :length].contiguous()
        same(run, model, {"source": tokens, "source_mask": tokens > 0})


def test_a_step_of_a_gpt_writes_our_tokens(executorch, tmp_path):
    """GELU by tanh among it, which XNNPACK's part of ExecuTorch 1.5.1 takes for the exact one."""
    model, rows, new = small("gpt_small"), 2, 5
    step = Step(model).eval()
    prompt = inputs_of("gpt_small", model)[0][:rows, :2]
    zoo.export(step, step.example(rows, past=7), tmp_path / "step.pte", to="executorch")
    run = runner(tmp_path / "step.pte", "executorch")
    past = {name: x for name, x in step.example(rows, past=0).items() if name != "tokens"}
    tokens, written = prompt, []
    for _ in range(new):
        same(run, step, {"tokens": tokens, **past})
        logits, *present = run({"tokens": tokens, **past})
        past, tokens = dict(zip(past, present, strict=True)), logits.argmax(-1)[:, None]
        written.append(tokens)
    expected = decoding.greedy(model.start(capacity=2 + new), prompt, max_new_tokens=new)
    assert torch.cat(written, 1).tolist() == expected.tolist()


class Spectrum(nn.Module):
    """Complex numbers, which ExecuTorch does not have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return torch.fft.rfft2(images * self.weight).abs()


def test_a_model_that_executorch_cannot_take_leaves_no_file(executorch, tmp_path):
    with pytest.raises(RuntimeError, match=r"ExecuTorch fails: These operators .* mismatched dtypes"):
        zoo.export(Spectrum(), torch.randn(2, 3, 8, 8), tmp_path / "x.pte", to="executorch")
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------------------------------------------- without ExecuTorch


def test_other_sizes_are_none_larger_than_the_example_where_memory_is_planned():
    inputs = {"images": torch.randn(3, 3, 30, 40)} | Step(small("gpt_small")).example(rows=3, past=5)
    free = module.free_of(inputs, ())
    found = [*module.others(inputs, free, bounded=True)]
    for sized in found:
        assert all(size <= most for name, x in sized.items() for size, most in zip(x.shape, inputs[name].shape, strict=True))
    assert [sized["images"].shape for sized in found] == [(1, 3, 23, 33), (3, 3, 17, 27), (2, 3, 30, 40)]
    assert [sized["past_keys_0"].shape[2] for sized in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(path="x.onnx"), "path must be a file that ends in .pte, got "),
        (dict(model=torch.float64), "model must be in float32, which XNNPACK computes in, got torch.float64"),
        (dict(model="meta"), "model and example must be on the processor, where executorch checks the file, got 'meta'"),
        (dict(opset=20), 'opset must be None unless to is "onnx", got 20'),
    ],
)
def test_bad_input_is_named(given, said, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    whole = dict(model="cpu", path="x.pte") | given
    model, path = zoo.create("resnet20").to(whole.pop("model")), tmp_path / whole.pop("path")
    with pytest.raises(ValueError, match=re.escape(said)):
        zoo.export(model, torch.ones(2, 3, 9, 9), path, to="executorch", **whole)
    assert [*tmp_path.iterdir()] == []


def test_the_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"executorch is not installed: pip install 'zooproof\[executorch\]'"):
        zoo.export(zoo.create("resnet20"), torch.ones(2, 3, 9, 9), tmp_path / "x.pte", to="executorch")
