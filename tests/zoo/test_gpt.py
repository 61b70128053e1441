from __future__ import annotations

from functools import partial
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from gpt_twins import CLASSES, theirs
from hypothesis import strategies as st
from torch import nn

import zoo
from layers import masks
from layers.testing import Contract, Input, Twin, exercised, influence, initial_distribution, tokens
from zoo.generation import decoding
from zoo.gpt import gemma, gpt2, llama

# -------------------------------------------------------------------------------------------------------- contracts


def padded(axes):
    """(b, n), True for the real tokens of rows that are padded on the left; each has one at least."""

    def sample(shape, g):
        lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)
        return torch.arange(shape[1]) >= shape[1] - lengths

    return Input(tuple(axes.split()), {}, sample)


def real(logits, mask):
    """Logits at real tokens; what stands at padding is nobody's."""
    return logits * mask[..., None]


def call_theirs(model, inputs):
    mask = inputs.get("mask", torch.ones_like(inputs["tokens"], dtype=torch.bool))
    places = masks.padded_positions(mask)
    return real(model(input_ids=inputs["tokens"], attention_mask=mask.long(), position_ids=places, use_cache=False).logits, mask)


def causal(exact=True):
    return influence("causal", "tokens", "length", lambda a, i, o: i <= o, 1, cost=2, exact=exact)


sizes = dict(vocab_size=st.integers(13, 16), heads=st.sampled_from([2, 4]), layers=1, hidden_dim=st.integers(19, 22))
shapes = dict(
    inputs=lambda a: dict(tokens=tokens("batch length", a.vocab_size), mask=padded("batch length")),
    outputs=lambda a, s: ("batch", "length", a.vocab_size),
    call=lambda model, inputs: real(model(**inputs), inputs["mask"]) if "mask" in inputs else model(**inputs),
    holds=[causal()],
    model=True,
)
DROPOUT = "contracts of the blocks draw it"
PLACES = "test_packed_documents_are_as_if_alone"
FIXED = "one value, which is that of the published models or one for tests"
FREE = {"bad_input": "texts of any number and length will do"}
q = torch.empty(1, 1, 2, 2, dtype=torch.float64, device="meta")
if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[1].dtype != torch.float64:
    FREE["compile"] = (
        "torch 2.6 believes that the log-sum-exp of attention in float64 is float32, and so compiles a wrong backward"
    )

gpt2_model = Contract(
    gpt2,
    arguments=sizes | dict(dim=lambda a: 6 * a.heads, max_positions=st.integers(9, 12), dropout=0.0),
    twins=[
        Twin("huggingface", partial(theirs, "gpt2"), lambda a: gpt2(**a.passed()).maps["huggingface"], call_theirs),
    ],
    invalid=[(dict(heads=5), "heads"), (dict(dropout=1.0), "dropout"), (dict(max_positions=0), "max_positions")],
    name="GPT2",
    without=FREE,
    **shapes
    | dict(
        holds=[
            *shapes["holds"],
            exercised(dropout=DROPOUT, positions=PLACES, **dict.fromkeys(("embedding_std", "layers"), FIXED)),
        ]
    ),
)

