"""Weights that are read from files, one after another, into modules on the meta device."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from drawn_maps import maps
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layers.weights import Stored, WeightMap, same_bits

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
