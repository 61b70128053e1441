"""Weight maps: drawn maps round-trip to the bit, and everything that does not fit is refused by name."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layers.weights import Stored, WeightMap, same_bits

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


# ------------------------------------------------------------------------------- tensors in files, modules on the meta device


class Disk:
    """Tensors as they lie in files. `reads` are the names that were read, `most` the bytes of them that were alive at once."""

    def __init__(self, tensors):
        self.reads, self.alive, self.most = [], {}, 0
        self.tensors = {k: Stored(x.detach().to("meta"), partial(self.read, k, x.detach())) for k, x in tensors.items()}

    def read(self, name, x):
        fresh = x.clone(memory_format=torch.contiguous_format)
        self.reads.append(name)
        self.alive[name] = weakref.ref(fresh)
        self.most = max(self.most, sum(x.nbytes for r in self.alive.values() if (x := r()) is not None))
        return fresh


def module_of(state):
    """A module on the meta device with these entries, parameters where gradients can be; an entry of two names is one tensor."""
    root, made = nn.Module(), {}
    for name, x in state.items():
        path, _, key = name.rpartition(".")
        module = root
        for part in path.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        empty = made.setdefault(id(x), nn.Parameter(x.to("meta"), False) if x.is_floating_point() else x.to("meta"))
        module.register_parameter(key, empty) if isinstance(empty, nn.Parameter) else module.register_buffer(key, empty)
    return root


def require_own_memory(module, *others):
    own = [*module.parameters(), *module.buffers()]
    assert not any(x.is_meta for x in own)
    assert all(x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes for x in own)
    used, kept = ({x.untyped_storage().data_ptr() for x in tensors} for tensors in (own, others))
    assert len(used) == len(own)
    assert not used & kept


@given(maps(), st.booleans())
def test_a_module_on_the_meta_device_gets_every_bit(drawn, stored):
    """In memory of its own, from files, whose tensors are read once, or from tensors that somebody else keeps."""
    weights, state = drawn
    theirs = weights.to_theirs(state)
    module, disk = module_of(state), Disk(theirs)
    tied = {name for name, x in module.named_parameters(remove_duplicate=False)} - {name for name, _ in module.named_parameters()}
    weights.load(module, disk.tensors if stored else theirs)
    assert module.state_dict().keys() == state.keys()
    assert all(same_bits(x, state[k]) for k, x in module.state_dict().items())
    require_own_memory(module, *theirs.values())
    assert tied == {n for n, _ in module.named_parameters(remove_duplicate=False)} - {n for n, _ in module.named_parameters()}
    if stored:
        compared = {name for name in theirs if name.endswith((".e", ".head", ".positions"))}
        assert set(disk.reads) == theirs.keys()
        assert all(disk.reads.count(name) == 1 for name in theirs.keys() - compared)


class Tied(nn.Module):
    """A table under two names, and a norm whose weight is not trained."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output, self.norm = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.BatchNorm1d(3)
        self.output.weight = self.embedding.weight
        self.norm.weight.requires_grad_(False)

    def forward(self, tokens):
        return self.output(self.norm(self.embedding(tokens)))


def on_meta(kind):
    with torch.device("meta"):
        return kind()


OURS = WeightMap(("", ""))
NAMES = ("embedding.weight", "output.weight")


