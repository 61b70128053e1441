"""Decoder-only models, ours compiled against transformers' `generate` with the same weights and the same tokens out.

GPT-2 of 124 million parameters and a small one (6 layers, dim 256, 8,192 tokens) for a single row, the small one for 16 rows with
prompts of unequal lengths, and prompt lookup on a text that repeats itself. The big one against CTranslate2 too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from ctranslate2.converters.transformers import GPT2Loader
from transformers import GPT2Config, GPT2LMHeadModel

import zoo
from zoo.generation import decoding, speculative
from zoo.gpt import gpt2

NEW = 64
SIZES = {
    "124M": dict(vocab_size=50257),
    "6 layers of 256": dict(vocab_size=8192, dim=256, heads=8, layers=6),
}


@cache
def models(size):
    """(ours, theirs) with the same drawn weights, none of whose tokens ends a text."""
    torch.manual_seed(0)
    ours = gpt2(**SIZES[size], dropout=0.0).eval()
    options = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation="sdpa")
    a = SIZES[size]
    sizes = dict(n_embd=a.get("dim", 768), n_head=a.get("heads", 12), n_layer=a.get("layers", 12), vocab_size=a["vocab_size"])
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, **options)).eval()
    theirs.load_state_dict(ours.maps["huggingface"].export(ours), strict=True)
    return ours, theirs


@cache
def optimized(size, rows, kind="float32"):
    model = models(size)[0]
    return zoo.optimize(model if kind == "float32" else zoo.quantize(model, kind), torch.ones(rows, 4, dtype=torch.long))


def generate(theirs, prompt, mask):
    return theirs.generate(prompt, attention_mask=mask.long(), max_new_tokens=NEW, do_sample=False)[:, prompt.shape[1] :]


@pytest.mark.parametrize(("size", "rows"), [("124M", 1), ("6 layers of 256", 1), ("6 layers of 256", 16)])
def test_greedy(benchmark, side_by_side, size, rows):
    _, theirs = models(size)
    fast = optimized(size, 1 if rows == 1 else 2)
    prompt = torch.randint(SIZES[size]["vocab_size"], (rows, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(16) >= torch.arange(rows)[:, None] % 12

    def ours():
        return decoding.greedy(fast.start(capacity=16 + NEW), prompt, max_new_tokens=NEW, prompt_mask=mask)

    same = (ours() == generate(theirs, prompt, mask)).all(1).float().mean()
    assert same > 0.8  # drawn weights have near ties, which rounding may break otherwise
    benchmark.group = f"GPT-2, greedy, {size}, HF generate"
    side_by_side(ours, lambda: generate(theirs, prompt, mask), rounds=5)
    if rows == 1:
        weights = sum(p.numel() * 4 for p in theirs.parameters())
        benchmark.extra_info["share of reading"] = weights * NEW / benchmark.extra_info["ours"] / read_bandwidth()


@pytest.fixture(scope="module")
def ctranslate2_folder(tmp_path_factory):
    """The weights of the big model, by way of transformers'."""
    theirs = models("124M")[1]
    spec = GPT2Loader().get_model_spec(theirs)
    spec.register_vocabulary([str(token) for token in range(SIZES["124M"]["vocab_size"])])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize(quantization=None)
    folder = tmp_path_factory.mktemp("ctranslate2")
    spec.save(str(folder))
    return folder


def test_greedy_in_int8(benchmark, side_by_side):
    """Against our own float32, optimized too."""
    prompt = torch.randint(1, SIZES["124M"]["vocab_size"], (1, 16), generator=torch.Generator().manual_seed(1))

    def greedy(kind):
        return decoding.greedy(optimized("124M", 1, kind).start(capacity=16 + NEW), prompt, max_new_tokens=NEW)

    benchmark.group = "GPT-2, greedy, 124M, ours in int8, ours in float32"
    side_by_side(lambda: greedy("int8"), lambda: greedy("float32"), rounds=5)


@pytest.mark.parametrize(("ours_in", "kind"), [("float32", "float32"), ("float32", "int8"), ("int8", "int8")])
def test_greedy_of_ctranslate2(benchmark, side_by_side, ctranslate2_folder, ours_in, kind, tmp_path):
    prompt = torch.randint(1, SIZES["124M"]["vocab_size"], (1, 16), generator=torch.Generator().manual_seed(1))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([[str(token) for token in prompt[0].tolist()]]))
    script = Path(__file__).with_name("ctranslate2_server.py")
    command = [sys.executable, script, ctranslate2_folder, "1", str(torch.get_num_threads()), rows, str(NEW), kind]
    fast = optimized("124M", 1, ours_in)

    def ours():
        return decoding.greedy(fast.start(capacity=16 + NEW), prompt, max_new_tokens=NEW)[0].tolist()

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:

        def theirs():
            server.stdin.write("1\n")
            return [int(token) for token in json.loads(server.stdout.readline())[0]]

        found = theirs()
        assert len(found) == NEW
        benchmark.extra_info["same tokens"] = sum(a == b for a, b in zip(found, ours(), strict=True))
        benchmark.group = f"GPT-2, greedy, 124M, ours in {ours_in}, CTranslate2 in {kind}"
        side_by_side(ours, theirs, rounds=5, settle=True)


def read_bandwidth():
    """Bytes a second of a sum over 512 MiB, the best of seven."""
    data, best = torch.ones(2**27), 0.0
    for _ in range(7):
        begun = time.perf_counter()
        data.sum()
        best = max(best, data.numel() * 4 / (time.perf_counter() - begun))
    return best


def test_prompt_lookup(benchmark, side_by_side):
    """The same model without and with proposals, in eager torch; greedy text of drawn weights soon repeats itself."""
    ours, _ = models("124M")
    prompt = torch.randint(50257, (1, 16), generator=torch.Generator().manual_seed(1))
    benchmark.group = "GPT-2, greedy, 124M, prompt lookup against one token at a time"

    def alone():
        return decoding.greedy(ours.start(capacity=16 + NEW), prompt, max_new_tokens=NEW)

    def looked_up():
        draft = speculative.prompt_lookup()
        return speculative.speculate(ours.start(capacity=16 + NEW), prompt, draft=draft, max_new_tokens=NEW).tokens

    assert torch.equal(alone(), looked_up())
    side_by_side(looked_up, alone, rounds=5)
