"""The small translation model (4 + 4 layers, dim 256, 8 heads, vocabulary 8,000), ours against Marian's with the same weights.

Forward, train step and decoding, padding included, against `transformers`, and the blocks against `nn.Transformer`; decoding
against CTranslate2 too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ctranslate2.converters.transformers import BartLoader
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel

import zoo
from zoo.generation import decoding
from zoo.transformer import build, names_of_marian

VOCABULARY, DIM, LAYERS, HEADS, HIDDEN = 8000, 256, 4, 8, 1024
PAD, EOS, START = 0, 1, 2
NEW = 32


@pytest.fixture(scope="module")
def models():
    """(ours, theirs) with the same drawn weights; no token ends a sentence, so that all decode `NEW` tokens."""
    torch.manual_seed(0)
    ours = build(
        VOCABULARY,
        dim=DIM,
        heads=HEADS,
        hidden_dim=HIDDEN,
        layers=LAYERS,
        dropout=0.0,
        interleaved=False,
        activation="silu",
        bias=True,
    )
    torch.nn.init.normal_(ours.embedding.table.weight, std=0.3)
    with torch.no_grad():
        ours.bias[EOS] = ours.bias[PAD] = -1e4
    config = MarianConfig(
        vocab_size=VOCABULARY, d_model=DIM, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN, activation_function="silu", dropout=0.0,
        scale_embedding=True, max_position_embeddings=128, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=START,
        forced_eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = MarianMTModel(config)
    theirs.load_state_dict(names_of_marian(ours, 128).export(ours), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def sentences():
    """64 of 8 to 32 tokens, the rest padding: (source, mask, target)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 33, (64, 1), generator=generator)
    lengths[0] = 32
    mask = torch.arange(32) < lengths
    source, target = (torch.randint(3, VOCABULARY, (64, 32), generator=generator) for _ in range(2))
    return source.masked_fill(~mask, PAD), mask, target


def test_forward(benchmark, side_by_side, models, sentences):
    ours, theirs = (model.eval() for model in models)
    source, mask, target = sentences
    benchmark.group = "Transformer, infer, eager"

    def call_ours():
        with torch.inference_mode():
            return ours(source, target, mask)

    def call_theirs():
        with torch.inference_mode():
            return theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target, use_cache=False).logits

    torch.testing.assert_close(call_ours(), call_theirs(), rtol=1e-3, atol=1e-3)
    side_by_side(call_ours, call_theirs, rounds=15)


def test_train_step(benchmark, side_by_side, models, sentences):
    ours, theirs = (model.train() for model in models)
    source, mask, target = sentences
    benchmark.group = "Transformer, train step, eager"

    def step(model, call):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)

        def run():
            loss = F.cross_entropy(call().flatten(0, 1), target.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    side_by_side(
        step(ours, lambda: ours(source, target, mask)),
        step(
            theirs, lambda: theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target, use_cache=False).logits
        ),
        rounds=9,
    )


def test_forward_of_torch(benchmark, side_by_side, sentences):
    """`nn.Transformer` in training mode, where it takes no fast path."""
    mask = sentences[1]
    theirs = torch.nn.Transformer(DIM, HEADS, LAYERS, LAYERS, HIDDEN, dropout=0.0, batch_first=True)
    ours = build(VOCABULARY, dim=DIM, heads=HEADS, hidden_dim=HIDDEN, layers=LAYERS, dropout=0.0)
    x, y = torch.randn(64, 32, DIM), torch.randn(64, 32, DIM)
    later = torch.ones(32, 32, dtype=torch.bool).triu(1)
    benchmark.group = "Transformer blocks, forward and backward, eager"

    def call_ours():
        memory = x
        for block in ours.encoder:
            memory = block(memory, mask=mask[:, None, None])
        output = y
        for block in ours.decoder:
            output = block(output, memory, memory_mask=mask[:, None, None])
        output.sum().backward()

    def call_theirs():
        hidden = dict(src_key_padding_mask=~mask, memory_key_padding_mask=~mask, tgt_mask=later, tgt_is_causal=True)
        theirs(x, y, **hidden).sum().backward()

    side_by_side(call_ours, call_theirs, rounds=9)


# ------------------------------------------------------------------------------- decoding: 16 sentences of 20 tokens, 32 out


@pytest.fixture(scope="module")
def source():
    return torch.randint(3, VOCABULARY, (16, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ours_decodes(models, source):
    """beams -> tokens (16, NEW)"""
    fast = zoo.optimize(models[0].eval(), source)
    start, options = torch.full((len(source), 1), START), dict(max_new_tokens=NEW, stop=(EOS,), pad=PAD)

    def decode(beams):
        steps = fast.start(source, capacity=NEW + 1)
        if beams == 1:
            return decoding.greedy(steps, start, **options)
        return decoding.beam(steps, start, beams=beams, **options).tokens[:, 0]

    return decode


@pytest.mark.parametrize("beams", [1, 4])
def test_decoding(benchmark, side_by_side, models, ours_decodes, source, beams):
    theirs, mask = models[1].eval(), torch.ones_like(source)

    def generate():
        options = dict(max_new_tokens=NEW, num_beams=beams, do_sample=False)
        return theirs.generate(input_ids=source, attention_mask=mask, **options)[:, 1:]

    assert torch.equal(ours_decodes(beams), generate())
    benchmark.group = f"Transformer, {'greedy' if beams == 1 else f'beam {beams}'}, HF generate"
    side_by_side(lambda: ours_decodes(beams), generate, rounds=15)


@pytest.fixture(scope="module")
def ctranslate2_folder(models, tmp_path_factory):
    """Our weights, by way of Marian's."""
    theirs, names = models[1].eval(), [str(token) for token in range(VOCABULARY)]
    theirs.config.normalize_before = theirs.config.normalize_embedding = False
    spec = BartLoader().get_model_spec(theirs)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = str(EOS), str(PAD), str(START)
    spec.validate()
    spec.optimize(quantization=None)
    folder = tmp_path_factory.mktemp("ctranslate2")
    spec.save(str(folder))
    return folder


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("workers", [1, 2], ids=["2 threads for a batch", "2 batches, a thread for each"])
def test_decoding_of_ctranslate2(benchmark, side_by_side, ours_decodes, ctranslate2_folder, source, beams, workers, tmp_path):
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps([[str(token) for token in row] for row in source.tolist()]))
    script = Path(__file__).with_name("ctranslate2_server.py")
    command = [sys.executable, script, ctranslate2_folder, str(workers), str(2 // workers), sentences, str(NEW), "float32"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:

        def translate():
            server.stdin.write(f"{beams}\n")
            return torch.tensor([[int(token) for token in row] for row in json.loads(server.stdout.readline())])

        assert torch.equal(ours_decodes(beams), translate())
        benchmark.group = f"Transformer, {'greedy' if beams == 1 else f'beam {beams}'}, CTranslate2"
        side_by_side(lambda: ours_decodes(beams), translate, rounds=9, settle=True)