@pytest.mark.parametrize("lost", [None, *NAMES])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_tied_parameter_stays_one(where, lost):
    """Files may hold it under one of its names, as safetensors' `save_model` writes them."""
    state = Tied().state_dict()
    module = Tied() if where == "cpu" else on_meta(Tied)
    OURS.load(module, Disk({k: v for k, v in state.items() if k != lost}).tensors)
    assert module.output.weight is module.embedding.weight
    assert isinstance(module.output.weight, nn.Parameter)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    require_own_memory(module)
    module(torch.tensor([1, 2])).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is not None] == ["embedding.weight", "norm.bias"]


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_the_names_of_a_tied_parameter_must_agree(where):
    module = Tied() if where == "cpu" else on_meta(Tied)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = Tied().state_dict()
    with pytest.raises(ValueError, match=r"do not fit; tied, of different values: embedding\.weight, output\.weight$"):
        OURS.load(module, state | {"output.weight": state["output.weight"] + 1})
    with pytest.raises(ValueError, match=r"do not fit; missing: embedding\.weight, output\.weight$"):
        OURS.load(module, {k: v for k, v in state.items() if k not in NAMES})
    assert all(v.is_meta if where == "meta" else torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_headers_are_checked_before_anything_is_read():
    """And values that have to be those of others before anything is written."""
    weights = WeightMap(
        ("table", "embed head"),
        ("w", "v", "o i -> i o"),
        ("s", "s1 s2", "n o -> n o"),
        ("j", "j1 j2", "(q + k) i -> q i, k i", dict(q=2)),
        constants={"mask": torch.ones(2)},
    )
    names = dict(embed=(2,), head=(2,), v=(2, 3), s1=(4,), s2=(4,), j1=(2, 5), j2=(3, 5), mask=(2,))
    fitting = {name: torch.ones(shape) for name, shape in names.items()}
    ours = {"a.table": (2,), "a.w": (3, 2), "a.s": (2, 4), "a.j": (5, 5)}
    module = module_of({name: torch.ones(shape) for name, shape in ours.items()}).a
    for changes, message in (
        ({"x": torch.ones(1)}, "unmapped: x"),
        ({"v": None}, "missing: w"),
        ({"v": torch.ones(3, 2)}, r"wrong shape: w \(2, 3\) for \(3, 2\)"),
        ({"v": torch.ones(2, 3).double()}, r"would lose precision: w torch\.float64 for torch\.float32"),
        ({"v": torch.ones(3)}, r"cannot convert: v"),
        ({"s2": torch.ones(1)}, r"cannot convert: s1, s2 .*\(1, 4\), \(1, 1\)"),
        ({"j2": torch.ones(3, 1)}, r"cannot convert: j1, j2 .*\(2, 5\), \(3, 1\)"),
        ({"j2": torch.ones(4, 5)}, r"wrong shape: j \(6, 5\) for \(5, 5\)"),
        ({"j1": torch.ones(2, 5).double()}, r"cannot convert: j1, j2 .*one dtype"),
        ({"head": torch.ones(3)}, "cannot convert: embed, head .*same values"),
        ({"head": torch.ones(2).bfloat16()}, "cannot convert: embed, head .*same values"),
        ({"mask": None}, "missing constants: mask"),
        ({"mask": torch.ones(3)}, "not the constant: mask"),
    ):
        disk = Disk({k: v for k, v in (fitting | changes).items() if v is not None})
        with pytest.raises(ValueError, match=message):
            weights.load(module, disk.tensors)
        assert disk.reads == []
    for changes, message in (
        ({"head": torch.zeros(2)}, "cannot convert: embed, head .*same values"),
        ({"mask": torch.zeros(2)}, "not the constant: mask"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.load(module, Disk(fitting | changes).tensors)
    assert all(x.is_meta for x in module.parameters())
    weights.load(module, Disk(fitting).tensors)
    assert all(x.min() == x.max() == 1 for x in module.parameters())


def test_rows_are_read_one_after_another_the_largest_first():
    state = {f"{i}.{name}.weight": torch.randn(4, 4) for i in range(5) for name in ("query", "key", "value", "output")}
    state |= {f"{i}.{name}.bias": torch.randn(4) for i in range(5) for name in ("query", "key")}
    weights = WeightMap(
        ("{i}.query.bias {i}.key.bias", "{i}.bias", "qk o -> (qk o)"),
        ("{i}.query.weight {i}.key.weight {i}.value.weight", "{i}.in_proj", "qkv o i -> i (qkv o)"),
        ("{i}.output.weight", "{i}.out_proj", "o i -> i o"),
    )
    disk, module = Disk(weights.to_theirs(state)), module_of(state)
    weights.load(module, disk.tensors)
    assert disk.reads == [f"{i}.{name}" for name in ("in_proj", "out_proj", "bias") for i in range(5)]
    assert disk.most == 3 * 4 * 4 * 4  # bytes of one row
    require_own_memory(module)
    assert all(torch.equal(x, state[k]) for k, x in module.state_dict().items())


@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_narrower_files_are_widened(where, stored, dtype):
    state = {k: v.to(getattr(torch, stored)) for k, v in nn.Linear(3, 2).state_dict().items()}
    module = nn.Linear(3, 2, device=where, dtype=getattr(torch, dtype))
    OURS.load(module, Disk(state).tensors)
    assert all(torch.equal(x, state[k].to(module.weight.dtype)) for k, x in module.state_dict().items())
    assert module.weight.dtype == getattr(torch, dtype)
    require_own_memory(module)


def test_a_table_that_no_file_holds_is_refused():
    """On the meta device a buffer that is not saved has nowhere to come from."""
    module = nn.Linear(2, 2, device="meta")
    module.register_buffer("table", torch.ones(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"without values \(meta device\): table$"):
        OURS.load(module, nn.Linear(2, 2).state_dict())
    assert module.weight.is_meta
