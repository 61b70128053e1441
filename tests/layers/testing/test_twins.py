"""`like`: replacements of well-known blocks are green, and each that differs is red."""

from __future__ import annotations

from functools import partial
from operator import itemgetter

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from layers.testing import Contract, like
from layers.testing.twins import REFERENCES
from layers.weights import WeightMap


class Attention(nn.Module):
    """Self attention written out, with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, scaled: bool = True) -> None:
        super().__init__()
        self.heads, self.scaled = heads, scaled
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-2, 1).unbind(-2)
        scores = q @ k.mT / (q.shape[-1] ** 0.5 if self.scaled else 1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.out((scores.softmax(-1) @ v).movedim(1, -2).flatten(-2))


class CrossAttention(nn.Module):
    """One head, with a mask (b, 1, q, k)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query, key, value, mask):
        scores = self.q(query) @ self.k(key).mT / self.q.out_features**0.5
        return self.out(scores.masked_fill(~mask[:, 0], float("-inf")).softmax(-1) @ self.v(value))


class LSTM(nn.Module):
    """One layer, step by step, with torch's names; `order` is that of the gates."""

    def __init__(self, input_size: int, hidden_size: int, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.order = order
        for name, *shape in (("weight_ih_l0", input_size), ("weight_hh_l0", hidden_size), ("bias_ih_l0",), ("bias_hh_l0",)):
            setattr(self, name, nn.Parameter(torch.empty(4 * hidden_size, *shape)))
            nn.init.uniform_(getattr(self, name), -0.1, 0.1)

    def forward(self, input, hx=None):
        zeros = input.new_zeros(1, len(input), self.weight_hh_l0.shape[1])
        (h,), (c,) = hx or (zeros, zeros)
        outputs = []
        for x in input.unbind(1):
            gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
            parts = gates.chunk(4, -1)
            i, f, g, o = (parts[n] for n in self.order)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h[None], c[None])


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5, correction: int = 0) -> None:
        super().__init__()
        self.eps, self.correction = eps, correction
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, features):
        variance, mean = torch.var_mean(features, -1, correction=self.correction, keepdim=True)
        return (features - mean) / (variance + self.eps).sqrt() * self.scale + self.shift


class Gate(nn.Module):
    def __init__(self, channels: int, hidden: int, gate=torch.sigmoid) -> None:
        super().__init__()
        self.gate, self.down, self.up = gate, nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, images):
        return images * self.gate(self.up(self.down(images.mean((2, 3))).relu()))[..., None, None]


