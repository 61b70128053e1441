"""Blocks of the shapes that people have, under contracts: states, nests, dataclasses, losses, complex and sparse numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from layers.testing import GENERIC, Contract, Function, Twin, streaming, tensor, tokens
from layers.weights import WeightMap

SLOW = {"compile", "export", "second_derivatives", "trace"}
QUICK = [p.name for p in GENERIC if p.name not in SLOW | {"bad_argument", "bad_input", "sizes_agree"}]


class Memory:
    """What a cache of another library is: an object with tensors and numbers somewhere inside."""

    def __init__(self, keys: Tensor) -> None:
        self.layers, self.seen, self.dtype, self.owner = [{"keys": keys}], keys.shape[1], keys.dtype, self


@dataclass
class Output:
    hidden: Tensor
    memory: Memory
    loss: Tensor | None = None


class Remembering(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Output:
        y = self.linear(x)
        return Output(y.tanh(), Memory(y))


class Filter(nn.Module):
    """A filter in the frequency domain: its parameter is complex."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=-1) * self.weight


class FilterInParts(nn.Module):
    """The same with a real parameter of real and imaginary parts."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.fft(x, dim=-1)
        return torch.complex(
            x.real * self.weight.real - x.imag * self.weight.imag, x.real * self.weight.imag + x.imag * self.weight.real
        )


class Nested(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, batch: dict[str, Tensor], pair: tuple[Tensor, Tensor], *, power: int = 1) -> dict[str, Any]:
        y = self.linear(batch["x"]).tanh() + batch["ids"][:, None]
        return {"sum": y**power + pair[0], "both": (y, pair[1])}


class Causal(nn.Module):
    """Saves the mask that it could compute, and one number of its own, which no twin has."""

    def __init__(self, dim: int, longest: int = 9) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.register_buffer("table", torch.tril(torch.ones(longest, longest)))
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return self.table[:n, :n] @ self.linear(x) * self.scale


class CausalTwin(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).cumsum(1) * 0.5


class Numbered(nn.Module):
    """Keys that are numbers, and an output beside that depends on nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: dict[int, Tensor]) -> dict[int, Tensor]:
        y = self.linear(x[0]) + x[1]
        return {0: y, 1: y.new_ones(y.shape[1:])}


class Nearest(nn.Module):
    """No parameters, whole numbers out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


class Single(nn.Module):
    """Normalises in float32, as many do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).float().softmax(-1).to(x.dtype)


ARGUMENTS = dict(dim=st.integers(2, 4))


def in_and_out(block: Any, **more: Any) -> Contract:
    return Contract(
        block,
        **{
            "arguments": ARGUMENTS,
            "inputs": lambda a: dict(x=tensor("b n dim", dim=a.dim)),
            "outputs": lambda a, s: ("b", "n", a.dim),
            "foreign": True,
            **more,
        },
    )


def states(a):
    return tuple(tensor("layers b hidden", layers=1, hidden=a.hidden_size) for _ in "hc")


