"""Models as files that run without this project: `zoo.export` runs each at other sizes itself, before the file is there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import settings
from small_models import FAMILIES, inputs_of
from torch import nn

import zoo
from layers.residual import basic_block
from layers.testing.profiles import THOROUGH
from zoo.deployment import export as module
from zoo.deployment.export import ENDINGS, runner
from zoo.deployment.exported_decoding import Encoder, Step, greedy
from zoo.deployment.optimize import Constant
from zoo.dit import DiT
from zoo.generation import decoding
from zoo.model import LinearHead
from zoo.resnet import ResNet, small_stem

onnxruntime = pytest.importorskip("onnxruntime", reason="exports need zooproof[export]")
LOOPS = dict.fromkeys(["seq2seq_bahdanau", "seq2seq_luong"], ("source_length", "target_length"))
FIXED = LOOPS | {"googlenet": ("height", "width")}
"""What holds for one size alone: loops over tokens; poolings that round sizes up, which torch.export cannot reason about."""
OF_ONNX = FIXED | dict.fromkeys(["lstm_small", "bigru_small"], ("length",))
"""And recurrent networks, of which torch writes every step down."""
SOME = (
    "vgg11_bn", "resnet20", "googlenet", "mobilenet_v3_small", "bert_small", "gpt_small", "fasttext", "lstm_small", "dcgan_8",
    "dit_small",
)  # fmt: skip
"""What is written as ONNX in every run; all families are in thorough ones."""


def small(name):
    """A small member of a family, and what it is called with, by name."""
    torch.manual_seed(0)
    model = DiT(32, 2, 1, **FAMILIES[name]) if name == "dit_small" else zoo.create(name, **FAMILIES[name])
    model.eval()
    names = [*inspect.signature(model.forward).parameters]
    example = dict(zip(names, inputs_of(name, model), strict=False))
    for name in ("mask", "source_mask"):
        if name in names:
            example[name] = torch.arange(5) < torch.tensor([[5], [4]])
    return model, example


@pytest.mark.parametrize("name", FAMILIES if settings().max_examples >= THOROUGH else SOME)
def test_every_model_as_onnx(name, tmp_path):
    """Checked by `zoo.export` at batches of 1, 2 and 3, and other lengths and sizes of images; here at drawn values too."""
    if torch.__version__.startswith("2.6.") and name in ("unet_small", "vae_small"):
        pytest.skip("torch 2.6 cannot write these as ONNX")
    model, example = small(name)
    path = tmp_path / "model.onnx"
    zoo.export(model, example, path, fixed=OF_ONNX.get(name, ()))
    other = {key: torch.cat([x.roll(1, -1), x, x.flip(-1)]) for key, x in example.items()}
    with torch.no_grad():
        expected = module.named(model, model(**other))
    for (key, ours), theirs in zip(expected.items(), runner(path, "onnx")(other), strict=True):
        assert module.relative_error(theirs, ours) < 1e-5, key
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20", "transformer_base", "bert_small", "gpt_small", "lstm_small", "dcgan_8"])
def test_models_as_programs_of_torch_export(name, tmp_path):
    model, example = small(name)
    zoo.export(model, example, tmp_path / "model.pt2", to="torch", fixed=OF_ONNX.get(name, ()))
    assert (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20", "mobilenet_v3_small", "bert_small", "transformer_small"])
def test_cnns_and_encoders_as_torchscript_that_is_said_to_be_old(name, tmp_path):
    model, example = small(name)
    if name == "transformer_small":
        model, example = Encoder(model), {key: example[key] for key in ("source", "source_mask")}
    with pytest.warns(FutureWarning, match="TorchScript is deprecated") as caught:
        zoo.export(model, example, tmp_path / "model.pt", to="torchscript")
    assert len(caught) == 1


PROGRAM = """
import sys
import torch
inputs, *paths = sys.argv[1:]
inputs = torch.load(inputs)
for path in paths:
    if path.endswith(".onnx"):
        import onnxruntime
        given = {name: x.numpy() for name, x in inputs.items()}
        session = onnxruntime.InferenceSession(path)
        print([value.name for value in session.get_outputs()], [(value.name, value.shape) for value in session.get_inputs()])
        found = torch.from_numpy(session.run(["logits"], given)[0])
    elif path.endswith(".pt"):
        found, = torch.jit.load(path)(*inputs.values())
    elif "aot" in path:
        found = torch._inductor.aoti_load_package(path)(**inputs)["logits"]
    else:
        found = torch.export.load(path).module()(**inputs)["logits"]
    torch.save(found, path + ".found")