ATTENTION = like(
    nn.MultiheadAttention,
    arguments=dict(dim="embed_dim", heads="num_heads"),
    inputs=dict(x="query", mask="self_mask"),
    weights=WeightMap(("qkv.weight", "in_proj_weight"), ("qkv.bias", "in_proj_bias"), ("out", "out_proj")),
)
CROSS = like(
    partial(nn.MultiheadAttention, num_heads=1),
    arguments=dict(dim="embed_dim"),
    inputs={name: name for name in ("query", "key", "value", "mask")},
    weights=WeightMap(
        ("q.weight k.weight v.weight", "in_proj_weight", "qkv o i -> (qkv o) i"),
        ("q.bias k.bias v.bias", "in_proj_bias", "qkv o -> (qkv o)"),
        ("out", "out_proj"),
    ),
)
RECURRENT = dict(arguments=dict(input_size="input_size", hidden_size="hidden_size"))
NORM = like(
    nn.LayerNorm,
    arguments=dict(dim="normalized_shape", eps="eps"),
    inputs=dict(features="input"),
    weights=WeightMap(("scale", "weight"), ("shift", "bias")),
)
GATE = like(
    SqueezeExcitation,
    arguments=dict(channels="input_channels", hidden="squeeze_channels"),
    inputs=dict(images="input"),
    weights=WeightMap(
        ("down.weight", "fc1.weight", "o i -> o i 1 1"), ("down.bias", "fc1.bias"),
        ("up.weight", "fc2.weight", "o i -> o i 1 1"), ("up.bias", "fc2.bias"),
    ),
)  # fmt: skip
REPLACEMENTS = {
    "attention": Contract(Attention, **ATTENTION),
    "attention to others": Contract(CrossAttention, **CROSS),
    "lstm": Contract(LSTM, **like(nn.LSTM, **RECURRENT)),
    "lstm with a state": Contract(LSTM, **like(nn.LSTM, inputs=dict(input="input", hx="hx"), **RECURRENT)),
    "lstm's output alone": Contract(
        LSTM, call=lambda module, inputs: module(**inputs)[0], **like(nn.LSTM, output=itemgetter(0), **RECURRENT)
    ),
    "norm": Contract(Norm, **NORM),
    "gate": Contract(Gate, **GATE),
}
BROKEN = {
    "scores without their scale": Contract(partial(Attention, scaled=False), **ATTENTION),
    "a mask turned round": Contract(CrossAttention, call=lambda module, i: module(**{**i, "mask": ~i["mask"]}), **CROSS),
    "gates in another order": Contract(partial(LSTM, order=(0, 1, 3, 2)), **like(nn.LSTM, **RECURRENT)),
    "the unbiased variance": Contract(partial(Norm, correction=1), **NORM),
    "another gate": Contract(partial(Gate, gate=torch.tanh), **GATE),
    "a mask that is not looked at": Contract(
        Attention, call=lambda module, inputs: module(inputs["x"]), **ATTENTION
    ),
    "an epsilon that is not looked at": Contract(lambda dim, eps: Norm(dim), **NORM, name="Norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_what_is_like_the_reference_is_green(name):
    report = REPLACEMENTS[name].check(["smoke", "shape", "forward", "backward", "weights"], examples=3)
    assert report, report
    assert {outcome.how for outcome in report} == {"passed"}, report


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_is_red(name):
    report = BROKEN[name].check(["smoke", "forward"], examples=4)
    assert [outcome.name.partition("[")[0] for outcome in report.failed()] == ["forward"], report


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.__name__)
def test_every_reference_is_like_itself(reference):
    known = REFERENCES[reference]
    contract = Contract(partial(reference, **known.settings), **like(reference), call=known.call, name=reference.__name__)
    report = contract.check(["smoke", "shape", "forward", "weights"], examples=3)
    assert report, report


def test_what_the_replacement_has_fixed_stays():
    parts = like(partial(nn.Linear, bias=False), arguments=dict(width="in_features", out="out_features", seed=st.integers(3, 4)))
    contract = Contract(lambda width, out, seed: nn.Linear(width, out, bias=False), **parts, name="Linear")
    assert contract.check(["smoke", "forward", "weights"], examples=4)
    assert list(contract.example().arguments.passed()) == ["width", "out", "seed"]


def test_inputs_go_to_the_reference_by_name():
    parts = like(nn.GRU, inputs=dict(state="hx", x="input"))
    contract = Contract(partial(nn.GRU, batch_first=True), call=lambda module, i: module(i["x"], i["state"]), **parts, name="GRU")
    report = contract.check(["smoke", "forward"], examples=3)
    assert report, report


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(reference=nn.Bilinear), "reference must be one of .*LSTM"),
        (dict(arguments=dict(dim="embedding")), "embedding"),
        (dict(arguments=dict(dim="embed_dim")), "num_heads is among them"),
        (dict(reference=partial(nn.MultiheadAttention, bias=False), arguments=dict(bias="bias")), "bias"),
    ],
)
def test_what_the_reference_has_not_is_told(given, words):
    with pytest.raises(ValueError, match=words):
        like(**{"reference": nn.MultiheadAttention, **given})


def test_inputs_that_the_reference_has_not_are_told():
    contract = Contract(nn.Linear, **like(nn.Linear, inputs=dict(x="features")))
    with pytest.raises(ValueError, match=r"inputs\['x'\] must be one of input, got"):
        contract.example()
