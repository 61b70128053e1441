"""The learning rate's law, which parameters decay, and the average of weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from toys import network

import zoo
from tasks.optimizers import depths, learning_rate, make_optimizer, parameter_groups
from tasks.options import EngineOptions


@pytest.mark.parametrize("schedule", ["cosine", "step", "rsqrt", "constant"])
def test_schedule_rises_then_follows_its_law(schedule):
    options = EngineOptions(lr=2.0, epochs=10, warmup=2, schedule=schedule)
    rates = [learning_rate(options, step, 100) for step in range(1000)]
    assert all(a < b for a, b in pairwise(rates[:201]))
    assert 0 < rates[0] < 0.02
    assert max(rates) == rates[200] == 2.0
    half, late = rates[200 + 400], rates[200 + 600]
    expected = {"cosine": (1.0, 2 * 0.5 * (1 - 0.5**0.5)), "step": (0.2, 0.02), "constant": (2.0, 2.0),
           "rsqrt": (2.0 * (201 / 601) ** 0.5, 2.0 * (201 / 801) ** 0.5)}[schedule]  # fmt: skip
    assert (half, late) == pytest.approx(expected)
    assert rates[-1] < 1e-4 or schedule != "cosine"


@pytest.mark.parametrize("name", ["vgg11", "vgg19_bn", "transformer_small"])
def test_parameter_groups_are_a_partition_without_decay_of_norms_and_biases(name):
    with torch.device("meta"):
        model = zoo.create(name, **({"vocab_size": 9} if "former" in name else {"num_classes": 3}))
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == len(list(model.parameters()))
    for module in model.modules():
        for kind, p in module.named_parameters(recurse=False):
            decayed = isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and kind == "weight"
            assert decays[id(p)] == (0.1 if decayed else 0.0), (module, kind)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet20", "googlenet", "mobilenet_v3_small", "transformer_small"])
def test_layer_decay_is_a_partition_that_rises_with_depth(name):
    with torch.device("meta"):
        model = zoo.create(name, **({"vocab_size": 9} if "former" in name else {"num_classes": 3}))
    options = EngineOptions(lr=0.5, layer_decay=0.5, weight_decay=0.1)
    groups = make_optimizer(model, options).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    last = max(depths(model).values())
    for part, (_, module) in enumerate(model.parts().items()):
        for p in module.parameters():
            assert rates[id(p)] == (0.5 * 0.5 ** (last - part), 0.1 if p.ndim > 1 else 0.0)
    assert max(rate for rate, _ in rates.values()) == 0.5
    if name == "transformer_small":
        assert list(model.parts()) == [
            "embedding", "encoder1", "encoder2", "encoder_norm", "decoder1", "decoder2", "decoder_norm"
        ]  # fmt: skip
    else:
        head = {id(p) for p in model.head.parameters()}
        assert {rates[p][0] for p in head} == {0.5}


def test_the_engine_keeps_the_rates_of_the_layers_apart(start):
    run = start(model=network(), layer_decay=0.5, lr=0.1, schedule="constant")
    run.train_step(torch.arange(4))
    rates = {group["lr"] for group in run.optimizers["model"].param_groups}
    assert sorted(rates) == pytest.approx([0.025, 0.1])