assert not {"zoo", "layers", "tasks"} & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("formats", [("torch", "onnx", "torchscript"), pytest.param(("aot",), marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:TorchScript is deprecated")
def test_files_run_in_a_process_that_knows_nothing_of_this_project(formats, tmp_path):
    torch.manual_seed(0)
    head = LinearHead(8, 3)
    model = ResNet(basic_block, (1,), (8,), small_stem(3, 8), head, stem_channels=8).eval()
    paths, images = [tmp_path / f"{to}{ENDINGS[to]}" for to in formats], torch.randn(3, 3, 9, 9)
    for to, path in zip(formats, paths, strict=True):
        zoo.export(model, torch.randn(2, 3, 9, 9), path, to=to, fixed=("height", "width"))
    torch.save({"images": images}, tmp_path / "images.bin")
    command = [sys.executable, "-c", PROGRAM, *map(str, (tmp_path / "images.bin", *paths))]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    with torch.no_grad():
        expected = model(images)
    for path in paths:
        assert module.relative_error(torch.load(f"{path}.found"), expected) < 1e-5, path
    if "onnx" in formats:
        assert said.split("\n")[0] == "['logits'] [('images', ['batch', 3, 9, 9])]"


# ------------------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("name", ["gpt_small", "llama_small"])
def test_a_step_of_a_language_model_writes_our_tokens(name, tmp_path):
    model, example = small(name)
    step = Step(model).eval()
    zoo.export(step, step.example(), tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    for rows in (1, 2):
        prompt = example["tokens"][:rows, :2]
        expected = decoding.greedy(model.start(capacity=9), prompt, max_new_tokens=6)
        assert greedy(session, prompt.numpy(), 6).tolist() == expected.tolist()


def test_encoder_and_step_of_a_transformer_write_our_tokens(tmp_path):
    model, example = small("transformer_small")
    given = {key: example[key] for key in ("source", "source_mask")}
    zoo.export(Encoder(model), given, tmp_path / "encoder.onnx")
    step = Step(model).eval()
    zoo.export(step, step.example(), tmp_path / "step.onnx")
    _, *memory = runner(tmp_path / "encoder.onnx", "onnx")(given)
    names = [f"memory_{kind}_{n}" for n in range(len(model.decoder)) for kind in ("keys", "values")]
    known = {name: x.numpy() for name, x in zip(names, memory, strict=True)} | {"source_mask": given["source_mask"].numpy()}
    prompt = example["target"][:, :1]
    expected = decoding.greedy(model.start(**given, capacity=9), prompt, max_new_tokens=6)
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    assert greedy(session, prompt.numpy(), 6, **known).tolist() == expected.tolist()


# ------------------------------------------------------------------------------------------------------------------ bad input


class Doubled(nn.Module):
    """What a program of one size would be, or one that forgets something."""

    def __init__(self, forward):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.ones(())), forward

    def forward(self, tokens):
        return self.how(tokens) * self.weight


def counted(tokens):
    return torch.tensor(float(tokens.shape[1])) + sum(tokens[:, n] for n in range(tokens.shape[1]))


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 cannot load this program")
def test_a_model_that_holds_for_one_size_alone_is_refused_unless_that_is_fixed(tmp_path):
    model, tokens = Doubled(counted), torch.ones(2, 4)
    with pytest.raises((ValueError, RuntimeError), match=r"fixed must have 'length': as a program|see `fixed`"):
        zoo.export(model, tokens, tmp_path / "x.pt2", to="torch")
    assert [*tmp_path.iterdir()] == []
    zoo.export(model, tokens, tmp_path / "x.pt2", to="torch", fixed=["length"])
    run = runner(tmp_path / "x.pt2", "torch")
    assert torch.equal(run({"tokens": torch.ones(5, 4)})[0], torch.full((5,), 8.0))
    with pytest.raises(Exception, match=r"to be equal to 4, but got 5|== 4|Guard"):
        run({"tokens": torch.ones(2, 5)})


def test_a_trace_of_one_size_leaves_no_file(tmp_path):
    """torch.jit.trace writes the number of steps of a loop down, without a word."""
    with pytest.raises(RuntimeError, match=r"the file's output_0 differs from the model's by .* for \{'tokens': \(1, 11\)\}"):
        zoo.export(Doubled(counted), torch.ones(2, 4), tmp_path / "x.pt", to="torchscript")
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_was_there_stays_where_the_export_fails(tmp_path, monkeypatch):
    path, model = tmp_path / "x.pt2", Doubled(lambda tokens: tokens.sum(1))
    zoo.export(model, torch.ones(2, 4), path, to="torch")
    before = path.read_bytes()
    monkeypatch.setitem(module.WRITERS, "torch", lambda *args: module.write_torch(wrong(args[0]), *args[1:]))
    with pytest.raises(RuntimeError, match=r"the file's output_0 differs from the model's by 5\.0e-01 of its largest"):
        zoo.export(model, torch.ones(2, 4), path, to="torch")
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def wrong(program):
    return module.Program(Doubled(lambda tokens: tokens.sum(1) / 2), tuple(inspect.signature(program.forward).parameters))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(to="tflite"), "to must be one of torch, aot, onnx, executorch, torchscript, got 'tflite'"),
        (dict(path="x.pt2"), "path must be a file that ends in .onnx, got "),
        (dict(fixed=["length"]), "fixed must be of batch, height, width, got 'length'"),
        (dict(fixed="height"), "fixed must be several names, such as a tuple, got 'height'"),
        (dict(example=[torch.ones(2, 3, 9, 9)]), "example must be a tensor, or tensors by name, got 'list'"),
        (dict(to="torch", path="x.pt2", opset=18), 'opset must be None unless to is "onnx", got 18'),
        (dict(opset=5), "opset must be from 18 to 23, got 5"),
        (dict(example=torch.ones(1, 3, 9, 9)), "example must be 2 or more in batch, unless that is fixed, got 'images (1,"),
        (dict(example=torch.ones(2, 3, 9)), "example must be of the axes batch channels height width, got 'images (2, 3, 9)'"),
        (dict(example={"pictures": torch.ones(2, 3, 9, 9)}), "example must be of the inputs images, got 'pictures'"),
        (dict(example={}), "example must be a tensor, or tensors by name, got {}"),
        (dict(example={"images": 3}), "example must be a tensor, got 'images=3'"),
        (dict(model=torch.bfloat16), "model must be in float32 or float64, got torch.bfloat16"),
        (dict(model="meta"), "model and example must be on the processor, where onnxruntime checks the file, got 'meta'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(given, said, tmp_path):
    whole = dict(model="cpu", example=torch.ones(2, 3, 9, 9), path="x.onnx") | given
    model, example, path = zoo.create("resnet20").to(whole.pop("model")), whole.pop("example"), tmp_path / whole.pop("path")
    with pytest.raises(ValueError, match=re.escape(said)):
        zoo.export(model, example, path, **whole)
    assert [*tmp_path.iterdir()] == []


def test_only_modules_are_exported(tmp_path):
    with pytest.raises(ValueError, match="model must be a module, got 'resnet20'"):
        zoo.export("resnet20", torch.ones(2, 3, 9, 9), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="model must be a GPT, a Llama or a Transformer, got 'ResNet'"):
        Step(zoo.create("resnet20"))


def test_an_optimized_model_is_not_exported(tmp_path):
    images = torch.ones(2, 3, 9, 9)
    fast = Constant((), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"model must be the model itself, not what zoo\.optimize made of it"):
        zoo.export(fast, images, tmp_path / "x.onnx")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript is not installed: pip install 'zooproof\[export\]'"):
        zoo.export(zoo.create("resnet20"), torch.ones(2, 3, 9, 9), tmp_path / "x.onnx")
