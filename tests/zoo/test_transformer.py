from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from small_models import sentences
from torch import nn
from transformers import MarianConfig, MarianMTModel

import zoo
from layers.attention import MultiHeadAttention
from layers.embedding import TokenEmbedding
from layers.feedforward import SwiGLU
from layers.normalization import RMSNorm
from layers.positions import Rotary, Sinusoidal
from layers.testing import Contract, Input, Twin, exercised, influence, initial_distribution, tokens
from layers.transformer import DecoderBlock, EncoderBlock, PreNorm
from zoo.transformer import Transformer, build, decoder_block, encoder_block, names_of_torch, transformer_small

COMPARED = "test_initial_values holds those of full size to their law"


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
    model=True,
)


def zero(a, parameter):
    return 0, 0


CAUSAL = influence("causal", "target", "target_length", lambda a, i, o: i <= o, 1, cost=2)


def held(*claims):
    """What those that are built to be trained promise; Glorot's law is that of all linear layers."""
    return [
        CAUSAL,
        initial_distribution({"*bias": zero, "*.sublayer.*.weight": COMPARED, "embedding.*": COMPARED}),
        *claims,
    ]


HIDDEN = "in test_transformer_decoding.py"
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
    holds=held(
        exercised(
            target_mask=HIDDEN,
            dropout="contracts of the blocks draw it",
            **dict.fromkeys(("activation", "bias", "interleaved"), "Marian has one; torch's in the contract below"),
        )
    ),
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
    holds=[
        CAUSAL,
        initial_distribution(embedding__table__weight=lambda a, p: (0, a.dim**-0.5)),
        exercised(target_mask=HIDDEN),
    ],
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
    holds=held(exercised(target_mask=HIDDEN, dropout="contracts of the blocks draw it")),
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
