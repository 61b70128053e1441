from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from transformers import MarianConfig, MarianMTModel

import zoo
from layers import masks
from layers.attention import MultiHeadAttention
from layers.embedding import TokenEmbedding
from layers.feedforward import SwiGLU
from layers.normalization import RMSNorm
from layers.positions import ALiBi, LearnedPositions, RelativeBias, Rotary, Sinusoidal
from layers.rotary_scaling import Llama3Scaling
from layers.testing import Contract, Input, Twin, influence, tokens
from layers.transformer import DecoderBlock, EncoderBlock, PreNorm
from zoo.generation import decoding as decode
from zoo.generation.sampling import row_seeds
from zoo.transformer import Transformer, build, decoder_block, encoder_block, names_of_torch, transformer_small


def real_tokens(axes):
    """(b, n), True for the real tokens of rows that are padded on the right; each has one at least."""

    def sample(shape, g):
        lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)
        return torch.arange(shape[1]) < lengths

    return Input(tuple(axes.split()), {}, sample)


sizes = dict(
    vocab_size=st.integers(13, 16),
    heads=st.integers(1, 3),
    _head_dim=st.sampled_from([4, 6]),  # a layer norm of two features is little more than the sign of their difference
    dim=lambda a: a.heads * a._head_dim,
    hidden_dim=st.integers(19, 22),
    layers=st.integers(1, 2),
)
shapes = dict(
    inputs=lambda a: dict(
        source=tokens("batch source_length", a.vocab_size),
        target=tokens("batch target_length", a.vocab_size),
        source_mask=real_tokens("batch source_length"),
    ),
    outputs=lambda a, s: ("batch", "target_length", a.vocab_size),
    holds=[influence("causal", "target", "target_length", lambda a, i, o: i <= o, 1, cost=2)],
    model=True,
)
FREE = {"bad_input": "sentences of any number and length will do"}
q = torch.empty(1, 1, 2, 2, dtype=torch.float64, device="meta")
if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[1].dtype != torch.float64:
    FREE["compile"] = (
        "torch 2.6 believes that the log-sum-exp of attention in float64 is float32, and so compiles a wrong backward"
    )
PADDED = dict.fromkeys(
    ("gradcheck", "second_derivatives", "forward_derivatives"),
    "the padding's embedding gets no gradient, as in nn.Embedding, though outputs depend on it",
)


# ------------------------------------------------------------------------------------------------------- Marian's


def theirs(implementation):
    def make(a):
        config = MarianConfig(
            vocab_size=a.vocab_size, d_model=a.dim, encoder_layers=a.layers, decoder_layers=a.layers,
            encoder_attention_heads=a.heads, decoder_attention_heads=a.heads, encoder_ffn_dim=a.hidden_dim,
            decoder_ffn_dim=a.hidden_dim, activation_function=a.activation, dropout=0.0, attention_dropout=0.0,
            activation_dropout=0.0, scale_embedding=True, max_position_embeddings=512, pad_token_id=a.padding,
            eos_token_id=1, decoder_start_token_id=a.padding, attn_implementation=implementation,
        )  # fmt: skip
        return MarianMTModel(config)

    return make


def call_marian(model, inputs):
    source, target, mask = inputs["source"], inputs["target"], inputs["source_mask"]
    return model(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target).logits


marian_model = Contract(
    build,
    arguments=sizes | dict(dropout=0.0, padding=st.integers(0, 11), interleaved=False, activation="silu", bias=True),
    twins=[
        Twin(f"marian_{how}", build=theirs(how), weights=lambda a: build(**a.passed()).maps["huggingface"], call=call_marian)
        for how in ("eager", "sdpa")
    ],
    invalid=[(dict(activation="tanh"), "activation"), (dict(heads=0), "heads"), (dict(dropout=1.0), "dropout")],
    name="MarianTransformer",
    without=FREE | PADDED,
    **shapes,
)


# ------------------------------------------------------------------------------------------------------- torch's


