from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import zoo
from layers.convolution import BlurPool, ConvNormAct, SqueezeExcite
from layers.residual import PaddedShortcut, Residual, basic_block, bottleneck, projected
from layers.testing import Contract, Twin, initial_distribution, part, tensor
from layers.testing.profiles import THOROUGH
from zoo.model import LinearHead
from zoo.resnet import WIDTHS, ResNet, imagenet_stem, small_stem

COMPARED = "test_initial_values holds those of full size to their law"

CLASSES = 7


def images(a, smallest=1):
    # one pixel a channel is too little for batch statistics of a single image, which per-sample gradients ask for
    sizes = dict(height=st.integers(smallest, 70), width=st.integers(smallest, 70))
    return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))


def narrow(a):
    """torchvision's ResNet, its stages made again with other widths."""
    kind = torchvision.models.resnet.BasicBlock if a.block is basic_block else torchvision.models.resnet.Bottleneck
    with torch.device("meta"):  # of which no weight is kept
        model = torchvision.models.ResNet(kind, [1, 1, 1, 1])
    model.inplanes = a.stem_channels
    model.conv1 = nn.Conv2d(a.in_channels, a.stem_channels, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(a.stem_channels)
    for n, (depth, width) in enumerate(zip(a.depths, a.widths, strict=True)):
        setattr(model, f"layer{n + 1}", model._make_layer(kind, width // kind.expansion, depth, 1 if n == 0 else 2))
    model.fc = nn.Linear(a.widths[-1], CLASSES)
    return model


def of_norm(last):
    """0 for the last norm of a block that begins as its shortcut, 1 for the others."""
    return lambda a, weight: (float(not (a.zero_init and a.block is last)), 0.0)


NORMS = {"*.body.1.norm.weight": of_norm(basic_block), "*.body.2.norm.weight": of_norm(bottleneck)}
resnet = Contract(
    ResNet,
    arguments=dict(
        block=st.sampled_from([basic_block, bottleneck]),
        depths=st.permutations([1, 1, 2, 2]),
        widths=st.permutations([4, 8, 12, 16]),
        stem_channels=st.sampled_from([4, 5]),
        in_channels=st.sampled_from([1, 3]),
        stem=lambda a: part(imagenet_stem, in_channels=a.in_channels, channels=a.stem_channels),
        head=lambda a: part(LinearHead, channels=a.widths[-1], num_classes=CLASSES),
        zero_init=st.booleans(),
    ),
    inputs=lambda a: images(a, 33),
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[Twin("torchvision", build=narrow, weights=lambda a: ResNet(**a.passed()).maps["torchvision"])],
    invalid=[(dict(depths=(1, 1)), "depths"), (dict(depths=(1, 0, 1, 1)), "depths")],
    holds=[initial_distribution({"*.conv.weight": COMPARED} | NORMS)],
    trains_differently=lambda a: True,
    model=True,
    backend="inductor",  # one member of the family
)


def first_strided(in_channels, out_channels, stride):
    """The bottleneck of the paper, "v1": the stride is the first convolution's."""
    hidden = out_channels // 4
    body = nn.Sequential(
        ConvNormAct(in_channels, hidden, 1, stride=stride),
        ConvNormAct(hidden, hidden, 3),
        ConvNormAct(hidden, out_channels, 1, activation=None),
    )
    return Residual(body, projected(in_channels, out_channels, stride), nn.ReLU())


def of_transformers(a):
    config = ResNetConfig(
        num_channels=a.in_channels, embedding_size=a.stem_channels, hidden_sizes=a.widths, depths=a.depths,
        downsample_in_bottleneck=a.block is first_strided, num_labels=CLASSES,
        layer_type="basic" if a.block is basic_block else "bottleneck",
    )  # fmt: skip
    return ResNetForImageClassification(config)


of_hugging_face = Contract(
    ResNet,
    arguments=dict(
        block=st.sampled_from([basic_block, bottleneck, first_strided]),
        depths=st.permutations([1, 1, 2]),
        widths=st.permutations([8, 12, 16]),
        stem_channels=5,
        in_channels=3,
        stem=part(imagenet_stem, in_channels=3, channels=5),
        head=lambda a: part(LinearHead, channels=a.widths[-1], num_classes=CLASSES),
    ),
    inputs=lambda a: images(a, 17),
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[
        Twin(
            "transformers",
            build=of_transformers,
            weights=lambda a: ResNet(**a.passed()).maps["huggingface"],
            call=lambda m, i: m(pixel_values=i["images"]).logits,
        )
    ],
    invalid=[(dict(depths=(1, 1)), "depths")],
    holds=[initial_distribution({"*.conv.weight": COMPARED})],
    trains_differently=lambda a: True,
    model=True,
    name="ResNet with the stride where the paper has it",
)

of_cifar = Contract(
    ResNet,
    arguments=dict(
        block=partial(basic_block, shortcut=PaddedShortcut),
        depths=st.sampled_from([(1, 1, 1), (2, 2, 2)]),
        widths=(3, 5, 6),
        stem_channels=3,
        in_channels=st.sampled_from([1, 3]),
        stem=lambda a: part(small_stem, in_channels=a.in_channels, channels=3),
        head=part(LinearHead, channels=6, num_classes=CLASSES, dropout=0.0),
    ),
    inputs=lambda a: images(a, 8),
    outputs=lambda a, s: ("batch", CLASSES),
    twins=[
        Twin("torchvision", build=lambda a: cifar_by_torchvision(a), weights=lambda a: ResNet(**a.passed()).maps["torchvision"])
    ],
    invalid=[(dict(depths=(1, 1)), "depths")],
    holds=[initial_distribution({"*.conv.weight": COMPARED})],
    trains_differently=lambda a: True,
    model=True,
    name="ResNet for CIFAR",
)


class Padded(nn.Module):
    def __init__(self, missing, stride):
        super().__init__()
        self.missing, self.stride = missing, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return torch.cat([x, x.new_zeros(len(x), self.missing, *x.shape[2:])], 1)


def cifar_by_torchvision(a):
    """Section 4.2 of the paper from torchvision's basic blocks."""
    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(a.in_channels, a.stem_channels, 3, 1, 1, bias=False), nn.BatchNorm2d(a.stem_channels)
    before = a.stem_channels
    for n, (depth, width) in enumerate(zip(a.depths, a.widths, strict=True)):
        blocks = []
        for b in range(depth):
            stride = 2 if n > 0 and b == 0 else 1
            blocks.append(torchvision.models.resnet.BasicBlock(before, width, stride, Padded(width - before, stride)))
            before = width
        setattr(net, f"layer{n + 1}", nn.Sequential(*blocks))
    net.fc = nn.Linear(before, CLASSES)

    def forward(x):
        x = net.bn1(net.conv1(x)).relu()
        return net.fc(net.layer3(net.layer2(net.layer1(x))).mean((2, 3)))

    net.forward = forward
    return net


TORCHVISIONS = [name for name in zoo.resnet.VARIANTS if hasattr(torchvision.models, name)]


def test_every_variant_for_imagenet_has_its_twin():
    assert len(TORCHVISIONS) == 10


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_full_size_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = zoo.create(name), getattr(torchvision.models, name)()
    theirs.load_state_dict(ours.maps["torchvision"].export(ours), strict=True, assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


SOME = ("resnet34", "resnext50_32x4d", "wide_resnet50_2")
"""A member of each kind of block; names, shapes and numbers of parameters are compared of all, and a contract draws others."""


@pytest.mark.parametrize("name", TORCHVISIONS if settings().max_examples >= THOROUGH else SOME)
def test_full_size_outputs_are_torchvisions(name):
    """Their weights into ours, ours back into theirs, the same bits and the same logits."""
    theirs = getattr(torchvision.models, name)(num_classes=10).eval()
    ours = zoo.create(name, num_classes=10).eval()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    state, exported = theirs.state_dict(), ours.maps["torchvision"].export(ours)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], state[k]) for k in state)
    images = torch.randn(2, 3, 45, 38)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


CIFAR = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


@pytest.mark.parametrize("name", CIFAR)
def test_full_size_nets_for_cifar_are_of_torchvisions_blocks(name):
    ours = zoo.create(name, num_classes=CLASSES).eval()
    depth = (int(name.removeprefix("resnet")) - 2) // 6
    theirs = cifar_by_torchvision(
        SimpleNamespace(in_channels=3, stem_channels=16, depths=[depth] * 3, widths=(16, 32, 64))
    ).eval()
    theirs.load_state_dict(ours.maps["torchvision"].export(ours), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet50", "resnetblur50"])
def test_timms_variants_are_compositions(name):
    """Squeeze-and-excitation and anti-aliasing are modules that are passed; names and outputs are timm's."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10).eval()
    parts = {}
    if name == "seresnet50":
        parts["gate"] = lambda channels: SqueezeExcite(channels, channels // 16)
    if name == "resnetblur50":
        parts["blur"] = BlurPool
    stem = imagenet_stem()
    if name == "resnetblur50":
        stem = nn.Sequential(stem[0], nn.MaxPool2d(3, stride=1, padding=1), BlurPool(64))
    block, factor = (basic_block, 1) if name == "resnet18" else (partial(bottleneck, **parts), 4)
    widths = [factor * w for w in WIDTHS]
    ours = ResNet(block, (2, 2, 2, 2) if factor == 1 else (3, 4, 6, 3), widths, stem, LinearHead(widths[-1], 10)).eval()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    assert ours.maps["torchvision"].export(ours).keys() == theirs.state_dict().keys()
    images = torch.randn(2, 3, 75, 68)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)]
)
def test_nets_for_cifar_have_the_papers_sizes(name, millions):
    """Table 6 of the paper."""
    model = zoo.create(name)
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(found, 1 if name == "resnet110" else 2) == millions
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == int(name.removeprefix("resnet"))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_an_image_of_one_pixel_is_enough(stem):
    model = zoo.create("resnet18", num_classes=3, stem=stem).eval()
    assert model(torch.randn(2, 3, 1, 1)).shape == (2, 3)


def test_initial_values():
    model = zoo.create("resnet50", zero_init=True)
    blocks = [m for m in model.modules() if isinstance(m, Residual)]
    assert len(blocks) == 16
    for block in blocks:
        assert not block.body[-1].norm.weight.any()
        assert (block.body[0].norm.weight == 1).all()
    conv = model.stages[3][1].body[1].conv
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)


def test_features_of_every_stage():
    model = zoo.create("resnet50", num_classes=10).eval()
    with torch.no_grad():
        shapes = [tuple(f.shape) for f in model.features(torch.randn(1, 3, 65, 97))]
    assert shapes == [(1, 256, 17, 25), (1, 512, 9, 13), (1, 1024, 5, 7), (1, 2048, 3, 4)]


def test_frozen_parts_stay_as_they_are():
    model = zoo.create("resnet18", num_classes=10)
    model.freeze(["stem", "stage1"])
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 40, 40)).square().sum().backward()
    optimizer.step()
    moved = {k.split(".")[0] + k.split(".")[1] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"stages1", "stages2", "stages3", "headoutput"}
    with pytest.raises(ValueError, match="freeze must be one of stem, stage1, stage2, stage3, stage4, got 'layer1'"):
        model.freeze(["layer1"])


@pytest.mark.parametrize(
    ("arguments", "word"), [(dict(stem="x"), "stem"), (dict(num_classes=0), "num_classes"), (dict(dropout=1.0), "dropout")]
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"{word} must be"):
        zoo.create("resnet18", **arguments)
