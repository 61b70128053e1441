"""Weight maps: drawn maps round-trip to the bit, and everything that does not fit is refused by name."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layers.weights import WeightMap, same_bits

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64])


def bits(shape, dtype, seed):
    """Random bits of that dtype, NaN and negative zero included."""
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@st.composite
def maps(draw):
    """Rows of all kinds in drawn number and order, and a state that fits them."""
    rows, state, constants = [], {}, {}
    for r in range(draw(st.integers(1, 6))):
        kind = draw(
            st.sampled_from(["module", "transpose", "permute", "stack", "join", "split", "tied", "ours tied", "constant"])
        )
        dtype, seed = draw(DTYPES), draw(st.integers(0, 2**16))
        o, i, h = draw(st.permutations([2, 3, 5]))
        depth = draw(st.integers(1, 3))

        def put(name, *shape, dtype=dtype, seed=seed, depth=depth, r=r):
            for n in range(depth):
                state[f"a{r}.{n}.{name}"] = bits(shape, dtype, seed + n + 10 * len(state))

        ours, theirs = f"a{r}.{{i}}.", f"b{r}.{{i}}."
        if kind == "module":
            rows.append((f"{ours}norm", f"{theirs}ln"))
            put("norm.weight", o)
            put("norm.running_var", i)
            put("norm.num_batches_tracked", dtype=torch.int64)
        elif kind == "transpose":
            rows.append((f"{ours}w", f"{theirs}w", "o i -> i o"))
            put("w", o, i)
        elif kind == "permute":
            rows.append((f"{ours}w", f"{theirs}w", "(h two d) i -> (h d two) i", dict(h=h, two=2)))
            put("w", h * 2 * o, i)
        elif kind == "stack":
            rows.append((f"{ours}q {ours}k {ours}v", f"{theirs}qkv", "n o i -> (n o) i"))
            for name in "qkv":
                put(name, o, i)
        elif kind == "join":
            rows.append((f"{ours}q {ours}kv", f"{theirs}qkv", "q i, i kv -> i (q + kv)"))
            put("q", o, i)
            put("kv", i, h)
        elif kind == "split":
            rows.append((f"{ours}qkv", f"{theirs}q {theirs}kv", "(q + kv) i -> q i, i kv", dict(q=o)))
            put("qkv", o + h, i)
        elif kind == "tied":
            rows.append((f"{ours}e", f"{theirs}e {theirs}head"))
            put("e", o, i)
        elif kind == "ours tied":
            rows.append((f"{ours}e {ours}head", f"{theirs}e"))
            put("e", o, i)
            for n in range(depth):
                state[f"a{r}.{n}.head"] = state[f"a{r}.{n}.e"]
        else:
            rows.append((f"{ours}w", f"{theirs}w"))
            put("w", o)
            constants[f"{theirs}positions"] = torch.arange(i)
    return WeightMap(*draw(st.permutations(rows)), constants=constants), state


@given(maps())
def test_drawn_maps_keep_every_bit_both_ways(drawn):
    weights, state = drawn
    theirs = weights.to_theirs(state)
    ours = weights.to_ours(theirs, like=state)
    assert ours.keys() == state.keys()
    assert all(same_bits(ours[k], state[k]) for k in state)
    again = weights.to_theirs(ours)
    assert again.keys() == theirs.keys()
    assert all(same_bits(again[k], theirs[k]) for k in theirs)


@given(maps(), st.data())
def test_a_missing_and_an_unknown_name_are_listed(drawn, data):
    weights, state = drawn
    theirs = weights.to_theirs(state)
    with pytest.raises(ValueError, match=r"unmapped: nobody\.knows"):
        weights.to_ours({**theirs, "nobody.knows": torch.zeros(1)}, like=state)
    lost = data.draw(st.sampled_from(sorted(theirs)))
    module = Holder(state)
    with pytest.raises(ValueError, match="missing"):
        weights.load(module, {k: v for k, v in theirs.items() if k != lost})


class Holder(nn.Module):
    """A module whose state dict is the given one."""

    def __init__(self, state):
        super().__init__()
        self.state = {k: v.clone() for k, v in state.items()}

    def state_dict(self, *args, **kwargs):
        return self.state


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(6, 6) for _ in range(4))


TORCH_ATTENTION = WeightMap(
    ("query.weight key.weight value.weight", "in_proj_weight", "qkv o i -> (qkv o) i"),
    ("query.bias key.bias value.bias", "in_proj_bias", "qkv o -> (qkv o)"),
    ("output", "out_proj"),
)


def test_separate_projections_fill_multihead_attention():
    ours, theirs = Attention(), nn.MultiheadAttention(6, 2)
    theirs.load_state_dict(TORCH_ATTENTION.export(ours), strict=True)
    assert torch.equal(theirs.in_proj_weight[6:12], ours.key.weight)
    assert torch.equal(theirs.in_proj_bias[12:], ours.value.bias)
    fresh = Attention()
    TORCH_ATTENTION.load(fresh, theirs.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(fresh.parameters(), ours.parameters(), strict=True))


def test_nothing_is_written_unless_everything_fits():
    ours, theirs = Attention(), nn.MultiheadAttention(6, 2).state_dict()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for wrong, message in [
        ({**theirs, "out_proj.bias": torch.zeros(5)}, r"wrong shape: output\.bias \(5,\) for \(6,\)"),
        ({**theirs, "in_proj_weight": torch.zeros(17, 6)}, "in_proj_weight"),
        ({**theirs, "out_proj.bias": torch.zeros(6).double()}, r"would lose precision: output\.bias"),
        ({k: v for k, v in theirs.items() if k != "out_proj.bias"}, r"missing: output\.bias"),
        ({k: v for k, v in theirs.items() if k != "in_proj_bias"}, r"missing: key\.bias, query\.bias, value\.bias"),
        ({**theirs, "out_proj.scale": torch.zeros(6)}, r"not in the module: output\.scale"),
    ]:
        with pytest.raises(ValueError, match=message):
            TORCH_ATTENTION.load(ours, wrong)
        assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_a_wider_module_takes_narrower_weights():
    ours, theirs = Attention().double(), nn.MultiheadAttention(6, 2)
    TORCH_ATTENTION.load(ours, theirs.state_dict())
    assert torch.equal(ours.query.weight, theirs.in_proj_weight[:6].double())


def test_part_of_a_merge_is_missing():
    state = Attention().state_dict()
    del state["key.weight"]
    with pytest.raises(ValueError, match=r"missing: key\.weight"):
        TORCH_ATTENTION.to_theirs(state)
    assert set(TORCH_ATTENTION.to_theirs(state, strict=False)) == {"in_proj_bias", "out_proj.weight", "out_proj.bias"}


def test_tied_entries_must_agree():
    tied = WeightMap(("embedding", "embed lm_head"))
    weight = torch.randn(3, 2)
    assert tied.to_theirs({"embedding.weight": weight}).keys() == {"embed.weight", "lm_head.weight"}
    with pytest.raises(ValueError, match=r"embed\.weight, lm_head\.weight.*same values"):
        tied.to_ours({"embed.weight": weight, "lm_head.weight": weight + 1})
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        tied.to_ours({"embed.weight": weight})


def test_constants_are_written_and_checked():
    weights = WeightMap(("layers.{i}", "h.{i}"), constants={"h.{i}.bias_mask": torch.ones(2), "ids": torch.arange(3)})
    theirs = weights.to_theirs({"layers.0.w": torch.zeros(1), "layers.1.w": torch.zeros(1)})
    assert theirs.keys() == {"h.0.w", "h.1.w", "h.0.bias_mask", "h.1.bias_mask", "ids"}
    with pytest.raises(ValueError, match="not the constant: ids"):
        weights.to_ours({**theirs, "ids": torch.arange(4)})
    with pytest.raises(ValueError, match=r"missing constants: h\.1\.bias_mask"):
        weights.to_ours({k: v for k, v in theirs.items() if k != "h.1.bias_mask"})
    with pytest.raises(ValueError, match=r"unmapped: h\.7\.bias_mask"):
        weights.to_ours({**theirs, "h.7.bias_mask": torch.ones(2)})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "b", "o i -> o"), "same axes"),
        (("a", "b", "o i -> o o"), "same axes|once"),
        (("a", "b", "o o -> o"), "once"),
        (("a", "b", "o i"), "same axes"),
        (("a", "b", "... i -> i ..."), "same axes"),
        (("a b", "c", "(q + k + v) i -> q i, k i, v i"), "2 tensors|1 tensors"),
        (("a b", "c d"), "single name"),
        (("a.{i}", "b.{j}"), "same holes"),
        (("a.{i}.{i}", "b.{i}"), "must differ"),
    ],
)
def test_a_row_that_is_no_bijection_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        WeightMap(row)


def test_two_rows_may_not_claim_one_name():
    weights = WeightMap(("a", "x"), ("a.b", "y"))
    with pytest.raises(ValueError, match=r"claimed by two rows: a\.b\.w"):
        weights.to_theirs({"a.b.w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"claimed by two rows: z"):
        WeightMap(("a", "z"), ("b", "z")).to_theirs({"a": torch.zeros(1), "b": torch.zeros(1)})


def test_concatenation_without_known_sizes_is_refused():
    weights = WeightMap(("q kv", "qkv", "q i, kv i -> (q + kv) i"))
    with pytest.raises(ValueError, match="sizes"):
        weights.to_ours({"qkv": torch.zeros(5, 2)})


def test_gradients_travel_like_their_weights():
    ours, theirs, x = Attention(), nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(2, 3, 6)
    theirs.load_state_dict(TORCH_ATTENTION.export(ours), strict=True)
    theirs(x, x, x)[0].square().sum().backward()
    q, k, v = (rearrange(f(x), "b t (h d) -> b h t d", h=2) for f in (ours.query, ours.key, ours.value))
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    ours.output(rearrange(y, "b h t d -> b t (h d)")).square().sum().backward()
    carried = TORCH_ATTENTION.to_theirs({k: p.grad for k, p in ours.named_parameters()}, strict=False)
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(carried[name], p.grad)
