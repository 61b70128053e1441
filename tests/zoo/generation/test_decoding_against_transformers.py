"""Decoding equals `generate` of Hugging Face's models, and the filters of sampling are theirs."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import SEEDS, Whole, draw_padded
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList, MarianConfig, MarianMTModel
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput

from zoo.generation.decoding import beam, greedy
from zoo.generation.sampling import Sampler


def redraw(model, rng):
    """Every parameter and buffer away from its default, with logits that are well apart."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn(p.shape, generator=rng, dtype=p.dtype) * (0.7 if p.ndim > 1 else 0.2)
                + ("norm" in name or ".ln" in name)
            )
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=rng, dtype=buffer.dtype))
    return model.double().eval()


VOCAB = 23  # more than the (1 + 2 stop tokens) * 5 beams that are looked at, below which `generate` ranks -1e9 among equals
NO_SPECIAL = dict(bos_token_id=None, eos_token_id=None, pad_token_id=VOCAB - 1)


def gpt2(rng, rows, layers, longest):
    """Inputs of `generate`, our decoder over the same model, and its prompt."""
    config = GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=8, n_layer=layers, n_head=2, **NO_SPECIAL)
    model = redraw(GPT2LMHeadModel(config), rng)
    prompt, mask = draw_padded(rng, rows, longest, VOCAB)

    def forward(tokens, mask):
        mask = torch.cat([mask, mask.new_ones(len(tokens), tokens.shape[1] - mask.shape[1])], 1).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1].float()

    return model, dict(inputs=prompt, attention_mask=mask.long()), Whole(forward, mask=mask), prompt


def marian(rng, rows, layers, longest):
    """Inputs of `generate`, our decoder over the same model, and its prompt."""
    sizes = dict(d_model=8, max_position_embeddings=32, encoder_layers=layers, decoder_layers=layers)
    sizes |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("attention_heads", 2), ("ffn_dim", 12))}
    config = MarianConfig(vocab_size=VOCAB, decoder_start_token_id=VOCAB - 2, forced_eos_token_id=None, **sizes, **NO_SPECIAL)
    model = redraw(MarianMTModel(config), rng)
    source, mask = draw_padded(rng, rows, longest, VOCAB)
    source, mask = source.flip(1), mask.flip(1).long()
    memory = model.get_encoder()(source, attention_mask=mask).last_hidden_state.detach()

    def forward(tokens, memory, mask):
        outputs = model(encoder_outputs=BaseModelOutput(memory), attention_mask=mask, decoder_input_ids=tokens, use_cache=False)
        return outputs.logits[:, -1].float()

    prompt = torch.full((rows, 1), VOCAB - 2)
    return model, dict(inputs=source, attention_mask=mask), Whole(forward, memory=memory, mask=mask), prompt


@st.composite
def generations(draw):
    rng = torch.Generator().manual_seed(draw(SEEDS))
    build = draw(st.sampled_from([gpt2, marian]))
    model, inputs, decoder, prompt = build(rng, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4)))
    likely = decoder.forward(prompt, **decoder.memory).mean(0).topk(8).indices.tolist()
    stop = draw(st.lists(st.sampled_from(likely), max_size=2, unique=True))
    options = dict(max_new_tokens=draw(st.integers(1, 9)), repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.2, 2.5])))
    pad = stop[0] if stop and stop[0] and draw(st.booleans()) else VOCAB - 1
    ours = dict(stop=stop, pad=pad, prompt_mask=decoder.memory["mask"] if build is gpt2 else None, **options)
    theirs = dict(eos_token_id=stop or None, pad_token_id=pad, do_sample=False, **inputs, **options)
    return model, decoder, prompt, ours, theirs


@given(generations())
def test_greedy_is_generate(case):
    model, decoder, prompt, ours, theirs = case
    expected = model.generate(**theirs)[:, prompt.shape[1] :]
    assert torch.equal(greedy(decoder, prompt, **ours), expected)


@given(generations(), st.data())
def test_beam_is_generate(case, data):
    model, decoder, prompt, ours, theirs = case
    beams = data.draw(st.integers(2, 5), label="beams")
    nbest = data.draw(st.integers(1, beams), label="nbest")
    shared = dict(
        length_penalty=data.draw(st.sampled_from([-2.0, -0.7, 0.0, 0.6, 1.0, 3.0]), label="length_penalty"),
        early_stopping=data.draw(st.sampled_from([True, False, "never"]), label="early_stopping"),
    )
    expected = model.generate(
        **theirs, **shared, num_beams=beams, num_return_sequences=nbest, return_dict_in_generate=True, output_scores=True
    )
    tokens, scores = beam(decoder, prompt, beams=beams, nbest=nbest, **ours, **shared)
    assert torch.equal(tokens.flatten(0, 1), expected.sequences[:, prompt.shape[1] :])
    torch.testing.assert_close(scores.flatten(), expected.sequences_scores)


@given(SEEDS, st.sampled_from([0.3, 1.0, 4.0]))
def test_filters_are_those_of_transformers(seed, temperature):
    logits = torch.randn(3, 37, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    for top_k, top_p, min_p in itertools.product([None, 1, 5, 99], [0.1, 0.6, 0.95, 1.0], [0.0, 0.05, 0.5, 1.0]):
        chain = [logits_process.TemperatureLogitsWarper(temperature), logits_process.TopPLogitsWarper(top_p)]
        chain[1:1] = [logits_process.TopKLogitsWarper(top_k)] if top_k else []
        expected = LogitsProcessorList([*chain, logits_process.MinPLogitsWarper(min_p)])(None, logits).softmax(-1)
        weights = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p).weights(logits)
        torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected)
