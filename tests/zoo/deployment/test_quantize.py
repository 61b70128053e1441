"""Models of 8-bit integers: the numbers are torchao's, what is computed with them is what they stand for, and files keep them."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import nn

import zoo
from layers.embedding import TokenEmbedding
from zoo.deployment.quantize import Int8Linear, Int8TokenEmbedding, rounded
from zoo.files import read_json, read_tensors, write_json
from zoo.generation import decoding

TEXT = dict(vocab_size=97, dim=32, heads=4, hidden_dim=48, layers=1)


def create(name, **arguments):
    torch.manual_seed(0)
    model = zoo.create(name, **(TEXT | arguments)).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


MODELS = {
    "gpt_small": (dict(max_positions=40), 1),
    "llama_small": (dict(kv_heads=1), 1),
    "bert_small": (dict(head="masked"), 1),
    "transformer_small": ({}, 2),
}
"""Arguments, and how many texts a call takes."""


def dequantized(model):
    """The same model with the floats that the integers stand for."""
    plain = zoo.create(model.config["model"], **model.config["arguments"]).eval()
    state = dict(model.state_dict())
    for name in [n for n, x in state.items() if x.dtype == torch.int8]:
        state[name] = state[name] * state.pop(name.replace(".weight", ".scale"))[:, None]
    plain.load_state_dict(state)
    return plain


def noise(got, expected):
    """Of the values, their signal: the root of the ratio of mean squares."""
    return float((got - expected).square().mean() / expected.square().mean()) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_integers_stand_for_the_floats_that_are_multiplied(name):
    """Exactly those, and all of them near the model's: within 1/255 of the largest of each row."""
    arguments, texts = MODELS[name]
    model, tokens = create(name, **arguments), torch.randint(3, 97, (2, 7))
    before = copy.deepcopy(model.state_dict())
    quantized = zoo.quantize(model, "int8")
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert not any(type(m) in (nn.Linear, TokenEmbedding) for m in quantized.modules())
    same, inputs = dequantized(quantized), [tokens] * texts
    for k, x in same.state_dict().items():
        bound = (
            before[k].abs().amax(-1, keepdim=True) / 255 if f"{k.removesuffix('weight')}scale" in quantized.state_dict() else 0
        )
        assert ((x - before[k]).abs() <= bound * 1.001).all()
    with torch.no_grad():
        assert noise(quantized(*inputs), same(*inputs)) < 1e-5
        assert 1e-4 < noise(quantized(*inputs), model(*inputs)) < 0.05


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["int8", "dynamic"])
def test_files_keep_every_bit(name, kind, tmp_path):
    arguments, texts = MODELS[name]
    quantized, tokens = zoo.quantize(create(name, **arguments), kind), torch.randint(3, 97, (2, 7))
    zoo.save(quantized, tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.config == quantized.config
    assert {x.dtype for k, x in read_tensors(tmp_path).items() if k.endswith("query.weight")} == {torch.int8}
    assert all(torch.equal(x, loaded.state_dict()[k]) for k, x in quantized.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(*[tokens] * texts), quantized(*[tokens] * texts))
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"quantized": "int3"})
    with pytest.raises(ValueError, match="quantized must be one of int8, dynamic, got 'int3'"):
        zoo.load(tmp_path)


@torch.no_grad()
def test_inputs_are_rounded_each_by_itself():
    """A row of inputs has a scale of its own, so that a loud one leaves the others alone."""
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 10), torch.randn(3, 2, 24) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    integers, scale = rounded(x)
    weight = Int8Linear(linear, dynamic=True)
    expected = (integers * scale[..., None]).double() @ (weight.weight * weight.scale[:, None]).double().mT + linear.bias.double()
    assert noise(weight(x).double(), expected) < 1e-6
    assert torch.equal(weight(x[2]), weight(x)[2])
    assert all(noise(got, want) < 0.02 for got, want in zip(weight(x) - linear.bias, linear(x) - linear.bias, strict=True))
    assert weight(x[:0]).shape == (0, 2, 10)


@torch.no_grad()
def test_zeros_and_tables():
    embedding = TokenEmbedding(9, 8, padding=0, scale=2.0)
    table = Int8TokenEmbedding(embedding, dynamic=False)
    assert torch.equal(table(torch.tensor([0])), torch.zeros(1, 8))
    assert noise(table(torch.arange(9)), embedding(torch.arange(9))) < 0.01
    assert noise(table.logits(torch.eye(8)), embedding.logits(torch.eye(8))) < 0.01
    for bad in (torch.tensor([9]), torch.tensor([-1]), torch.tensor([1.0])):
        with pytest.raises(ValueError, match="tokens"):
            table(bad)


def test_torchao_has_the_same_integers():
    """Where a product of a number and a scale's inverse is not rounded to the other of two integers."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao needs a newer torch")
    linear = nn.Sequential(nn.Linear(96, 64))
    ours = Int8Linear(linear[0], dynamic=False)
    torchao.quantize_(linear, torchao.Int8WeightOnlyConfig())
    theirs = linear[0].weight
    torch.testing.assert_close(ours.scale, theirs.scale.flatten(), rtol=1e-6, atol=0)
    differ = (ours.weight.int() - theirs.qdata.int()).abs()
    assert differ.max() <= 1
    assert (differ > 0).float().mean() < 1e-3


@pytest.mark.slow
def test_a_compiled_token_is_the_models():
    """For one row by integers that are read once, whose number no piece divides; for several as any model's."""
    model = zoo.quantize(create("llama_small", kv_heads=1), "int8")
    with mock.patch("zoo.deployment.inductor.has_templates", return_value=False):
        fast = zoo.optimize(model, torch.randint(97, (1, 4)))
    ours, theirs, prompt = fast.start(capacity=12), model.start(capacity=12), torch.randint(97, (1, 3))
    for tokens in (prompt, *torch.randint(97, (5, 1, 1))):
        assert noise(ours(tokens), theirs(tokens)) < 1e-5
    text = decoding.greedy(fast.start(capacity=12), prompt, max_new_tokens=9)
    assert torch.equal(text, decoding.greedy(model.start(capacity=12), prompt, max_new_tokens=9))


BAD = {
    "kind must be one of int8, dynamic, static, got 'int9'": lambda: zoo.quantize(create("gpt_small"), "int9"),
    "model must be a CausalLM, a Bert or a Transformer; networks of images take 'static', got 'Linear'": lambda: zoo.quantize(
        nn.Linear(3, 3), "int8"
    ),
    "got 'ResNet'": lambda: zoo.quantize(zoo.create("resnet20"), "int8"),
    "one that is not quantized yet, got 'int8'": lambda: zoo.quantize(zoo.quantize(create("gpt_small"), "int8"), "int8"),
    "without a mixture of experts": lambda: zoo.quantize(create("llama_small", experts=2), "int8"),
    "model must be of float32, got 'torch.bfloat16'": lambda: zoo.quantize(create("gpt_small").bfloat16(), "int8"),
    "dtype must be torch.float32 of a quantized model": lambda: zoo.optimize(
        zoo.quantize(create("gpt_small"), "int8"), torch.ones(1, 3).long(), torch.bfloat16
    ),
    r"x must be \(..., 3\), got \(2, 4\)": lambda: Int8Linear(nn.Linear(3, 3), dynamic=False)(torch.ones(2, 4)),
}


@pytest.mark.parametrize("error", BAD)
def test_bad_input(error):
    with pytest.raises(ValueError, match=error):
        BAD[error]()