CONTRACTS = {
    "dataclass with a cache": in_and_out(Remembering, outputs=lambda a, s: {"hidden": ("b", "n", a.dim), "memory": ...}),
    "cache, documented": in_and_out(
        Remembering,
        outputs=lambda a, s: {"hidden": ("b", "n", a.dim), "memory": {"layers": [{"keys": ("b", "n", a.dim)}]}},
    ),
    "complex": in_and_out(
        Filter,
        twins=[Twin("parts", build=lambda a: FilterInParts(a.dim), weights=WeightMap(("weight", "weight")))],
        without={"empty_batch": "the FFT of torch 2.6 refuses empty tensors"},
    ),
    "nests": in_and_out(
        Nested,
        inputs=lambda a: dict(
            batch=dict(x=tensor("b n dim", dim=a.dim), ids=tokens("b dim", 5, dim=a.dim)),
            pair=(tensor("b n dim", dim=a.dim), tensor("b other", other=3)),
            power=st.integers(1, 2),
        ),
        outputs=lambda a, s: {"sum": ("b", "n", a.dim), "both": [("b", "n", a.dim), ("b", 3)]},
        twins=[
            Twin(
                "itself",
                build=lambda a: Nested(a.dim),
                weights=WeightMap(("linear", "linear")),
                call=lambda m, i: m(i["batch"], i["pair"], power=i["power"]),
            )
        ],
    ),
    "numbered, and a constant": in_and_out(
        Numbered,
        inputs=lambda a: dict(x={n: tensor("b n dim", dim=a.dim) for n in range(2)}),
        outputs=lambda a, s: {0: ("b", "n", a.dim), 1: ("n", a.dim)},
    ),
    "whole numbers": in_and_out(
        Nearest, arguments={}, outputs=lambda a, s: ("b", "n"), inputs=lambda a: dict(x=tensor("b n dim"))
    ),
    "tokens in, no parameters": in_and_out(
        Function,
        arguments=dict(run=st.just(nn.functional.one_hot)),
        inputs=lambda a: dict(input=tokens("b n", 5), num_classes=5),
        outputs=lambda a, s: ("b", "n", 5),
        name="one_hot",
    ),
    "saved mask": in_and_out(
        Causal,
        twins=[Twin("sum", build=lambda a: CausalTwin(a.dim), weights=WeightMap(("linear", "linear"), own=["table", "scale"]))],
    ),
    "states": Contract(
        nn.LSTM,
        arguments=dict(input_size=st.integers(2, 3), hidden_size=st.integers(4, 5), batch_first=st.just(True)),
        inputs=lambda a: {"input": tensor("b n dim", dim=a.input_size, n=st.integers(2, 4)), "hx": states(a)},
        outputs=lambda a, s: [("b", "n", a.hidden_size), [(1, "b", a.hidden_size)] * 2],
        holds=[streaming("input", "n", 1, state="hx")],
        foreign=True,
    ),
    "loss": Contract(
        nn.CrossEntropyLoss,
        arguments=dict(label_smoothing=st.sampled_from([0.0, 0.1])),
        inputs=lambda a: dict(input=tensor("b classes", classes=5), target=tokens("b", 5)),
        outputs=lambda a, s: (),
        foreign=True,
    ),
    "sparse gradients": Contract(
        nn.Embedding,
        arguments=dict(num_embeddings=st.just(7), embedding_dim=st.integers(2, 4), sparse=st.just(True)),
        inputs=lambda a: dict(input=tokens("b n", 7)),
        outputs=lambda a, s: ("b", "n", a.embedding_dim),
        twins=[Twin("dense", build=lambda a: nn.Embedding(7, a.embedding_dim), weights=WeightMap(("weight", "weight")))],
        foreign=True,
    ),
    "parametrized": Contract(
        lambda dim: weight_norm(nn.Linear(dim, 5)),
        arguments=ARGUMENTS,
        inputs=lambda a: dict(input=tensor("b dim", dim=a.dim)),
        outputs=lambda a, s: ("b", 5),
        foreign=True,
        name="WeightNorm",
    ),
    "power iteration": Contract(
        lambda dim: spectral_norm(nn.Linear(dim, 5)),
        arguments=ARGUMENTS,
        inputs=lambda a: dict(input=tensor("b dim", dim=a.dim)),
        outputs=lambda a, s: ("b", 5),
        trains_differently=lambda a: True,
        foreign=True,
        name="SpectralNorm",
        without=dict.fromkeys(
            ("gradcheck", "forward_derivatives", "meta_device", "finite"),
            "its power iteration moves buffers that gradients take as constants",
        ),
    ),
    "function": Contract(
        Function,
        arguments=dict(run=st.just(torch.cdist)),
        inputs=lambda a: dict(x1=tensor("b n dim"), x2=tensor("b m dim")),
        outputs=lambda a, s: ("b", "n", "m"),
        twins=[Twin("written out", build=lambda a: lambda x, y: (x[:, :, None] - y[:, None]).square().sum(-1).sqrt())],
        foreign=True,
        name="cdist",
        without={"finite": "equal points have no gradient"},
    ),
    "single precision": in_and_out(Single, single_precision="softmax in float32, line 110"),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_blocks_of_others_keep_what_they_promise(name):
    report = CONTRACTS[name].check(only=[*QUICK, *(p.name for p in CONTRACTS[name].holds)], examples=4)
    assert not report.failed(), report


class OnceOnly(nn.Module):
    """Scores through a kernel that torch cannot differentiate twice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        x = self.linear(x)[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]


class KeptOut(OnceOnly):
    @torch.compiler.disable
    def part(self, x):
        return self.linear(x)

    def forward(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    ("block", "name", "words"),
    [
        (OnceOnly, "second_derivatives", "torch has no second derivative of"),
        (KeptOut, "compile", "kept out of graphs"),
    ],
)
def test_what_torch_lacks_is_skipped_for_blocks_of_others_alone(block, name, words):
    shapes = dict(inputs=lambda a: dict(x=tensor("b n dim", dim=4)), outputs=lambda a, s: ("b", "n", 4))
    for foreign in (True, False):
        outcome = Contract(block, dict(dim=4), **shapes, foreign=foreign).check(only=[name], examples=1)[0]
        assert outcome.how == ("skipped" if foreign else "failed")
        assert words in outcome.message or not foreign


def test_a_call_may_look_at_settings_of_the_block():
    """Where derivatives are asked for, a functional call stands in the block's place."""
    contract = Contract(
        nn.GRU,
        arguments=dict(input_size=2, hidden_size=3, batch_first=st.booleans()),
        inputs=lambda a: dict(x=tensor("b n dim", dim=2)),
        outputs=lambda a, s: [("b", "n", 3), ...],
        call=lambda module, inputs: module(inputs["x"] if module.batch_first else inputs["x"].transpose(0, 1)),
    )
    assert contract.check(["gradcheck", "forward_derivatives"], examples=4)
