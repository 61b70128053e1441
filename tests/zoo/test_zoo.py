"""Names, arguments, and what models know of themselves; tools that look into modules. `test_saving` is about saving them."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from functools import cache

import pytest
import torch
from small_models import FAMILIES, TEXT, inputs_of, least, on_meta
from torch import nn

import zoo
from layers.convolution import BlurPool, SqueezeExcite
from layers.residual import bottleneck
from zoo import saving
from zoo.model import LinearHead
from zoo.resnet import ResNet, imagenet_stem
from zoo.vgg import VGG

IMAGES = zoo.names(zoo.ImageModel)


@cache
def known(name):
    """A model on the meta device to look at, not to change."""
    return on_meta(name)


def test_names_can_all_be_created_on_meta():
    for name in zoo.names():
        assert isinstance(known(name), nn.Module)
    assert len(zoo.names()) == sum(len(family.VARIANTS) for family in zoo.FAMILIES)


def test_an_unknown_name_suggests_the_nearest():
    for ask in (zoo.create, zoo.arguments):
        with pytest.raises(ValueError, match=r"got 'vgg16bn', did you mean 'vgg16_bn'\?"):
            ask("vgg16bn")


@pytest.mark.parametrize("name", zoo.names())
def test_arguments_are_all_that_a_model_takes(name):
    """The defaults given outright make the same model; any other argument is named, beside those that there are."""
    taken = zoo.arguments(name)
    given = taken | least(name)
    state = known(name).state_dict()
    assert {k: v.shape for k, v in on_meta(name, **given).state_dict().items()} == {k: v.shape for k, v in state.items()}
    with pytest.raises(ValueError, match=f"{name} takes {', '.join(taken)}, got labels=10"):
        on_meta(name, labels=10)
    for inner in ("depths", "block", "table", "norm"):
        with pytest.raises(ValueError, match=f"{name} takes .*, got {inner}=1"):
            on_meta(name, **{inner: 1})


def test_an_argument_that_is_left_out_is_named():
    with pytest.raises(ValueError, match=r"transformer_base: .*vocab_size"):
        zoo.create("transformer_base")


# ------------------------------------------------------------------------------------------------ what models know of themselves


@pytest.mark.parametrize("name", zoo.names())
def test_names_tell_the_kind_of_a_model(name):
    every = (zoo.ImageModel, zoo.LanguageModel, zoo.EncoderDecoder, zoo.DiffusionModel)
    assert [kind for kind in every if name in zoo.names(kind)] == [kind for kind in every if isinstance(known(name), kind)]
    assert issubclass(zoo.kind_of(name), zoo.Model)
    assert type(known(name)) is zoo.kind_of(name)


@pytest.mark.parametrize("name", zoo.names())
def test_maps_cover_every_tensor_both_ways(name):
    model = known(name)
    for reference, mapping in model.maps.items():
        theirs = mapping.export(model)
        state = model.state_dict()
        back = mapping.to_ours(theirs, like=state)
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}, reference
    with pytest.raises(ValueError, match=f"{name} has no twin in keras, it has {', '.join(model.maps) or 'none'}$"):
        model.maps["keras"]
    assert "keras" not in model.maps
    assert model.maps.get("keras") is None
    assert not {"torchvision", "timm"} & set(dir(model))


def test_the_references_of_every_model():
    found = {name: set(known(name).maps) for name in zoo.names()}
    assert {name for name, refs in found.items() if "torchvision" in refs} == {*IMAGES} - {"mobilenet_v1"}
    assert {n for n in IMAGES if "timm" not in found[n]} == {
        "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"
    }  # fmt: skip
    assert {name for name, refs in found.items() if "huggingface" in refs and name in IMAGES} == {
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v1"
    }  # fmt: skip
    assert set(on_meta("transformer_base", bias=True, interleaved=False).maps) == {"torch", "huggingface"}
    assert set(on_meta("vgg11", head="small").maps) == {"torchvision"}


@pytest.mark.parametrize("name", IMAGES)
def test_output_layers_are_those_that_grow_with_the_classes(name):
    model = known(name)
    few, many = ({k: v.shape for k, v in m.state_dict().items()} for m in (on_meta(name, num_classes=5), model))
    grown = {key.rpartition(".")[0] for key in few if few[key] != many[key]}
    assert grown == set(model.output_layers)
    assert bool(model.auxiliary) == (len(grown) > 1) == (model.auxiliary_weight > 0) == (name in ("googlenet", "inception_v3"))
    assert all(isinstance(model.get_submodule(layer), nn.Linear) for layer in model.output_layers)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "googlenet", "inception_v3", "mobilenet_v2"])
def test_the_smallest_image_to_train_on(name):
    model = on_meta(name, in_channels=1).train()
    size = model.smallest_training_image
    assert model.in_channels == 1
    outputs = model(torch.empty(2, 1, size, size, device="meta"))
    assert len(outputs) == 1 + len(model.auxiliary) if model.auxiliary else outputs.shape == (2, 1000)
    if size > 1:
        with pytest.raises(ValueError, match=f"at least {size} rows"):
            model(torch.empty(2, 1, size - 1, size, device="meta"))


@pytest.mark.parametrize("name", zoo.names())
def test_every_part_can_be_frozen_and_the_model_be_saved(name):
    """At full size, on the meta device: nothing that `save` compares tells a created model from the one that `load` creates."""
    model = on_meta(name).train()
    parts = model.parts()
    model.freeze(parts)
    frozen = {id(p) for part in parts.values() for p in part.parameters()}
    assert all(p.requires_grad != (id(p) in frozen) for p in model.parameters())
    assert not any(module.training for part in parts.values() for module in part.modules())
    with pytest.raises(ValueError, match=f"freeze must be one of {', '.join(parts)}, got 'layer1'"):
        model.freeze(["layer1"])
    assert saving.differences(model, known(name)) == []


def test_the_parts_of_a_transformer():
    model = zoo.create("transformer_small", **TEXT | dict(layers=2, dropout=0.5))
    assert [*model.parts()] == ["embedding", "encoder1", "encoder2", "encoder_norm", "decoder1", "decoder2", "decoder_norm"]
    model.freeze(["embedding", "encoder1"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tokens = torch.randint(1, 19, (3, 5))
    model.train()(tokens, tokens).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    still = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    moved = {k for k in before if not k.startswith(("embedding.", "encoder.0."))}
    assert still >= before.keys() - moved
    assert still & moved <= {k for k in before if k.endswith("key.bias")}  # softmax ignores it


def test_nothing_is_frozen_if_a_name_is_wrong():
    model = zoo.create("resnet20")
    with pytest.raises(ValueError, match="got 'nothing'"):
        model.freeze(["stem", "nothing"])
    assert all(p.requires_grad for p in model.parameters())


# -------------------------------------------------------------------------------------------------- tools that look into modules


@pytest.mark.parametrize("name", zoo.names())
def test_tools_may_look_at_everything(name):
    """inspect and hasattr expect that an attribute which is not there raises AttributeError."""
    model = known(name)
    members = dict(inspect.getmembers(model))
    assert "maps" in members
    for attribute in dir(model):
        hasattr(model, attribute)
    if name in IMAGES:
        assert not hasattr(model, "preprocess")
        for kind in (AttributeError, ValueError):
            with pytest.raises(kind, match="preprocess is known of models that"):
                model.preprocess  # noqa: B018
        model.config["preprocess"] = {"size": 3}
        with pytest.raises(ValueError, match="preprocess must be an object as"):
            model.preprocess  # noqa: B018
        assert not hasattr(model, "preprocess")
        model.config["preprocess"] = zoo.Preprocess(32, (0.5,), (0.25,)).config()
        assert model.preprocess.image_size == 32
        del model.config["preprocess"]


@pytest.mark.filterwarnings("ignore:.*jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mobilenet_v2"])  # v3 has its blocks too
def test_small_members_are_traced_copied_and_pickled(name):
    torch.manual_seed(0)
    model = zoo.create(name, **FAMILIES[name]).eval()
    inputs = inputs_of(name, model)
    with torch.no_grad():
        expected = model(*inputs)
        traced = torch.jit.trace(model, inputs, check_trace=False)
        torch.testing.assert_close(traced(*inputs), expected)
        exported = {k: v.export(model).keys() for k, v in model.maps.items()}
        for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(*inputs), expected)
            assert other.config == model.config
            assert {k: v.export(other).keys() for k, v in other.maps.items()} == exported


def composed(kind):
    if kind == "vgg":
        return VGG((1, 1, 2), LinearHead(64, num_classes=10), widths=(16, 32, 64), norm=lambda c: nn.GroupNorm(8, c))

    def block(*args, **options):
        return bottleneck(*args, gate=lambda channels: SqueezeExcite(channels, channels // 4), blur=BlurPool, **options)

    return ResNet(block, (1, 2), (16, 32), imagenet_stem(channels=8), LinearHead(32, num_classes=4), stem_channels=8)


@pytest.mark.parametrize("kind", ["vgg", "resnet"])
def test_a_model_composed_by_hand_keeps_its_maps_and_its_weights(kind, tmp_path):
    model = composed(kind)
    assert model.config == {}
    exported = model.maps["torchvision"].export(model)
    assert len(exported) == len(model.state_dict())
    with pytest.raises(ValueError, match=r"without a config: keep its weights with zoo\.save_state\(model, path\)"):
        zoo.save(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    zoo.save_state(model, tmp_path / "x.safetensors")
    again = composed(kind)
    zoo.load_state(again, tmp_path / "x.safetensors")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        zoo.save_state(model, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"dense tensors with values.*unlike"):
        zoo.save_state(composed(kind).to("meta"), tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no twin in keras, it has torchvision"):
        model.maps["keras"]


def test_rooms_keep_their_old_names():
    from zoo import decoding, preprocess, sampling
    from zoo.generation import decoding as found

    assert decoding is found
    assert sys.modules["zoo.sampling"] is sampling
    assert preprocess.Preprocess is zoo.Preprocess


def test_importing_the_zoo_does_not_import_torchvision():
    program = "import sys, zoo; sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_loading_does_not_import_torchs_compiler(tmp_path):
    """Which takes seconds, and which much of what is done on the meta device asks for. Older versions of einops do it anyway."""
    program = (
        "import einops, sys, torch, zoo; from zoo import files\n"
        "einops.rearrange(torch.ones(1), 'a -> a'); before = 'torch._dynamo' in sys.modules\n"
        "small = dict(vocab_size=9, dim=8, heads=2, hidden_dim=12, layers=1)\n"
        "for name, given in (('inception_v3', dict(width=1 / 16)), ('transformer_base', small)):\n"
        "    model = zoo.create(name, **given)\n"
        "    zoo.save(model, sys.argv[1]); zoo.load(sys.argv[1])\n"
        "    for naming, weights in model.maps.items():\n"
        "        files.write_tensors(sys.argv[1] + '/x.safetensors', weights.export(model))\n"
        "        zoo.create(name, weights=sys.argv[1] + '/x.safetensors', **given)\n"
        "sys.exit('torch._dynamo' in sys.modules and not before)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
