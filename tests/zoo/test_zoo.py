from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from functools import cache
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import zoo
from layers.convolution import BlurPool, SqueezeExcite, fold_norms
from layers.positions import Llama3Scaling
from layers.residual import bottleneck
from zoo import files, saving
from zoo.model import LinearHead
from zoo.resnet import ResNet, imagenet_stem
from zoo.vgg import VGG

SMALL = dict(head="small", num_classes=3, in_channels=1)
TEXT = dict(vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=1)
IMAGES = [name for name in zoo.names() if "in_channels" in zoo.arguments(name)]


def least(name):
    """Arguments that a model cannot do without."""
    return {"vocab_size": 19} if zoo.arguments(name).get("vocab_size") is zoo.REQUIRED else {}


def on_meta(name, **arguments):
    with torch.device("meta"):
        return zoo.create(name, **(least(name) | arguments))


@cache
def known(name):
    """A model on the meta device to look at, not to change."""
    return on_meta(name)


FAMILIES = {
    "vgg11_bn": SMALL,
    "resnet20": {},
    "googlenet": dict(width=1 / 8, num_classes=3),
    "inception_v3": dict(width=1 / 16, num_classes=3, auxiliary=False),
    "mobilenet_v1": dict(width=0.1, num_classes=3),
    "mobilenet_v2": dict(width=0.1, num_classes=3),
    "mobilenet_v3_small": dict(width=0.1, num_classes=3),
    "transformer_base": TEXT | dict(bias=True, interleaved=False),
    "transformer_small": TEXT,
    "bert_small": TEXT | dict(head="masked"),
    "roberta_base": TEXT | dict(head="tokens", num_classes=4),
    "distilbert_base": TEXT | dict(head="sequence", num_classes=3),
}
"""A small member of each family."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = zoo.create("vgg11_bn", **SMALL)
    folder = tmp_path_factory.mktemp("model")
    zoo.save(model, folder)
    return model.eval(), folder


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
    with pytest.raises(ValueError, match=f"{name} takes {', '.join(taken)}, got classes=10"):
        on_meta(name, classes=10)
    for inner in ("depths", "block", "table", "norm"):
        with pytest.raises(ValueError, match=f"{name} takes .*, got {inner}=1"):
            on_meta(name, **{inner: 1})


def test_an_argument_that_is_left_out_is_named():
    with pytest.raises(ValueError, match=r"transformer_base: .*vocab_size"):
        zoo.create("transformer_base")


# ------------------------------------------------------------------------------------------------ what models know of themselves


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
    assert {name for name in IMAGES if "huggingface" in found[name]} == {
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
    tokens = torch.randint(1, 19, (2, 5))
    size = 75 if name == "inception_v3" else 32
    images = (torch.randn(2, model.in_channels, size, size),) if name in IMAGES else None
    inputs = images or ((tokens, tokens) if name.startswith("transformer") else (tokens,))
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


# ------------------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_member_of_each_family_comes_back(name, tmp_path):
    model = zoo.create(name, **FAMILIES[name])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    zoo.save(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(zoo.load(tmp_path), state)


def assert_same(loaded, state):
    assert not loaded.training
    assert loaded.state_dict().keys() == state.keys()
    for key, value in loaded.state_dict().items():
        assert value.dtype == state[key].dtype, key
        assert torch.equal(value, state[key]), key


def with_head(model):
    model.head.output = nn.Linear(64, 5)
    return model


def wrapped_stage(model):
    model.stages[1] = torch.compile(model.stages[1])
    return model


def trained(model):
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    return model


def compiled_in_place(model):
    model.compile()
    return model


def under_autocast(model):
    """As accelerate does it for mixed precision."""
    model._original_forward = model.forward
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(type(model).forward), model)
    return model


ACCEPTED = {
    "as it is": lambda m: m,
    "trained": trained,
    "frozen": lambda m: m.freeze(["stem"]) or m,
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "compiled": torch.compile,  # which compiles nothing before it is called
    "compiled in place": compiled_in_place,
    "a stage compiled": wrapped_stage,
    "data parallel": nn.DataParallel,
    "data parallel and compiled": lambda m: torch.compile(nn.DataParallel(m)),
    "float64": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "float16": lambda m: m.half(),
    "mixed precision": under_autocast,
    "synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "dropout set": lambda m: setattr(m.head.dropout, "p", 0.5) or m,
    "activations out of place": lambda m: [setattr(x, "inplace", False) for x in m.modules() if hasattr(x, "inplace")] and m,
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_save_accepts_load_gives_back_to_the_bit(kind, tmp_path):
    model = zoo.create("resnet20")
    changed = ACCEPTED[kind](model)
    state = {name.replace("_orig_mod.", ""): value.clone() for name, value in model.state_dict().items()}
    zoo.save(changed, tmp_path)
    loaded = zoo.load(tmp_path)
    assert_same(loaded, state)
    assert loaded.config == {"model": "resnet20", "arguments": {}}
    if kind in ("as it is", "bfloat16"):
        zoo.save(loaded, tmp_path)  # and once more
        assert_same(zoo.load(tmp_path), state)


def with_silu(model):
    model.stages[0][0].activation = nn.SiLU()
    return model


def tied(model):
    model.stages[0][0].body[0].conv.weight = model.stages[0][1].body[0].conv.weight
    return model


def tied_norm(model):
    model.stages[0][0].body[0].norm = model.stages[0][1].body[0].norm
    return model


def with_buffer(model, persistent):
    model.register_buffer("table", torch.ones(2), persistent)
    return model


def one_bfloat16(model):
    model.head.bfloat16()
    return model


def with_config(model, **config):
    model.config |= config
    return model


def quantised_like(model):
    model.head.output.weight = nn.Parameter(torch.ones(10, 64, dtype=torch.int8), requires_grad=False)
    return model


def sparse(model):
    model.head.output.weight = nn.Parameter(model.head.output.weight.detach().to_sparse())
    return model


REFUSED = {
    "another head": (with_head, r"tensors: head\.output\.bias, head\.output\.weight"),
    "parametrized": (lambda m: parametrizations.weight_norm(m.head.output) and m, r"head\.output\.parametrizations"),
    "weight norm of old": (lambda m: nn.utils.spectral_norm(m.head.output) and m, r"head\.output\.weight_orig"),
    "pruned": (lambda m: prune.l1_unstructured(m.head.output, "weight", 0.5) and m, r"head\.output\.weight_mask"),
    "folded": (fold_norms, r"stages\.0\.0\.body\.0\.norm"),
    "another activation": (with_silu, r"modules: stages\.0\.0\.activation"),
    "another stride": (lambda m: setattr(m.stem[0].conv, "stride", (2, 2)) or m, r"modules: stem\.0\.conv"),
    "another eps": (lambda m: setattr(m.stem[0].norm, "eps", 0.1) or m, r"modules: stem\.0\.norm"),
    "another forward": (lambda m: setattr(m.head, "forward", m.head.output.forward) or m, "modules: head"),
    "no statistics": (lambda m: setattr(m.stem[0], "norm", nn.BatchNorm2d(16, track_running_stats=False)) or m, r"stem\.0\.norm"),
    "tied": (tied, r"tensors of several names: stages\.0\.0\.body\.0\.conv\.weight"),
    "a shared norm": (tied_norm, r"tensors of several names: stages\.0\.0\.body\.0\.norm"),
    "a buffer": (lambda m: with_buffer(m, True), "tensors: table"),
    "a buffer that is not saved": (lambda m: with_buffer(m, False), "tensors: table"),
    "two dtypes": (one_bfloat16, r"dtypes.*head\.output\.\w+ torch\.bfloat16"),
    "another dtype": (lambda m: m.to(torch.float8_e5m2), r"dtypes.*float8_e5m2"),
    "integers": (quantised_like, r"tensors: head\.output\.weight"),
    "sparse": (sparse, r"dense tensors with values.*head\.output\.weight"),
    "without values": (lambda m: m.to("meta"), r"dense tensors with values"),
    "averaged": (torch.optim.swa_utils.AveragedModel, "a AveragedModel without a config"),
    "arguments of another": (lambda m: with_config(m, arguments={"num_classes": 3}), r"head\.output\.bias"),
    "a config that is no JSON": (lambda m: with_config(m, classes={1, 2}), "made of JSON values"),
    "an argument that is no JSON": (lambda m: zoo.create("resnet20", dropout=np.float32(0.5)), "made of JSON values"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Complex modules", "ignore:.*spectral_norm", "ignore:.*sparse")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_load_could_not_give_back_is_refused_before_anything_is_written(kind, tmp_path):
    change, message = REFUSED[kind]
    model = change(zoo.create("resnet20").eval())
    with pytest.raises(ValueError, match=message):
        zoo.save(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def changed(value):
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else (9, value)


def test_every_setting_of_every_class_of_modules_is_compared():
    """Those left out here do not change the outputs in eval mode."""
    tried = set()
    for name, arguments in FAMILIES.items():
        model, built = on_meta(name, **arguments), on_meta(name, **arguments)
        settings = {
            (type(module), attribute): (place, module)
            for place, module in model.named_modules()
            for attribute, value in vars(module).items()
            if isinstance(value, int | float | str | tuple) or inspect.isfunction(value)
            if attribute not in ("training", "momentum", "inplace", "dropout", "p", "frozen") and not attribute.startswith("_")
        }
        for kind, attribute in settings.keys() - tried:
            place, module = settings[kind, attribute]
            before = getattr(module, attribute)
            setattr(module, attribute, print if callable(before) else changed(before))
            assert saving.module_kind(module) != saving.module_kind(built.get_submodule(place)), (name, place, attribute)
            setattr(module, attribute, before)
        assert saving.differences(model, built) == []
        tried |= settings.keys()
    assert len(tried) > 70


@pytest.mark.parametrize(
    ("place", "attribute", "value"),
    [
        ("embedding", "scale", 1.0),
        ("decoder.0.attention.sublayer", "window", 1),
        ("decoder.0.attention.sublayer", "causal", False),
        ("encoder.0.attention.sublayer.positions", "base", 3.0),
        ("encoder.0.attention.sublayer.positions", "scaling", Llama3Scaling()),
    ],
)
def test_settings_that_change_the_logits_are_refused(place, attribute, value, tmp_path):
    model = zoo.create("transformer_small", **TEXT | dict(dim=16))
    setattr(model.get_submodule(place), attribute, value)
    with pytest.raises(ValueError, match=f"modules: {place}"):
        zoo.save(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_save_and_load_give_the_same_bits(saved):
    model, folder = saved
    images = torch.randn(2, 1, 32, 32)
    for path in (folder, folder / "model.safetensors"):
        loaded = zoo.load(path)
        assert not loaded.training
        assert loaded.config == model.config == {"model": "vgg11_bn", "arguments": SMALL}
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))


def test_the_default_dtype_is_no_matter(tmp_path):
    zoo.save(zoo.create("resnet20"), tmp_path)
    try:
        torch.set_default_dtype(torch.float64)
        assert zoo.load(tmp_path).head.output.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def filled(value):
    model = zoo.create("resnet20")
    nn.init.constant_(model.head.output.bias, value)
    return model


def test_a_folder_gives_what_was_saved_into_it_last(tmp_path):
    """A run leaves best.safetensors; whoever saves into its folder gets that, and the run's next best one comes after it."""
    for file, value, expected in (
        ("best.safetensors", 1.0, 1.0),
        ("epoch-3.safetensors", 2.0, 1.0),  # loaded by its path
        (None, 3.0, 3.0),
        ("epoch-4.safetensors", 4.0, 3.0),
        ("best.safetensors", 5.0, 5.0),
        ("model.safetensors", 6.0, 6.0),
    ):
        zoo.save(filled(value), tmp_path, file)
        assert zoo.load(tmp_path).head.output.bias[0] == expected
        assert zoo.create("resnet20", weights=tmp_path).head.output.bias[0] == expected
        assert zoo.load(tmp_path / (file or "model.safetensors")).head.output.bias[0] == value
    assert zoo.load(tmp_path).config == {"model": "resnet20", "arguments": {}}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"config\.json names model\.safetensors, which is not there"):
        zoo.load(tmp_path)
    for file in ("model.pth", "a/b.safetensors"):
        with pytest.raises(ValueError, match=r"file must be a name that ends in \.safetensors"):
            zoo.save(filled(0.0), tmp_path, file)