def with_final_norms(vocab_size, dim, heads, hidden_dim, layers):
    """`nn.Transformer` has a norm behind each stack, post-norm ones too."""
    return Transformer(
        [encoder_block(dim, heads, hidden_dim) for _ in range(layers)],
        [decoder_block(dim, heads, hidden_dim) for _ in range(layers)],
        TokenEmbedding(vocab_size, dim, scale=dim**0.5),
        positions=Sinusoidal(dim),
        encoder_norm=nn.LayerNorm(dim),
        decoder_norm=nn.LayerNorm(dim),
    )


class TorchTransformer(nn.Transformer):
    def __init__(self, a, padding=None, **options):
        options |= dict(d_model=a.dim, nhead=a.heads, dim_feedforward=a.hidden_dim, dropout=0.0, batch_first=True)
        layer = nn.TransformerEncoderLayer(**options)
        encoder = nn.TransformerEncoder(layer, a.layers, nn.LayerNorm(a.dim), enable_nested_tensor=False)
        super().__init__(**options, num_decoder_layers=a.layers, custom_encoder=encoder)
        self.embedding, self.places = TokenEmbedding(a.vocab_size, a.dim, scale=a.dim**0.5, padding=padding), Sinusoidal(a.dim)

    def embed(self, tokens):
        x = self.embedding(tokens)
        return x + self.places(torch.arange(tokens.shape[1]), x.dtype)

    def forward(self, source, target, source_mask):
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = dict(src_key_padding_mask=~source_mask, memory_key_padding_mask=~source_mask, tgt_mask=later)
        return self.embedding.logits(super().forward(self.embed(source), self.embed(target), **hidden))


torch_model = Contract(
    with_final_norms,
    arguments=sizes,
    twins=[Twin("torch", build=TorchTransformer, weights=lambda a: names_of_torch(with_final_norms(**a.passed())))],
    invalid=[(dict(heads=0), "heads")],
    name="TorchTransformer",
    backend="inductor",  # one member of the family
    without=FREE,
    **shapes,
)


# ------------------------------------------------------------------------------------------ of today, in torch's wiring


class RotaryAttention(nn.MultiheadAttention):
    """Turns dimension d and d + half of each head, as one complex number, by position * 10000^(-d / half)."""

    def forward(self, query, key, value, key_padding_mask=None, attn_mask=None, **ignored):
        q, k, v = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        scores = turned(q) @ turned(k).mT / self.head_dim**0.5
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
            if mask is not None:  # True or -inf hides
                scores = scores.masked_fill(mask if mask.dtype == torch.bool else mask < 0, float("-inf"))
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), None


def turned(x):
    half, wide = x.shape[-1] // 2, x.to(torch.promote_types(x.dtype, torch.float32))  # there are no complex bfloat16
    angles = torch.outer(torch.arange(x.shape[-2]), 10000 ** (-torch.arange(half, dtype=torch.float64) / half)).to(wide)
    y = torch.complex(wide[..., :half], wide[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], -1).to(x)


class RotaryTransformer(TorchTransformer):
    """`nn.Transformer` with ``norm_first``, whose self-attentions turn queries and keys; no positions are added."""

    def __init__(self, a):
        super().__init__(a, padding=a.padding, norm_first=True)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            layer.self_attn = RotaryAttention(a.dim, a.heads, batch_first=True)
            layer.activation_relu_or_gelu = 0  # else the encoder's fast path goes around `RotaryAttention`

    def embed(self, tokens):
        return self.embedding(tokens)


small = Contract(
    transformer_small,
    arguments=sizes | dict(padding=st.integers(0, 11)),
    twins=[
        Twin("torch", build=RotaryTransformer, weights=lambda a: names_of_torch(transformer_small(**a.passed()))),
    ],
    invalid=[(dict(heads=0), "heads"), (dict(dropout=1.0), "dropout")],
    without=FREE | PADDED,
    **shapes,
)


