"""Weight maps: drawn maps round-trip to the bit, and everything that does not fit is refused by name."""

from __future__ import annotations

import pytest
import torch
from drawn_maps import maps
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layers.weights import WeightMap, same_bits


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
    lost = {lost, *tied_to(lost, theirs)}
    module = Holder(state)
    with pytest.raises(ValueError, match="missing"):
        weights.load(module, {k: v for k, v in theirs.items() if k not in lost})


def tied_to(name, names):
    """The other names of a drawn tensor: a tied one stands under `e` and `head`."""
    stem = name.removesuffix("head").removesuffix("e")
    return {other for other in (f"{stem}e", f"{stem}head") if name.endswith((".e", ".head")) and other in names} - {name}


@given(maps(), st.data())
def test_one_name_of_tied_entries_is_enough(drawn, data):
    """Files hold tied weights once. Whichever name is there, all names come out; so do those of a gradient."""
    weights, state = drawn
    theirs = weights.to_theirs(state)

    def some(tensors):
        pairs = [sorted({name, *tied_to(name, tensors)}) for name in tensors if tied_to(name, tensors)]
        lost = {data.draw(st.sampled_from(pair)) for pair in sorted({tuple(pair) for pair in pairs})}
        return {name: x for name, x in tensors.items() if name not in lost}

    for strict in (True, False):
        for found, expected in (
            (weights.to_ours(some(theirs), like=state, strict=strict), state),
            (weights.to_theirs(some(state)), theirs),
        ):
            assert found.keys() == expected.keys()
            assert all(same_bits(found[k], expected[k]) for k in found)
    module = Holder({k: torch.zeros_like(v) for k, v in state.items()})
    weights.load(module, some(theirs))
    assert all(same_bits(module.state[k], state[k]) for k in state)


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
    three = WeightMap(("table", "embed head decoder.table"))
    for weights, ours in ((tied, "embedding.weight"), (three, "table")):
        module = Holder({ours: torch.zeros(3, 2)})
        with pytest.raises(ValueError, match=f"weights do not fit; missing: {ours}$"):
            weights.load(module, {})
    with pytest.raises(ValueError, match=r"cannot convert: embed, head, decoder\.table .*same values"):
        three.to_ours({"head": weight, "decoder.table": weight + 1})
    assert torch.equal(three.to_ours({"head": weight, "decoder.table": weight})["table"], weight)


def test_gradients_of_tied_parameters_travel_under_all_names():
    module = nn.Linear(2, 3, bias=False)
    module(torch.ones(2)).sum().backward()
    carried = WeightMap(("weight", "embed head")).to_theirs({"weight": module.weight.grad}, strict=False)
    assert carried.keys() == {"embed", "head"}
    both = WeightMap(("embedding.weight output.weight", "shared"))
    carried = both.to_theirs({"embedding.weight": module.weight.grad}, strict=False)  # named_parameters gives one name
    assert torch.equal(carried["shared"], module.weight.grad)


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
        (("a a", "b"), "names of a row must differ"),
        (("a.{}", "b.{}"), "named like"),
        (("a.{0}", "b.{0}"), "named like"),
        (("a.{i", "b.{i"), "named like"),
        (("a", "b", "o i -> (o i)"), "both ways"),  # the way back lacks a size
        (("a", "b", "o (i -> i o"), "both ways"),
        (("a", "b", "o i -> i o", dict(h=2)), "both ways"),
        (("a b", "c", "1 o -> o"), "both ways"),
        (("a b", "c", "q i, k j -> (q + k) i j"), "both ways"),
        (("a b", "c", "q i, k i -> (k + q) i"), "both ways"),
        (("a", "b c", "(q + k) i -> q i, k i"), "sizes must give"),
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


def test_merging_two_dtypes_is_refused():
    for pattern in ("n o -> (n o)", "q, k -> (q + k)"):
        with pytest.raises(ValueError, match=r"q, k .*one dtype, got torch\.float32, torch\.int64"):
            WeightMap(("q k", "qk", pattern)).to_theirs({"q": torch.zeros(2), "k": torch.zeros(2, dtype=torch.int64)})


def test_integers_do_not_become_floats():
    module = nn.ParameterDict({"w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"would lose precision: w torch\.int64 for torch\.float32"):
        WeightMap(("w", "w")).load(module, {"w": torch.tensor([2**24 + 1])})


def test_weights_without_values_are_refused():
    with pytest.raises(ValueError, match=r"meta device\): bias, weight"):
        WeightMap(("", "")).load(nn.Linear(2, 3), nn.Linear(2, 3, device="meta").state_dict())


def test_a_module_may_be_loaded_from_itself():
    swapped = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    before = {k: v.clone() for k, v in swapped.state_dict().items()}
    rows = [("a.weight", "b.weight", "o i -> i o"), ("b.weight", "a.weight"), ("a.bias", "b.bias"), ("b.bias", "a.bias")]
    WeightMap(*rows).load(swapped, swapped.state_dict())
    assert torch.equal(swapped["a"].weight, before["b.weight"].T)
    assert torch.equal(swapped["b"].weight, before["a.weight"])


def test_a_module_may_become_the_whole_and_the_whole_a_module():
    weights = WeightMap(("", "backbone"))
    theirs = weights.to_theirs({"w": torch.zeros(1), "c.w": torch.zeros(1)})
    assert theirs.keys() == {"backbone.w", "backbone.c.w"}
    assert weights.to_ours(theirs).keys() == {"w", "c.w"}


def test_a_constant_does_not_overwrite_a_tensor():
    weights = WeightMap(("a", "h"), constants={"h.mask": torch.ones(1)})
    with pytest.raises(ValueError, match=r"claimed by a row and a constant: h\.mask"):
        weights.to_theirs({"a.mask": torch.zeros(1)})


def test_one_error_lists_what_is_unmapped_and_what_is_missing():
    theirs = nn.MultiheadAttention(6, 2).state_dict()
    theirs["out.bias"] = theirs.pop("out_proj.bias")
    with pytest.raises(ValueError, match=r"unmapped: out\.bias; missing: output\.bias"):
        TORCH_ATTENTION.load(Attention(), theirs)


def test_equal_bits_of_two_dtypes_are_not_the_same_tensor():
    one = torch.ones(2)
    with pytest.raises(ValueError, match=r"embed, head .*same values"):
        WeightMap(("w", "embed head")).to_ours({"embed": one, "head": one.view(torch.int32)})


def test_a_dot_in_a_name_is_a_dot():
    with pytest.raises(ValueError, match="unmapped: axw"):
        WeightMap(("a.w", "b")).to_theirs({"axw": torch.zeros(1)})


def test_hundreds_of_names_are_shortened():
    with pytest.raises(ValueError, match=r"cannot convert: x\.0 .* and 280 more$"):
        WeightMap(("x.{i}", "y.{i}", "o i -> i o")).to_theirs({f"x.{i}": torch.zeros(1) for i in range(300)})


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


def test_derived_tables_are_written_and_not_looked_at():
    """The other side keeps a table that ours computes: an export holds it, an import may lack it or hold a rounded one."""
    table = torch.arange(3.0)
    plan = WeightMap(("layers.{i}", "h.{i}"), derived={"h.{i}.table": table})
    ours = {"layers.4.weight": torch.ones(2)}
    exported = plan.to_theirs(ours)
    assert torch.equal(exported["h.4.table"], table)
    for theirs in (exported, {"h.4.weight": torch.ones(2)}, exported | {"h.4.table": table + 1}):
        assert plan.to_ours(theirs).keys() == ours.keys()
    assert "h.4.table" not in plan.to_theirs(ours, strict=False)
