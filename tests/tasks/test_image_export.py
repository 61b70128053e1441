"""What torchvision's models make of exported weights: those of theirs that load them, and those that must be changed first."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import zoo
from tasks.image_classification import main, sized
from tasks.image_predictions import unlike

FAMILIES = ["vgg11_bn", "resnet18", "resnet20", "inception_v3", "mobilenet_v2"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_export_says_what_torchvision_does_not_load(name, size, channels):
    with torch.device("meta"):
        model = zoo.create(name, num_classes=3, in_channels=channels, **sized(name, size))
        more = {"aux_logits": True, "init_weights": False} if name == "inception_v3" else {}
        theirs = torchvision.models.get_model(name, num_classes=3, **more) if name != "resnet20" else nn.Module()
    try:
        theirs.load_state_dict(model.maps["torchvision"].export(model), strict=True, assign=True)
        loads = "mobilenet" not in name or size == 128  # else theirs has another stride
    except RuntimeError:
        loads = False
    assert (unlike(model, "torchvision") == "") == loads
    assert ("1 input channel" in unlike(model, "torchvision")) == (channels == 1 and name != "resnet20")


def small_resnet(theirs):
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()


def small_vgg(theirs):
    theirs.avgpool, theirs.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 3)


def small_mobilenet(theirs):
    theirs.features[0][0].stride = (1, 1)


@pytest.mark.parametrize(
    ("name", "change"), [("resnet18", small_resnet), ("vgg11_bn", small_vgg), ("mobilenet_v3_small", small_mobilenet)]
)
def test_torchvision_with_a_small_stem_or_head_computes_what_was_exported(tmp_path, capsys, name, change):
    torch.manual_seed(0)
    model = zoo.create(name, num_classes=3, **sized(name, 32)).eval()
    zoo.save(model, tmp_path / "model")
    assert main(["export", "--init", str(tmp_path / "model"), "--out", str(tmp_path / "x.pth")]) == 0
    part, images = next(iter(sized(name, 32))), torch.randn(2, 3, 40, 40)
    assert f"ours has a small {part}: torchvision's {name} must be given that before it loads them\n" in capsys.readouterr().out
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=3).eval()
        change(theirs)
    theirs.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True, assign=True)
    with torch.no_grad():
        expected, got = theirs(images), model(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.std()