grouped = dict(
    dim=lambda a: a.heads * 6, kv_heads=lambda a: st.sampled_from([1, a.heads // 2]), head_dim=st.sampled_from([4, 8]),
    base=st.sampled_from([100.0, 10000.0]),
)  # fmt: skip
RELATIVES = dict(
    llama=dict(bias=st.booleans(), tied=st.booleans()),
    qwen3=dict(query_key_norm=True, tied=st.booleans()),
    mistral=dict(window=st.integers(2, 3), tied=False),
    mixtral=dict(experts=st.integers(3, 4), active=2, tied=False),
)
OPTIONS = dict(bias=False, tied=False, query_key_norm=False, window=None, experts=None, active=2)
"""What a relative does not say."""


def option(name):
    return lambda a: RELATIVES[a._kind].get(name, OPTIONS[name])


def relatives(kinds, name, holds, exact=True, **without):
    return Contract(
        llama,
        arguments=sizes | grouped | dict(_kind=st.sampled_from(kinds)) | {name: option(name) for name in OPTIONS},
        twins=[
            Twin("huggingface", lambda a: theirs(a._kind, a), lambda a: llama(**a.passed()).maps["huggingface"], call_theirs),
        ],
        invalid=[
            (dict(heads=0), "heads"),
            (dict(kv_heads=3), "kv_heads"),
            (dict(scaling={"factor": 2.0}), "scaling"),
            (dict(scaling={"kind": "yarn"}), "original_length"),
            (dict(window=0), "window"),
        ],
        name=name,
        without=FREE | without,
        **shapes | dict(holds=[causal(exact), *holds]),
    )


def as_linear(a, weight):
    """Uniform up to 1 / sqrt(features that come in)."""
    return 0.0, (3 * weight.shape[-1]) ** -0.5


llama_model = relatives(
    ["llama", "qwen3", "mistral"],
    "Llama",
    [
        exercised(
            active="of experts: in the contract of MixtureOfExperts",
            dropout=DROPOUT,
            positions=PLACES,
            scaling="tests/layers/test_rotary_scaling.py",
            **dict.fromkeys(("eps", "layers", "embedding_std", "output_bias"), FIXED),
        )
    ],
)
mixtral_model = relatives(
    ["mixtral"],
    "Mixtral",
    [initial_distribution(dict.fromkeys([f"*.feedforward.sublayer.{name}" for name in ("gate", "up", "down")], as_linear))],
    exact=False,  # for the same reason as that of `batch_rows`
    batch_rows="an expert's product rounds by how many tokens it has; see the contract of MixtureOfExperts",
)

GEMMAS = dict(
    gemma={},
    gemma3=dict(window=3, local_layers=1, local_base=100.0, query_key_norm=True, sandwich=True, query_scale=20),
    gemma2=dict(
        window=3, local_layers=1, sandwich=True, query_scale=20, attention_softcap=st.sampled_from([1.0, 5.0]), softcap=3.0
    ),
)
GEMMA_OPTIONS = dict(
    window=None, local_layers=0, local_base=None, query_key_norm=False, sandwich=False, query_scale=None,
    attention_softcap=None, softcap=None,
)  # fmt: skip


GEMMA_LEAVES = exercised(dropout=DROPOUT, positions=PLACES, eps=FIXED, scaling="tests/layers/test_rotary_scaling.py")


def gemma_contract(kinds, name, layers, **twin):
    def of(option):
        return lambda a: GEMMAS[a._kind].get(option, GEMMA_OPTIONS[option])

    return Contract(
        gemma,
        arguments=sizes
        | grouped
        | dict(layers=layers, _kind=st.sampled_from(kinds))
        | {option: of(option) for option in GEMMA_OPTIONS},
        twins=[
            Twin(
                "huggingface",
                lambda a: theirs(a._kind, a),
                lambda a: gemma(**a.passed()).maps["huggingface"],
                call_theirs,
                **twin,
            ),
        ],
        invalid=[
            (dict(local_layers=-1), "local_layers"),
            (dict(local_layers=1, window=None), "window"),
            (dict(softcap=0.0), "softcap"),
        ],
        name=name,
        without=FREE,
        **shapes
        | (dict(inputs=lambda a: dict(tokens=tokens("batch length", a.vocab_size))) if kinds == ["gemma2"] else {})
        | (dict(holds=[*shapes["holds"], GEMMA_LEAVES]) if name == "Gemma" else {}),
    )


gemma_model = gemma_contract(["gemma", "gemma3"], "Gemma", 2)
# without padding, of whose rows their eager attention, the only one with soft caps, makes NaN
gemma2_model = gemma_contract(
    ["gemma2"],
    "Gemma2",
    1,
    single_precision="models/gemma2/modeling_gemma2.py:203, softmax in float32",
)


# ------------------------------------------------------------------------------------------------ decoding, all kinds

SMALL = dict(vocab_size=19, dim=12, heads=4, kv_heads=2, layers=2, hidden_dim=20, head_dim=4)
KINDS = {
    "gpt2": partial(gpt2, 19, dim=12, heads=3, layers=2, max_positions=24, hidden_dim=20, dropout=0.0),
    "llama": partial(llama, **SMALL),
    "qwen3": partial(llama, **SMALL, query_key_norm=True, tied=True),
    "mistral": partial(llama, **SMALL, window=3),
    "mixtral": partial(llama, **SMALL, experts=3),
    "gemma": partial(gemma, **SMALL),
    "gemma2": partial(gemma, **SMALL, **GEMMAS["gemma2"] | dict(attention_softcap=5.0)),
    "gemma3": partial(gemma, **SMALL, **GEMMAS["gemma3"]),
    "yarn": partial(llama, **SMALL, scaling=dict(kind="yarn", factor=4.0, original_length=8)),
    "longrope": partial(
        llama, **SMALL, scaling=dict(kind="longrope", short=[1.0, 1.5], long=[2.0, 3.0], original_length=8, factor=2.0)
    ),
    "dynamic": partial(llama, **SMALL, scaling=dict(kind="dynamic", factor=2.0, original_length=8)),
}


def drawn(kind, seed=0):
    torch.manual_seed(seed)
    model = KINDS[kind]().double().eval()
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=0.5)
        if "norm" in name and not kind.startswith("gemma"):
            p.data += 1
    return model


def prompts(rows=3, length=4):
    """Of 4, 2 and 1 tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    torch.manual_seed(1)
    return torch.randint(19, (rows, length)), torch.arange(length) >= torch.tensor([[0], [2], [3]])[:rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_decodes_as_the_whole_text(kind):
    """In pieces of any size, from prompts of unequal lengths, for every kind of position and window."""
    model, (prompt, mask), new = drawn(kind), prompts(), torch.randint(19, (3, 6))
    text, seen = torch.cat([prompt, new], 1), torch.cat([mask, torch.ones(3, 6, dtype=torch.bool)], 1)
    whole = model(text, seen).detach()
    decoder = model.start(capacity=text.shape[1])
    torch.testing.assert_close(decoder(prompt, mask), whole[:, 3])
    at = 4
    for size in (1, 2, 1, 1):
        torch.testing.assert_close(decoder(text[:, at : at + size]), whole[:, at + size - 1])
        at += size
    rows = torch.tensor([2, 0, 0])
    decoder.select(rows)
    torch.testing.assert_close(decoder(text[rows, 9:]), whole[rows, 9])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_decodes_as_its_rows_alone(kind):
    model, (prompt, mask) = drawn(kind), prompts()
    options = dict(max_new_tokens=6, stop=3, pad=3)
    together = decoding.greedy(model.start(capacity=10), prompt, prompt_mask=mask, **options)
    best = decoding.beam(model.start(capacity=10), prompt, beams=3, prompt_mask=mask, **options)
    for row in range(3):
        alone = prompt[row : row + 1, mask[row]]
        # a scaling that knows the length of the text needs the same one
        capacity = 10 if kind in ("longrope", "dynamic") else 6 + alone.shape[1]
        found = decoding.greedy(model.start(capacity=capacity), alone, **options)
        assert decoding.trim(found, 3) == decoding.trim(together[row : row + 1], 3)
        found = decoding.beam(model.start(capacity=capacity), alone, beams=3, **options)
        assert decoding.trim(found.tokens[0], 3) == decoding.trim(best.tokens[row], 3)
        torch.testing.assert_close(found.scores[0], best.scores[row])


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_equal_those_of_generate(kind, beams):
    """transformers 18478, 3021, 21080: positions of padded prompts, and what `generate` does without a mask."""
    ours, (prompt, mask) = drawn(kind), prompts()
    mask = torch.ones_like(mask) if kind == "gemma2" else mask  # of padding their eager attention makes NaN
    defaults = {n: p.default for n, p in signature(KINDS[kind].func).parameters.items()}
    a = SimpleNamespace(**defaults | KINDS[kind].keywords | dict(vocab_size=19))
    model = theirs(kind, a).double()
    model.load_state_dict(ours.maps["huggingface"].export(ours), strict=True)
    found = decoding.beam(ours.start(capacity=11), prompt, prompt_mask=mask, beams=beams, max_new_tokens=7).tokens[:, 0]
    with torch.no_grad():
        expected = model.generate(
            prompt, attention_mask=mask.long(), max_new_tokens=7, num_beams=beams, do_sample=False, pad_token_id=0,
            eos_token_id=None, min_new_tokens=7,
        )  # fmt: skip
    assert torch.equal(found, expected[:, 4:])


def test_packed_documents_are_as_if_alone():
    """Positions from the caller, and a mask that keeps documents apart: every kind of model gives each its own logits."""
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    text = torch.randint(19, (1, 8))
    for kind in KINDS:
        model = drawn(kind)
        together = model(text, masks.packed(documents), masks.packed_positions(documents))
        for number in range(3):
            own = documents[0] == number
            if kind not in ("longrope", "dynamic"):
                torch.testing.assert_close(together[:, own], model(text[:, own]))


def test_a_decoder_goes_back():
    for kind in ("gpt2", "llama", "qwen3"):
        model, text = drawn(kind), torch.randint(19, (2, 9))
        decoder = model.start(capacity=9)
        decoder(text[:, :7])
        decoder.truncate(4)
        assert decoder.length == 4
        expected = model(text[:, :6]).detach()[:, 4:]
        torch.testing.assert_close(decoder.all_logits(text[:, 4:6]), expected)


def test_rows_go_back_to_lengths_of_their_own():
    model, text = drawn("llama"), torch.randint(19, (2, 9))
    decoder = model.start(capacity=9)
    decoder(text[:, :7])
    decoder.truncate(torch.tensor([7, 5]))
    found = decoder(torch.stack([text[0, 7], text[1, 5]])[:, None])
    torch.testing.assert_close(found[0], model(text[:1, :8]).detach()[0, -1])
    torch.testing.assert_close(found[1], model(text[1:, :6]).detach()[0, -1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.start(capacity=0), "capacity"),
        (lambda m: m.start(capacity=5, spare=-1), "spare"),
        (lambda m: m.start(capacity=25), "capacity must be 24 at most"),
        (lambda m: m.start(capacity=3)(torch.zeros(1, 4, dtype=torch.long)), "capacity of 3"),
        (lambda m: m.start(capacity=3)(torch.full((1, 2), 19)), "tokens"),
        (lambda m: m(torch.zeros(2, 3)), "tokens"),
        (lambda m: m(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)), "mask"),
        (lambda m: m(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)), "mask"),
        (lambda m: m(torch.zeros(2, 3, dtype=torch.long), positions=torch.arange(4)), "positions"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(drawn("gpt2"))


# ------------------------------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2", 124.4), ("gpt2_medium", 354.8), ("gpt2_large", 774.0), ("gpt2_xl", 1557.6), ("llama2_7b", 6738.4),
        ("llama3_1b", 1235.8), ("llama3_8b", 8030.3), ("smollm2_135m", 134.5), ("mistral_7b", 7241.7), ("mixtral_8x7b", 46702.8),
        ("qwen3_0_6b", 596.0), ("gemma_2b", 2506.2), ("gemma2_2b", 2614.3), ("gemma3_1b", 999.9),
    ],
)  # fmt: skip
def test_named_variants_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        model = zoo.create(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral"])
def test_a_saved_model_is_the_same(kind, tmp_path):
    name = "gpt_small" if kind == "gpt2" else "llama_small"
    model = zoo.create(name, **dict(KINDS[kind].keywords) | dict(vocab_size=19)).eval()
    zoo.save(model, tmp_path)
    text = torch.randint(19, (2, 5))
    assert torch.equal(zoo.load(tmp_path)(text), model(text))


def test_initial_values():
    model = gpt2(100, dim=64, heads=4, layers=8)
    assert model.decoder[0].feedforward.sublayer.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.decoder[3].feedforward.sublayer.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.embedding.table.weight.std().item() == pytest.approx(0.02, rel=0.05)
