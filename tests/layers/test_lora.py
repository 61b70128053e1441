from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import FAMILIES, inputs_of, least
from torch import nn

import zoo
from layers.lora import LoRALinear, add_lora, has_lora, merge_lora
from layers.testing import Contract, Twin, initial_distribution, permutation_equivariant, require_equal, tensor
from layers.testing.drawing import fill
from layers.weights import WeightMap


class Peft(nn.Module):
    """The forward of `Linear` in PEFT's tuners/lora/layer.py, written down."""

    def __init__(self, a):
        super().__init__()
        self.base_layer = nn.Linear(a.in_features, a.out_features, a.bias)
        self.lora_A, self.lora_B = nn.Linear(a.in_features, a.rank, bias=False), nn.Linear(a.rank, a.out_features, bias=False)
        self.lora_dropout = nn.Dropout(a.dropout)
        self.scaling = (2 * a.rank if a.alpha is None else a.alpha) / (math.sqrt(a.rank) if a.stable else a.rank)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling


lora = Contract(
    LoRALinear,
    arguments=dict(
        in_features=st.integers(2, 6),
        out_features=st.integers(2, 6),
        rank=st.integers(1, 4),
        alpha=st.sampled_from([None, 1, 16.0]),
        dropout=st.sampled_from([0.0, 0.3]),
        stable=st.booleans(),
        bias=st.booleans(),
    ),
    inputs=lambda a: dict(input=tensor("batch n features", features=a.in_features)),
    outputs=lambda a, s: ("batch", "n", a.out_features),
    twins=[
        Twin(
            "peft",
            build=Peft,
            weights=lambda a: WeightMap(
                ("weight", "base_layer.weight"), *[("bias", "base_layer.bias")] * a.bias,
                ("lora_a", "lora_A.weight"), ("lora_b", "lora_B.weight"),
            ),
        ),
    ],
    holds=[permutation_equivariant("input", "n", 1), initial_distribution(lora_b=lambda a, p: (0, 0))],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    invalid=[
        (dict(in_features=0), "in_features"), (dict(out_features=0), "out_features"), (dict(rank=0), "rank"),
        (dict(alpha=0), "alpha"), (dict(alpha=float("nan")), "alpha"), (dict(dropout=1), "dropout"),
    ],
)  # fmt: skip

TEXTS = ("bert_small", "roberta_base", "gpt_small", "llama_small", "transformer_small", "bigru_small", "lstm_small")
LINEAR = {"bigru_small": ["input", "hidden"], "lstm_small": ["input", "hidden"]}


def adapted(name, targets=None, **options):
    torch.manual_seed(0)
    model = zoo.create(name, **least(name) | FAMILIES[name]).double().eval()
    before = copy.deepcopy(model)
    add_lora(model, 2, targets=targets or LINEAR.get(name, ["query", "value"]), **options)
    return model, before


@pytest.mark.parametrize("name", TEXTS)
def test_a_model_starts_as_it_was_learns_by_the_new_parameters_alone_and_is_merged_to_the_same(name):
    model, before = adapted(name)
    inputs = inputs_of(name, model)
    require_equal(first(model(*inputs)), first(before(*inputs)), 1e-14)  # recurrent kernels do not know of it
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}
    kept = before.state_dict()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        first(model(*inputs)).square().sum().backward()
        optimizer.step()
    state = model.state_dict()
    assert all(torch.equal(state[key], x) for key, x in kept.items())
    learnt = first(model(*inputs))
    assert not torch.allclose(learnt, first(before(*inputs)))
    assert merge_lora(model) is model
    assert not has_lora(model)
    assert state.keys() > model.state_dict().keys() == kept.keys()
    require_equal(first(model(*inputs)), learnt, 1e-12)


def first(output):
    return output[0] if isinstance(output, tuple) else output


@given(st.integers(0, 2**16), st.integers(1, 3), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_merging_keeps_modes_dtypes_and_what_is_frozen(seed, rank, training, dtype):
    linear = nn.Linear(4, 3, dtype=dtype).train(training)
    model = nn.Sequential(linear)
    assert add_lora(model, rank, targets=["0"], dropout=0.5) == ["0"]
    assert model[0].weight is linear.weight
    fill(model, torch.Generator().manual_seed(seed))
    assert {p.dtype for p in model.parameters()} == {dtype}
    weight = model[0].merged_weight()
    merge_lora(model)
    assert type(model[0]) is nn.Linear
    assert (model[0].training, model[0].weight.dtype) == (training, dtype)
    assert torch.equal(model[0].weight, weight)
    assert not torch.equal(weight, linear.weight)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("targets", "words"),
    [(["querry"], "targets must be one of down, key, output, query, up, value, got 'querry'"), ([], "targets must be some of")],
)
def test_a_target_that_is_not_there_is_named_and_nothing_is_changed(targets, words):
    model = zoo.create("bert_small", **FAMILIES["bert_small"] | dict(head=None))
    names = [*model.state_dict()]
    with pytest.raises(ValueError, match=words):
        add_lora(model, 2, targets=targets)
    assert [*model.state_dict()] == names
    assert all(p.requires_grad for p in model.parameters())


def test_a_shared_weight_is_refused():
    """A merge would change the embedding, or part from it."""
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "output": nn.Linear(3, 5), "twice": nn.Linear(3, 3)})
    model["output"].weight = model["table"].weight
    model["again"] = model["twice"]
    with pytest.raises(ValueError, match=r"not that of table\.weight"):
        add_lora(model, 1, targets=["output"])
    with pytest.raises(ValueError, match=r"not that of again\.weight"):
        add_lora(model, 1, targets=["twice"])


def test_a_saved_model_is_merged_and_loads_as_what_was_created(tmp_path):
    model, _ = adapted("bert_small")
    fill(model, torch.Generator().manual_seed(1))
    inputs = inputs_of("bert_small", model)
    expected = model(*inputs)
    zoo.save(model, tmp_path)
    assert has_lora(model)
    loaded = zoo.load(tmp_path)
    assert not has_lora(loaded)
    require_equal(loaded(*inputs), expected, 1e-12)
    assert loaded.maps["huggingface"].export(loaded)


def test_layer_sizes_and_the_start_are_those_of_the_paper():
    """Section 4.1: B is zero; A (rank, in), B (out, rank)."""
    layer = LoRALinear(5, 4, rank=3)
    assert layer.lora_a.shape == (3, 5)
    assert layer.lora_b.shape == (4, 3)
    assert layer.lora_a.abs().max() > 0
    assert not layer.lora_b.any()
    assert (layer.scale, LoRALinear(5, 4, rank=4, alpha=8, stable=True).scale) == (2.0, 4.0)
