"""`like` makes the parts of a contract for a block that claims to replace a well-known one.

    attention = Contract(
        MyAttention,
        **like(
            nn.MultiheadAttention,
            arguments=dict(dim="embed_dim", heads="num_heads"),
            inputs=dict(x="query"),
            weights=WeightMap(("qkv.weight", "in_proj_weight"), ("qkv.bias", "in_proj_bias"), ("out", "out_proj")),
        ),
    )

draws the arguments of the reference under the block's own names, calls both on the same inputs, and compares them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from layers.checks import require
from layers.testing.contract import Twin
from layers.testing.drawing import Input, mask, tensor, tokens
from layers.weights import WeightMap


@dataclass(frozen=True)
class Reference:
    """How a well-known block is drawn and called.

    arguments: name -> strategy, or function of the arguments before it. needed: those without a default.
    settings:  values of arguments where nobody says otherwise.
    inputs:    arguments -> its inputs by name, of which a replacement takes those in `takes` and may take the others.
    outputs:   (arguments, sizes) -> shapes, as in a contract. call: (reference, inputs) -> output of that structure.
    """

    arguments: Mapping[str, Any]
    needed: tuple[str, ...]
    inputs: Callable[[Any], dict[str, Any]]
    takes: tuple[str, ...]
    outputs: Callable[[Any, Any], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[nn.Module, dict[str, Any]], Any] = lambda module, inputs: module(**inputs)
    trains_differently: Callable[[Any], bool] = lambda arguments: False


def like(
    reference: Callable[..., nn.Module],
    weights: WeightMap | Callable[[Any], WeightMap] | None = None,
    arguments: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    output: Callable[[Any], Any] = lambda output: output,
) -> dict[str, Any]:
    """Arguments, inputs, outputs and the twin of a `Contract` for a block that claims to be like the reference.

    reference: one of `REFERENCES`, or `functools.partial` of one with arguments that the replacement has fixed.
    weights:   between the block and the reference, as in a `Twin`; by default their names are the same.
    arguments: the block's name of an argument -> the reference's; what is no string is drawn or passed as it is. By default all
               have the reference's names. Those that are not mapped stay at the reference's defaults.
    inputs:    the block's name of an input -> the reference's; by default the same. Masks are boolean, True for what counts.
    output:    what of the reference's output the block gives, such as ``itemgetter(0)`` for an LSTM's without its state.
    Errors:    `ValueError` that names what the reference does not have, or what it needs and nothing gives.
    """
    build, given = (reference.func, reference.keywords) if isinstance(reference, partial) else (reference, {})
    names = ", ".join(sorted(found.__name__ for found in REFERENCES))
    require(build in REFERENCES, "reference", getattr(build, "__name__", build), f"one of {names}")
    known = REFERENCES[build]
    mapped = {name: name for name in known.arguments if name not in given} if arguments is None else dict(arguments)
    theirs = {ours: name for ours, name in mapped.items() if isinstance(name, str)}
    for ours, name in theirs.items():
        free = [found for found in known.arguments if found not in given]
        require(name in free, f"arguments[{ours!r}]", name, f"one of {', '.join(free)}")
    for name in known.needed:
        require(name in (*theirs.values(), *given), "arguments", sorted(theirs.values()), f"such that {name} is among them")

    def seen(drawn: Any) -> SimpleNamespace:
        """The reference's arguments, as far as they are drawn."""
        named = {name: getattr(drawn, ours) for ours, name in theirs.items() if hasattr(drawn, ours)}
        return SimpleNamespace(**{**known.settings, **given, **named})

    def strategy(name: str) -> Any:
        found = known.arguments[name]
        return (lambda drawn: found(seen(drawn))) if inspect.isfunction(found) else found

    order = list(known.arguments)
    drawn = {ours: strategy(name) for ours, name in sorted(theirs.items(), key=lambda pair: order.index(pair[1]))}
    drawn |= {ours: value for ours, value in mapped.items() if ours not in theirs}
    taken = {name: name for name in known.takes} if inputs is None else dict(inputs)

    def shown(drawn: Any) -> dict[str, Any]:
        offered = known.inputs(seen(drawn))
        for ours, name in taken.items():
            require(name in offered, f"inputs[{ours!r}]", name, f"one of {', '.join(offered)}")
        return {ours: offered[name] for ours, name in taken.items()}

    def built(drawn: Any) -> nn.Module:
        return build(**vars(seen(drawn)))

    def called(module: nn.Module, values: dict[str, Any]) -> Any:
        return output(known.call(module, {name: values[ours] for ours, name in taken.items()}))

    return dict(
        arguments=drawn,
        inputs=shown,
        outputs=lambda drawn, sizes: output(known.outputs(seen(drawn), sizes)),
        twins=[Twin(build.__name__, built, weights or (lambda drawn: same_names(built(drawn))), called)],
        trains_differently=lambda drawn: known.trains_differently(seen(drawn)),
    )