def test_a_training_checkpoint_gives_its_model(saved, tmp_path):
    model, folder = saved
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {"optimizer.x": torch.zeros(1)}
    files.write_tensors(tmp_path / "last.safetensors", tensors, {"format": files.TRAINING})
    files.write_json(tmp_path / "config.json", files.read_json(folder / "config.json"))
    assert torch.equal(zoo.load(tmp_path / "last.safetensors").head.output.weight, model.head.output.weight)


def test_extra_keys_of_the_config_stay(saved, tmp_path):
    model = zoo.load(saved[1])
    model.config["classes"] = ["a", "b", "c"]
    zoo.save(model, tmp_path)
    assert zoo.load(tmp_path).config["classes"] == ["a", "b", "c"]


def test_what_does_not_fit_is_refused(saved, tmp_path):
    model, _ = saved
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        zoo.load(tmp_path)
    zoo.save(model, tmp_path)
    other = {"model": "vgg13_bn", "arguments": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"another architecture or class count: .*missing: stages\.0\.convs\.1"):
        zoo.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": "vgg11_bn", "arguments": {**SMALL, "num_classes": 4}}))
    with pytest.raises(ValueError, match=r"class count: .*wrong shape: head\.output\.bias \(3,\) for \(4,\)"):
        zoo.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": "vgg11_bn", "arguments": SMALL, "dtype": "int8"}))
    with pytest.raises(ValueError, match=r"one of float32, float64, bfloat16, float16 as dtype, got 'int8'"):
        zoo.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="must give a 'model' and its 'arguments'"):
        zoo.load(tmp_path)
    with pytest.raises(ValueError, match="without a config"):
        zoo.save(torch.nn.Linear(1, 1), tmp_path)


def test_rooms_keep_their_old_names():
    from zoo import decoding, preprocess, sampling
    from zoo.generation import decoding as found

    assert decoding is found
    assert sys.modules["zoo.sampling"] is sampling
    assert preprocess.Preprocess is zoo.Preprocess


def test_importing_the_zoo_does_not_import_torchvision():
    program = "import sys, zoo; sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
