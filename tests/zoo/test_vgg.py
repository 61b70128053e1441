from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import zoo
from layers.testing import Contract, Twin, initial_distribution, part, tensor
from layers.testing.profiles import THOROUGH
from zoo.model import LinearHead
from zoo.vgg import DEPTHS, VGG, WIDTHS, ImageNetHead

COMPARED = "test_initial_values holds those of full size to their law"


class Dropped(nn.Linear):
    """Of an input of which a part is dropped in training."""

    p = 0.0

    def forward(self, input):
        return super().forward(functional.dropout(input, self.p, self.training))


def narrow(a):
    """torchvision's VGG of the same depths and widths, with a head of the same kind and size."""
    plan = [n for depth, width in zip(a.depths, a.widths, strict=True) for n in [width] * depth + ["M"]]
    with torch.device("meta"):  # its head of a hundred million weights, which is replaced below
        model = torchvision.models.VGG(nn.Identity(), init_weights=False)
    model.features = torchvision.models.vgg.make_layers(plan, a.norm is not None)
    model.features[0] = nn.Conv2d(a.in_channels, a.widths[0], 3, padding=1)
    width, hidden, classes = a.widths[-1], a.head.arguments.get("hidden_dim"), a.head.arguments["num_classes"]
    if a.head.factory is ImageNetHead:
        model.classifier = nn.Sequential(
            nn.Linear(width * 49, hidden), nn.ReLU(), nn.Dropout(a._dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(a._dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip
    else:
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), Dropped(width, classes)
        model.classifier.p = a._dropout
    return model


vgg = Contract(
    VGG,
    arguments=dict(
        depths=st.sampled_from(list(DEPTHS.values())),
        widths=st.permutations([2, 3, 4, 5, 6]),
        in_channels=st.sampled_from([1, 3]),
        norm=st.sampled_from([nn.BatchNorm2d, None]),
        _dropout=st.sampled_from([0.0, 0.5]),
        head=lambda a: st.sampled_from(
            [
                part(ImageNetHead, channels=a.widths[-1], num_classes=7, hidden_dim=8, dropout=a._dropout),
                part(LinearHead, channels=a.widths[-1], num_classes=7, dropout=a._dropout),
            ]
        ),
        init=st.sampled_from(["torchvision", "paper"]),
    ),
    inputs=lambda a: dict(
        images=tensor(
            "batch channels height width", channels=a.in_channels, height=st.integers(32, 70), width=st.integers(32, 70)
        )
    ),
    outputs=lambda a, s: ("batch", 7),
    twins=[Twin("torchvision", build=narrow, weights=lambda a: VGG(**a.passed()).maps["torchvision"])],
    invalid=[(dict(depths=(1, 1)), "depths"), (dict(init="luck"), "init"), (dict(in_channels=0), "in_channels")],
    holds=[initial_distribution(dict.fromkeys(("*.conv.*", "head.*"), COMPARED))],
    trains_differently=lambda a: a.norm is not None or a._dropout > 0,
    stochastic=lambda a: a._dropout > 0,
    model=True,
    backend="inductor",  # one member of the family
)

NAMES = list(zoo.vgg.VARIANTS)


@pytest.mark.parametrize("name", NAMES)
def test_full_size_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = zoo.create(name), getattr(torchvision.models, name)(init_weights=False)
    theirs.load_state_dict(ours.maps["torchvision"].export(ours), strict=True, assign=True)
    assert {k: v.shape for k, v in ours.maps["torchvision"].to_ours(theirs.state_dict()).items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }


@pytest.mark.parametrize("name", NAMES if settings().max_examples >= THOROUGH else ["vgg11", "vgg19_bn"])
def test_full_size_outputs_are_torchvisions(name):
    """Both ways: their weights into ours, ours back into theirs, the same bits and the same logits."""
    theirs = getattr(torchvision.models, name)(num_classes=10).eval()
    ours = zoo.create(name, num_classes=10).eval()
    ours.maps["torchvision"].load(ours, theirs.state_dict())
    state = theirs.state_dict()
    exported = ours.maps["torchvision"].export(ours)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[k], state[k]) for k in state)
    images = torch.randn(2, 3, 45, 38)
    with torch.no_grad():
        expected, got = theirs(images), ours(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (33, 63), (224, 224)])
def test_features_halve_at_every_stage(rows, columns):
    model = zoo.create("vgg11", head="small", num_classes=10, in_channels=1).eval()
    with torch.no_grad():
        stages = model.features(torch.randn(1, 1, rows, columns))
    halved = [(w, rows >> n, columns >> n) for n, w in enumerate(WIDTHS, start=1)]
    assert [tuple(f.shape[1:]) for f in stages] == halved


def test_too_small_an_image_names_the_smallest():
    with pytest.raises(ValueError, match="at least 32 rows and columns"):
        zoo.create("vgg11", head="small")(torch.randn(1, 3, 31, 64))


def test_initial_values():
    theirs = zoo.create("vgg11", num_classes=10)
    convs = [m for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs[1:]:
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.02)
        assert not conv.bias.any()
    assert theirs.head.hidden2.weight.std().item() == pytest.approx(0.01, rel=0.02)
    paper = zoo.create("vgg11_bn", head="small", init="paper")
    for module in paper.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.02)
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (dict(head="large"), "head"),
        (dict(num_classes=0), "num_classes"),
        (dict(dropout=1.0), "dropout"),
        (dict(init="x"), "init"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=f"{word} must be"):
        zoo.create("vgg11", **arguments)