def same_names(module: nn.Module) -> WeightMap:
    return WeightMap(*((name, name) for name in module.state_dict()))


def visible(axes: str) -> Input:
    """A mask whose rows show one key at least: what a row without keys gives is not agreed upon."""
    drawn = mask(axes)

    def sample(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        one = torch.rand(shape, generator=generator).argmax(-1, keepdim=True)
        return drawn.sample(shape, generator).scatter(-1, one, True)

    return Input(drawn.axes, drawn.sizes, sample, broadcasts=True)


def attend(module: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Of `nn.MultiheadAttention`: keys are the queries, and values the keys, where none are given."""
    query = inputs["query"]
    key = inputs.get("key", query)
    seen = inputs.get("mask", inputs.get("self_mask"))
    hidden = None if seen is None else ~seen.expand(-1, module.num_heads, -1, -1).flatten(0, 1)
    return module(query, key, inputs.get("value", key), attn_mask=hidden, need_weights=False)[0]


def attention_inputs(a: Any) -> dict[str, Any]:
    dims = dict(key=getattr(a, "kdim", None) or a.embed_dim, value=getattr(a, "vdim", None) or a.embed_dim)
    keys = {name: tensor(f"b k {name}_dim", **{f"{name}_dim": dim}) for name, dim in dims.items()}
    return dict(query=tensor("b q dim", dim=a.embed_dim), **keys, mask=visible("b 1 q k"), self_mask=visible("b 1 q q"))


def over_time(states: int) -> dict[str, Any]:
    """Inputs, outputs and call of torch's recurrent networks, with one tensor of state or two."""

    def ways(a: Any) -> int:
        return a.num_layers * (1 + a.bidirectional)

    def inputs(a: Any) -> dict[str, Any]:
        state = [tensor("layers b hidden", layers=ways(a), hidden=a.hidden_size) for _ in range(states)]
        return dict(input=tensor("b n dim", dim=a.input_size), hx=tuple(state) if states > 1 else state[0])

    def outputs(a: Any, sizes: Any) -> list[Any]:
        shape = (ways(a), "b", a.hidden_size)
        return [("b", "n", a.hidden_size * (1 + a.bidirectional)), [shape] * states if states > 1 else shape]

    arguments = dict(
        input_size=st.integers(2, 4), hidden_size=st.integers(5, 6), num_layers=st.sampled_from([1, 2]), bias=st.booleans(),
        bidirectional=st.booleans(),
    )  # fmt: skip
    settings = dict(num_layers=1, bidirectional=False, batch_first=True)
    return dict(
        arguments=arguments,
        needed=("input_size", "hidden_size"),
        inputs=inputs,
        takes=("input",),
        outputs=outputs,
        settings=settings,
    )


def image(name: str, channels: int) -> dict[str, Any]:
    return {name: tensor("b channels y x", channels=channels, y=st.integers(4, 8), x=st.integers(4, 8))}


def convolved(a: Any, sizes: Any) -> tuple[Any, ...]:
    def length(n: int) -> int:
        return (n + 2 * a.padding - a.dilation * (a.kernel_size - 1) - 1) // a.stride + 1

    return "b", a.out_channels, length(sizes.y), length(sizes.x)


CONVOLUTION = dict(
    in_channels=st.sampled_from([2, 4]), out_channels=st.sampled_from([4, 6]), kernel_size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
)  # fmt: skip
WIDTHS, EPS = st.integers(3, 6), st.sampled_from([1e-5, 1e-2])
HEADS = dict(heads=st.sampled_from([1, 2]), dim=st.sampled_from([4, 8]))

REFERENCES: dict[Callable[..., nn.Module], Reference] = {
    nn.Linear: Reference(
        arguments=dict(in_features=WIDTHS, out_features=WIDTHS, bias=st.booleans()),
        needed=("in_features", "out_features"),
        inputs=lambda a: dict(input=tensor("b n dim", dim=a.in_features)),
        takes=("input",),
        outputs=lambda a, s: ("b", "n", a.out_features),
    ),
    nn.Embedding: Reference(
        arguments=dict(num_embeddings=WIDTHS, embedding_dim=WIDTHS),
        needed=("num_embeddings", "embedding_dim"),
        inputs=lambda a: dict(input=tokens("b n", a.num_embeddings)),
        takes=("input",),
        outputs=lambda a, s: ("b", "n", a.embedding_dim),
    ),
    nn.LayerNorm: Reference(
        arguments=dict(normalized_shape=WIDTHS, eps=EPS, elementwise_affine=st.booleans(), bias=st.booleans()),
        needed=("normalized_shape",),
        inputs=lambda a: dict(input=tensor("b n dim", dim=a.normalized_shape)),
        takes=("input",),
        outputs=lambda a, s: ("b", "n", a.normalized_shape),
    ),
    nn.RMSNorm: Reference(
        arguments=dict(normalized_shape=WIDTHS, eps=EPS, elementwise_affine=st.booleans()),
        needed=("normalized_shape",),
        inputs=lambda a: dict(x=tensor("b n dim", dim=a.normalized_shape)),
        takes=("x",),
        outputs=lambda a, s: ("b", "n", a.normalized_shape),
    ),
    nn.Conv2d: Reference(
        arguments=CONVOLUTION
        | dict(padding=st.sampled_from([0, 1]), dilation=st.sampled_from([1, 2]))
        | dict(groups=st.sampled_from([1, 2]), bias=st.booleans()),
        needed=("in_channels", "out_channels", "kernel_size"),
        settings=dict(stride=1, padding=0, dilation=1),
        inputs=lambda a: dict(
            input=tensor("b channels y x", channels=a.in_channels, y=st.integers(5, 8), x=st.integers(5, 8))
        ),
        takes=("input",),
        outputs=convolved,
    ),
    nn.RNN: Reference(**over_time(1)),
    nn.GRU: Reference(**over_time(1)),
    nn.LSTM: Reference(**over_time(2)),
    nn.MultiheadAttention: Reference(
        arguments=dict(
            embed_dim=HEADS["dim"], num_heads=HEADS["heads"], bias=st.booleans(), kdim=st.sampled_from([3, 5]),
            vdim=st.sampled_from([3, 6]),
        ),
        needed=("embed_dim", "num_heads"),
        settings=dict(batch_first=True),
        inputs=attention_inputs,
        takes=("query", "key", "value"),
        outputs=lambda a, s: ("b", "q", a.embed_dim),
        call=attend,
    ),
    nn.TransformerEncoderLayer: Reference(
        arguments=dict(
            d_model=HEADS["dim"], nhead=HEADS["heads"], dim_feedforward=st.integers(5, 6),
            activation=st.sampled_from(["relu", "gelu"]),
            norm_first=st.booleans(), bias=st.booleans(),
        ),
        needed=("d_model", "nhead", "dim_feedforward"),
        settings=dict(batch_first=True, dropout=0.0),
        inputs=lambda a: dict(src=tensor("b n dim", dim=a.d_model)),
        takes=("src",),
        outputs=lambda a, s: ("b", "n", a.d_model),
    ),
    SqueezeExcitation: Reference(
        arguments=dict(input_channels=st.integers(1, 4), squeeze_channels=st.integers(5, 6)),
        needed=("input_channels", "squeeze_channels"),
        inputs=lambda a: image("input", a.input_channels),
        takes=("input",),
        outputs=lambda a, s: ("b", a.input_channels, s.y, s.x),
    ),
    Conv2dNormActivation: Reference(
        arguments=CONVOLUTION | dict(groups=st.sampled_from([1, 2])),
        needed=("in_channels", "out_channels"),
        settings=dict(kernel_size=3, stride=1),
        inputs=lambda a: image("input", a.in_channels),
        takes=("input",),
        outputs=lambda a, s: ("b", a.out_channels, (s.y - 1) // a.stride + 1, (s.x - 1) // a.stride + 1),
        trains_differently=lambda a: True,
    ),
}  # fmt: skip
