"""What `zoo.save` accepts `zoo.load` gives back to the bit; all else is refused before anything is written."""

from __future__ import annotations

import inspect
import json
from types import MethodType

import numpy as np
import pytest
import torch
from small_models import FAMILIES, SMALL, TEXT, inputs_of, on_meta
from torch import nn
from torch.nn.utils import parametrizations, prune

import zoo
from layers.convolution import fold_norms
from layers.rotary_scaling import Llama3Scaling
from zoo import files, saving


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = zoo.create("vgg11_bn", **SMALL)
    folder = tmp_path_factory.mktemp("model")
    zoo.save(model, folder)
    return model.eval(), folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_member_of_each_family_comes_back(name, tmp_path):
    model = zoo.create(name, **FAMILIES[name])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    zoo.save(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    inputs = inputs_of(name, model)
    for loaded in (zoo.load(tmp_path), zoo.create(name, weights=tmp_path).eval()):
        assert_same(loaded, state)
        assert all(p.requires_grad for p in loaded.parameters())
        with torch.no_grad():
            assert torch.equal(loaded(*inputs), model.eval()(*inputs))  # and nothing is left on the meta device


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