def test_the_small_variant_is_held_at_its_own_sizes():
    """What the translation task takes by default, `dim` and `heads` included, against the same twin."""
    torch.manual_seed(0)
    model = zoo.create("transformer_small", vocab_size=19).double().eval()
    theirs = RotaryTransformer(SimpleNamespace(**zoo.arguments("transformer_small") | {"vocab_size": 19})).double().eval()
    theirs.load_state_dict(names_of_torch(model).export(model))
    source, target, mask = sentences(2, 7), sentences(2, 5), torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        torch.testing.assert_close(model(source, target, mask), theirs(source, target, mask), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_twin_on_its_fast_path():
    """In eval mode without gradients nn.TransformerEncoder takes another path, which leaves zeros for padding."""
    torch.manual_seed(0)
    reference = nn.Transformer(16, 4, 2, 2, 32, dropout=0.0, batch_first=True).eval()
    model = with_final_norms(20, 16, 4, 32, 2).eval()
    own = {f"embedding.{name}": value for name, value in model.embedding.state_dict().items()}
    names_of_torch(model).load(model, reference.state_dict() | own)
    x, real = torch.randn(3, 6, 16), torch.arange(6) < torch.tensor([[6], [2], [4]])
    with torch.no_grad():
        expected = reference.encoder(x, src_key_padding_mask=~real)
        for block in model.encoder:
            x = block(x, mask=real[:, None, None])
        torch.testing.assert_close(model.encoder_norm(x)[real], expected[:, : real.shape[1]][real])


# --------------------------------------------------------------------------------------- padding, decoding, variants


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(19, dim=12, heads=3, hidden_dim=20, layers=2, dropout=0.3, bias=True).double().eval()


def sentences(*shape):
    return torch.randint(3, 19, shape)


@pytest.mark.parametrize("name", ["learned", "transformer_base", "transformer_small"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_a_mask_does_not_matter(name, side):
    """Of source and target, each alone and both; on the right to the bit, for nothing else is computed of what is real."""
    model, source, target, junk = positioned(name), sentences(2, 5), sentences(2, 4), sentences(2, 3)

    def padded(tokens):
        real = torch.ones_like(tokens, dtype=torch.bool)
        parts = [(junk, ~real[:, :3]), (tokens, real)][:: 1 if side == "left" else -1]
        return (torch.cat(x, 1) for x in zip(*parts, strict=True))

    (longer, real), (after, kept) = padded(source), padded(target)
    expected = model(source, target)
    torch.testing.assert_close(model(longer, target, real), expected)
    torch.testing.assert_close(model(source, after, None, kept)[:, kept[0]], expected)
    torch.testing.assert_close(model(longer, after, real, kept)[:, kept[0]], expected)
    assert not torch.allclose(model(longer, target), expected)
    decodings = [model.start(longer, real, capacity=4), model.start(source, capacity=4)]
    torch.testing.assert_close(*(decoding(target) for decoding in decodings))


def test_padding_on_the_right_changes_no_bits(model):
    """Nor does a row without any real token, on whichever side its padding is taken to be."""
    source, target = sentences(3, 6), sentences(3, 4)
    real = torch.arange(6) < torch.tensor([[6], [2], [0]])
    places = torch.arange(6)
    with torch.no_grad():
        expected = model.decode(target, model.encode(source, real, places), None, real)
        assert torch.equal(model.decode(target, model.encode(source, real), None, real), expected)
    assert expected.isfinite().all()


def test_target_padding_on_the_right_does_not_matter(model):
    source, target = sentences(2, 5), sentences(2, 6)
    expected = model(source, target[:, :4])
    torch.testing.assert_close(model(source, target)[:, :4], expected)
    mask = torch.arange(6).expand(2, 6) < 4
    torch.testing.assert_close(model(source, target, target_mask=mask)[:, :4], expected)


def test_decoding_in_pieces_equals_the_whole(model):
    """Every way to cut five target tokens, with sources of unequal length."""
    source, target = sentences(3, 6), sentences(3, 5)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    with torch.no_grad():
        whole = model(source, target, mask)
    for cuts in range(16):
        ends = [i + 1 for i in range(4) if cuts >> i & 1] + [5]
        decoding, start = model.start(source, mask, capacity=5), 0
        for end in ends:
            torch.testing.assert_close(decoding(target[:, start:end]), whole[:, end - 1])
            start = end


@pytest.mark.parametrize("rows", [[2, 0, 1], [0, 0, 1, 1, 2, 2], [1], [0, 1, 2]])
def test_rows_can_be_selected_while_decoding(model, rows):
    source, target = sentences(3, 6), sentences(3, 5)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    decoding = model.start(source, mask, capacity=5)
    decoding(target[:, :2])
    decoding.select(torch.tensor(rows))
    rest = sentences(len(rows), 2)
    with torch.no_grad():
        expected = model(source[rows], torch.cat([target[rows, :2], rest], 1), mask[rows])[:, -1]
    torch.testing.assert_close(decoding(rest), expected)


def test_two_decodings_do_not_disturb_each_other(model):
    source, other, target = sentences(2, 5), sentences(2, 5), sentences(2, 3)
    alone = model.start(source, capacity=3)
    expected = [alone(target[:, i : i + 1]) for i in range(3)]
    first, second = model.start(source, capacity=3), model.start(other, capacity=3)
    for i in range(3):
        assert torch.equal(first(target[:, i : i + 1]), expected[i])
        assert not torch.equal(second(target[:, i : i + 1]), expected[i])


def test_too_long_a_decoding_is_an_error(model):
    decoding = model.start(sentences(2, 5), capacity=3)
    with pytest.raises(ValueError, match="capacity of 3"):
        decoding(sentences(2, 4))


def test_modern_variants_are_compositions():
    """Pre-norm, rotary positions, grouped queries, gated feed-forward: a few lines, and all of the decoding comes along."""
    dim, norm = 12, partial(RMSNorm, 12)

    def attention(**options):
        return PreNorm(MultiHeadAttention(dim, 4, kv_heads=2, head_dim=4, bias=False, **options), norm())

    def block(kind, *attentions):
        return kind(*attentions, PreNorm(SwiGLU(dim, 20), norm()))

    torch.manual_seed(0)
    rotary = partial(Rotary, 4)
    model = Transformer(
        [block(EncoderBlock, attention(positions=rotary())) for _ in range(2)],
        [block(DecoderBlock, attention(positions=rotary(), causal=True), attention()) for _ in range(2)],
        TokenEmbedding(19, dim),
        encoder_norm=norm(),
        decoder_norm=norm(),
    ).double()
    source, target = sentences(2, 5), sentences(2, 4)
    whole, decoding = model(source, target), model.start(source, capacity=4)
    for i in range(4):
        torch.testing.assert_close(decoding(target[:, i : i + 1]), whole[:, i].detach())


@pytest.mark.parametrize(
    ("name", "millions"), [("transformer_base", 63.1), ("transformer_big", 214.2), ("transformer_small", 5.7)]
)
def test_named_variants_have_the_papers_sizes(name, millions):
    """The paper states 65 and 213 million, for about 37,000 tokens."""
    with torch.device("meta"):
        model = zoo.create(name, vocab_size=37_000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_initial_values():
    model = zoo.create("transformer_base", vocab_size=500, dim=128, hidden_dim=512)
    linear = model.encoder[0].feedforward.sublayer.up
    assert linear.weight.abs().max() <= (6 / (128 + 512)) ** 0.5
    assert linear.weight.std().item() == pytest.approx((2 / (128 + 512)) ** 0.5, rel=0.02)
    assert not linear.bias.any()
    assert model.embedding.table.weight[1:].std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert not model.embedding.table.weight[0].any()


def test_the_small_variant_decodes_as_it_is_trained():
    """Rotary positions go on where the cache ends."""
    torch.manual_seed(0)
    model = zoo.create("transformer_small", vocab_size=19, dim=16).double().eval()
    source, target = sentences(2, 5), sentences(2, 4)
    whole, decoding = model(source, target), model.start(source, capacity=4)
    for i in range(4):
        torch.testing.assert_close(decoding(target[:, i : i + 1]), whole[:, i].detach())


def test_a_saved_model_is_the_same(tmp_path):
    model = zoo.create("transformer_small", vocab_size=30, layers=1).eval()
    zoo.save(model, tmp_path)
    source, target = sentences(2, 5), sentences(2, 4)
    assert torch.equal(zoo.load(tmp_path)(source, target), model(source, target))


# ------------------------------------------------------------------------------------------- rows of unequal pasts

HEAD = 4


def positioned(name, vocab_size=19):
    """A decoder with every kind of position that there is."""
    if name.startswith("transformer"):
        model = zoo.create(name, vocab_size=vocab_size, dim=12, heads=3, hidden_dim=20, layers=2)
    else:
        model = build(vocab_size, dim=12, heads=3, hidden_dim=20, layers=2)
        model.positions = LearnedPositions(20, 12) if name == "learned" else None
        for block in model.decoder:
            own = block.attention.sublayer
            if name == "scaled rotary":
                own.positions = Rotary(HEAD, 50.0, scaling=Llama3Scaling(original_length=8))
            elif name == "ALiBi":
                own.position_bias = ALiBi(3)
            elif name == "relative bias":
                own.position_bias = RelativeBias(3, buckets=6, max_distance=9, bidirectional=False)
            elif name == "windowed":
                own.window, own.positions = 3, Rotary(HEAD)
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model.double().eval()


DECODERS = ("learned", "scaled rotary", "ALiBi", "relative bias", "windowed", "transformer_base", "transformer_small")


@pytest.fixture
def prompts():
    """Three of 4, 2 and 1 tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    torch.manual_seed(0)
    return sentences(3, 4), torch.arange(4) >= torch.tensor([[0], [2], [3]])


@pytest.mark.parametrize("name", DECODERS)
def test_padding_on_the_left_does_not_matter(name, prompts):
    """Decoded with a mask, through `select`, and decoded at once with positions given: as each row alone."""
    model, source, (prompt, real) = positioned(name), sentences(3, 5), prompts
    more = sentences(3, 3)
    decoding, rows = model.start(source, capacity=9), torch.tensor([2, 1, 1])
    found = [decoding(prompt, mask=real)]
    found += [decoding(more[:, :2]), decoding(more[:, 2:])]
    decoding.select(rows)
    found.append(decoding(more[rows, :1]))
    whole, mask = torch.cat([prompt, more], 1), torch.cat([real, real.new_ones(3, 3)], 1)
    with torch.no_grad():
        memory = model.encode(source)
        given = model.logits(model.decode(whole, memory, mask, positions=masks.padded_positions(mask)))
    for row in range(3):
        alone = model.start(source[row : row + 1], capacity=9)
        tokens = whole[row : row + 1, mask[row]]
        expected = [alone(tokens[:, :-3]), alone(tokens[:, -3:-1]), alone(tokens[:, -1:])]
        for ours, theirs in zip(found, expected, strict=False):
            torch.testing.assert_close(ours[row], theirs[0])
        torch.testing.assert_close(given[row, [3, 5, 6]], torch.cat(expected))
        following = alone(more[row : row + 1, :1])
        for n in (rows == row).nonzero()[:, 0]:
            torch.testing.assert_close(found[3][n], following[0])
    unmasked = model.start(source, capacity=9)(prompt)
    assert not torch.isclose(unmasked[1:], found[0][1:]).all(-1).any()
    torch.testing.assert_close(unmasked[0], found[0][0])


@pytest.mark.parametrize("name", ["learned", "transformer_base", "transformer_small"])
@pytest.mark.parametrize("how", [decode.greedy, decode.beam, decode.sample])
def test_a_batch_of_padded_prompts_gives_each_row_what_it_gives_alone(name, how, prompts):
    model, source, (prompt, real) = positioned(name), sentences(3, 5), prompts
    seeds = row_seeds(5, 3)
    options = {decode.greedy: {}, decode.beam: dict(beams=3), decode.sample: dict(temperature=2.0)}[how]
    for stop in ((), 7):
        common = dict(max_new_tokens=6, stop=stop, repetition_penalty=1.3, **options)
        seeded = [dict(seed=seeds[rows]) if how is decode.sample else {} for rows in ([0, 1, 2], [0], [1], [2])]
        batch = how(model.start(source, capacity=12), prompt, prompt_mask=real, **common, **seeded[0])
        for row in range(3):
            start = model.start(source[row : row + 1], capacity=12)
            alone = how(start, prompt[row : row + 1, real[row]], **common, **seeded[row + 1])
            ours, theirs = (found.tokens[:, 0] if how is decode.beam else found for found in (batch, alone))
            assert torch.equal(ours[row, : theirs.shape[1]], theirs[0])
            assert not ours[row, theirs.shape[1] :].any()


def test_packed_targets_are_as_each_document_alone(model):
    source, target = sentences(2, 5), sentences(2, 7)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1]])
    with torch.no_grad():
        memory, x = model.encode(source), model.embed(target, masks.packed_positions(documents))
        for block in model.decoder:
            x = block(x, memory, mask=masks.packed(documents))
        for row in range(2):
            for document in documents[row].unique():
                own = documents[row] == document
                alone = model.decode(target[row : row + 1, own], memory[row : row + 1])
                torch.testing.assert_close(x[row, own], alone[0])


def test_a_source_padded_on_the_left_is_as_its_tokens_alone(model):
    source, real = sentences(2, 6), torch.arange(6) >= torch.tensor([[0], [3]])
    with torch.no_grad():
        memory = model.encode(source, real)
        torch.testing.assert_close(memory, model.encode(source, real, masks.padded_positions(real)))
        for row in range(2):
            torch.testing.assert_close(memory[row, real[row]], model.encode(source[row : row + 1, real[row]])[0])


BAD_FORWARDS = [
    (dict(target=sentences(1, 4)), "target: batch must be 2, got 1"),
    (dict(source=sentences(1, 5)), "target: batch must be 1, got 2"),
    (dict(source=sentences(5)), "source must have 2 axes"),
    (dict(target=sentences(2, 4).float()), "target must be of dtype torch.int64 or torch.int32, got torch"),
    (dict(source=sentences(2, 5).double()), "source must be of dtype torch.int64 or torch.int32, got torch"),
    (dict(source_mask=torch.ones(1, 5) > 0), "source_mask: batch must be 2, got 1"),
    (dict(source_mask=torch.ones(2, 4) > 0), "source_mask: source_length must be 5, got 4"),
    (dict(source_mask=torch.ones(2, 5)), "source_mask must be boolean"),
    (dict(target_mask=torch.ones(1, 4) > 0), "target_mask: batch must be 2, got 1"),
    (dict(target_mask=torch.ones(2, 5) > 0), "target_mask: target_length must be 4, got 5"),
    (dict(target_mask=torch.ones(2, 4)), "target_mask must be boolean"),
    (dict(target=sentences(2, 4) + 19), "tokens must be tokens from 0 to 18, got"),
]


@pytest.mark.parametrize(("changed", "words"), BAD_FORWARDS)
def test_inputs_that_do_not_agree_are_named(model, changed, words):
    inputs = dict(source=sentences(2, 5), target=sentences(2, 4)) | changed
    with pytest.raises(ValueError, match=words):
        model(**inputs)


def test_positions_that_do_not_fit_are_named(model):
    with pytest.raises(ValueError, match="positions: batch must be 2, got 3"):
        model.encode(sentences(2, 5), positions=torch.zeros(3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="positions: target_length must be 4, got 5"):
        model.decode(sentences(2, 4), model.encode(sentences(2, 5)), positions=torch.arange(5))
