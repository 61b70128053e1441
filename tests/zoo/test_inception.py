from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torchvision
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import inception as of_v3
from torchvision.models.googlenet import Inception as TheirInception
from torchvision.models.googlenet import InceptionAux

import zoo
from layers.inception import conv_unit, inception_a, inception_b, inception_v1
from layers.testing import Contract, Twin, exercised, initial_distribution, tensor
from layers.testing.profiles import THOROUGH
from zoo.inception import AuxiliaryHead, Inception, entry, googlenet, inception_v3, scaled
from zoo.model import LinearHead

COMPARED = "test_initial_values holds those of full size to their law"

CLASSES = 7


def images(smallest, largest):
    def draw(a):
        sizes = dict(height=st.integers(smallest, largest), width=st.integers(smallest, largest))
        return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))

    return draw


def narrow(step):
    """torchvision's unit with a part of its channels."""

    def conv(in_channels, out_channels, **options):
        shown = in_channels if in_channels in (1, 3) else in_channels // step
        return of_v3.BasicConv2d(shown, out_channels // step, **options)

    return conv


def with_channels(unit, a):
    out = unit.conv.out_channels
    kernel, stride, padding = unit.conv.kernel_size, unit.conv.stride, unit.conv.padding
    unit.conv = nn.Conv2d(a.in_channels, out, kernel, stride, padding, bias=False)


def their_googlenet(a):
    unit = narrow(8)
    blocks = [unit, partial(TheirInception, conv_block=unit), partial(InceptionAux, conv_block=unit)]
    model = torchvision.models.GoogLeNet(
        CLASSES, a.auxiliary, a.transform_input, init_weights=False, blocks=blocks, dropout=a.dropout, dropout_aux=0.0
    )
    with_channels(model.conv1, a)
    model.fc = nn.Linear(128, CLASSES)
    for head in (model.aux1, model.aux2) if a.auxiliary else ():
        head.fc1 = nn.Linear(256, 1024)
    return model


# inductor takes minutes for so many layers
COMMON = dict(num_classes=CLASSES, in_channels=st.sampled_from([1, 3]), dropout=st.sampled_from([0.0, 0.5]))
TRANSFORM = dict(transform_input=lambda a: st.booleans() if a.in_channels == 3 else False)
WHOLE = settings().max_examples >= THOROUGH
WITHOUT = {} if WHOLE else dict.fromkeys(["compile", "export"], "of few blocks, below; of the whole net in thorough runs")

v1 = Contract(
    googlenet,
    arguments=dict(**COMMON, **TRANSFORM, width=1 / 8, auxiliary=False),
    inputs=images(33, 60),
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[Twin("torchvision", build=their_googlenet, weights=lambda a: googlenet(**a.passed()).maps["torchvision"])],
    invalid=[(dict(width=0.1), "width"), (dict(in_channels=1, transform_input=True), "transform_input")],
    holds=[
        initial_distribution({"*.conv.weight": COMPARED, "*.output.weight": COMPARED}),
        exercised(**dict.fromkeys(("auxiliary", "dropout_auxiliary", "kernel_size", "num_classes", "width"), "at full size")),
    ],
    trains_differently=lambda a: True,
    stochastic=lambda a: a.dropout > 0,
    without=WITHOUT,
    model=True,
)  # fmt: skip


def their_v3(a):
    unit = narrow(16)
    kinds = (of_v3.InceptionA, of_v3.InceptionB, of_v3.InceptionC, of_v3.InceptionD, of_v3.InceptionE, of_v3.InceptionAux)
    blocks = [unit, *(partial(kind, conv_block=unit) for kind in kinds)]
    model = torchvision.models.Inception3(CLASSES, a.auxiliary, a.transform_input, blocks, init_weights=False, dropout=a.dropout)
    with_channels(model.Conv2d_1a_3x3, a)
    model.fc = nn.Linear(128, CLASSES)
    if a.auxiliary:
        model.AuxLogits.fc = nn.Linear(48, CLASSES)
    return model


v3 = Contract(
    inception_v3,
    arguments=dict(**COMMON, **TRANSFORM, width=1 / 16, auxiliary=False),
    inputs=images(107, 125),
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[Twin("torchvision", build=their_v3, weights=lambda a: inception_v3(**a.passed()).maps["torchvision"])],
    invalid=[(dict(width=0.1), "width"), (dict(in_channels=1, transform_input=True), "transform_input")],
    holds=[
        initial_distribution({"*.conv.weight": COMPARED, "*.output.weight": COMPARED}),
        exercised(**dict.fromkeys(("auxiliary", "num_classes", "width"), "at full size below")),
    ],
    trains_differently=lambda a: True,
    stochastic=lambda a: a.dropout > 0,
    without=WITHOUT,
    model=True,
)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 15), ("inception_v3", 75), ("googlenet", 46), ("inception_v3", 120)])
@pytest.mark.parametrize("transform", [False, True])
def test_full_size_outputs_are_torchvisions(name, size, transform):
    """Both ways, from the smallest image on."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(init_weights=False, transform_input=transform).eval()
    ours = zoo.create(name, transform_input=transform).eval()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    state, exported = theirs.state_dict(), ours.maps["torchvision"].export(ours)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], state[k]) for k in state)
    images = torch.randn(2, 3, size, size + 9)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    if size in (15, 75):
        with pytest.raises(ValueError, match=f"at least {size} rows"):
            ours(images[:, :, 1:])
        with pytest.raises(RuntimeError, match=r"too small|greater than actual input"):
            theirs(images[:, :, 1:])


@pytest.mark.parametrize(("name", "size"), [("googlenet", 40), ("inception_v3", 299)])
def test_auxiliary_heads_are_torchvisions(name, size):
    """In training: all logits, the gradients and the running statistics; v3 on the least that its head works on, and narrow."""
    torch.manual_seed(0)
    if name == "googlenet":
        theirs = torchvision.models.googlenet(num_classes=CLASSES, init_weights=False, dropout=0.0, dropout_aux=0.0)
        ours = zoo.create(name, num_classes=CLASSES, dropout=0.0, dropout_auxiliary=0.0)
    else:
        theirs = their_v3(SimpleNamespace(auxiliary=True, transform_input=False, dropout=0.0, in_channels=3))
        ours = zoo.create(name, num_classes=CLASSES, width=1 / 16, dropout=0.0)
    theirs, ours = theirs.double().train(), ours.double().train()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    found, expected = ours(images), theirs(images)
    expected = (expected[0], *expected[:0:-1])  # torchvision has the second auxiliary head before the first
    assert len(found) == (3 if name == "googlenet" else 2)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.std()
    for outputs in (found, expected):
        sum((n + 1) * x.square().sum() for n, x in enumerate(outputs)).backward()
    gradients = ours.maps["torchvision"].to_theirs({k: p.grad for k, p in ours.named_parameters()}, strict=False)
    scale = max(p.grad.std() for p in theirs.parameters() if p.numel() > 1)
    for key, parameter in theirs.named_parameters():
        assert (gradients[key] - parameter.grad).abs().max() <= 1e-9 * max(parameter.grad.abs().max(), 1e-2 * scale), key
    exported = ours.maps["torchvision"].export(ours)
    for key, value in theirs.named_buffers():
        torch.testing.assert_close(exported[key], value, rtol=1e-10, atol=1e-12)
    if name == "inception_v3":
        with pytest.raises(ValueError, match="at least 299 rows and columns"):
            ours(images[:, :, 1:])


def test_auxiliary_logits_come_in_training_only():
    model = zoo.create("googlenet", num_classes=3, width=1 / 8)
    images = torch.randn(2, 3, 40, 40)
    assert [tuple(x.shape) for x in model.train()(images)] == [(2, 3)] * 3
    assert model.eval()(images).shape == (2, 3)
    assert torch.equal(model(images), model.all_logits(images)[0])
    assert zoo.create("googlenet", num_classes=3, width=1 / 8, auxiliary=False).train()(images).shape == (2, 3)


def few_blocks(num_classes, in_channels, dropout, transform_input):
    """Blocks of both, between poolings that round up and down."""
    conv = scaled(1 / 16, 16)[1]
    stem = nn.Sequential(entry(transform_input, in_channels), conv_unit(in_channels, 8, 3, stride=2), nn.MaxPool2d(3, stride=2))
    stages = [
        [inception_v1(8, 4, (4, 6), (2, 4), 2)],
        [nn.MaxPool2d(2, stride=2, ceil_mode=True), inception_a(256, 32, conv=conv)],
        [inception_b(256, conv=conv)],
    ]
    options = dict(in_channels=in_channels, auxiliary_weight=0.0, smallest_image=33, smallest_auxiliary=0)
    return Inception(stem, stages, LinearHead(46, num_classes, dropout=dropout), {}, **options)


def test_few_blocks_compile_and_are_exported():
    """For any batch. Each kind of block has a contract of its own, by which it is too."""
    contract = Contract(
        few_blocks,
        arguments=COMMON | TRANSFORM,
        inputs=images(33, 45),
        outputs=lambda a, s: ("batch", CLASSES),
        trains_differently=lambda a: True,
        stochastic=lambda a: a.dropout > 0,
        model=True,
    )
    report = contract.check(["shape", "export", "compile"])
    assert [(outcome.name, outcome.how) for outcome in report] == [(n, "passed") for n in ("shape", "export", "compile")], report


def test_a_training_step_compiles_to_one_graph():
    """With auxiliary heads, in a net of few blocks, each of which has a contract of its own that compiles it."""
    torch.manual_seed(0)
    stages = [[inception_v1(8, 4, (4, 6), (2, 4), 2)], [nn.MaxPool2d(2), inception_v1(16, 6, (4, 8), (2, 4), 2)]]
    heads = {n: AuxiliaryHead(conv_unit(c, 8, 1), 8, 16, num_classes=3, dropout=0.0) for n, c in ((0, 16), (1, 20))}
    model = Inception(
        conv_unit(3, 8, 3), stages, LinearHead(20, num_classes=3), heads,
        in_channels=3, auxiliary_weight=0.3, smallest_image=2, smallest_auxiliary=2,
    ).double().train()  # fmt: skip
    images, results = torch.randn(2, 3, 12, 11, dtype=torch.float64), []
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        outputs = call(images)
        assert len(outputs) == 3
        results.append((*outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), list(model.parameters()))))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-9, atol=1e-9 * eager.abs().max().item())


def test_initial_values():
    """Cut off at two deviations, which leaves 0.88 of the deviation."""
    for name, std in (("googlenet", 0.01), ("inception_v3", 0.1)):
        weight = zoo.create(name, num_classes=10).stages[-1][-1].branches[0].conv.weight
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(0.88 * std, rel=0.02)
    side = zoo.create("inception_v3", num_classes=10).auxiliary["1"]
    assert side[2].conv.weight.abs().max() <= 0.02
    assert side[3].output.weight.abs().max() <= 0.002
