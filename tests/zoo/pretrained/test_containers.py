"""One state in every usual wrapping, through every way to load it: the same weights, or an error that says what was found."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import zoo
from zoo import files
from zoo.pretrained import containers, load

NAME, ARGUMENTS = "mobilenet_v1", {"num_classes": 3, "width": 0.1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = zoo.create(NAME, **ARGUMENTS)
    for value in model.buffers():
        value.random_(1, 9)
    return model.eval()


@pytest.fixture(scope="module")
def states(model):
    """The same weights in our names and in theirs."""
    return {"ours": model.state_dict()} | {naming: mapping.export(model) for naming, mapping in model.maps.items()}


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


PREFIXES = {
    "bare": prefixed(""),
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "model.": prefixed("model."),
    "backbone.": prefixed("backbone."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "model._orig_mod.module.": prefixed("model._orig_mod.module."),
    "fsdp": prefixed("_fsdp_wrapped_module."),
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7)} | prefixed("module.")(state),
    "a stage compiled": lambda state: {name.replace(".0.", ".0._orig_mod.", 1): value for name, value in state.items()},
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
OTHERS = {"epoch": 3, "best": 0.5, "lr_scheduler": {"last_epoch": 3}, "optimizer": OPTIMIZER}
CHECKPOINTS = {
    **{key: lambda state, key=key: {key: state} for key in containers.STATES + containers.AVERAGES},
    **{f"{key} and others": lambda state, key=key: OTHERS | {key: state} for key in ("model", "state_dict", "state_dict_ema")},
    "Namespace": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("x")), "epoch": 3},
    "numpy": lambda state: {"model": state, "best": np.float64(0.5), "step": np.int64(3), "curve": np.ones(3)},
    "OrderedDict": lambda state: {"state_dict": OrderedDict(state), "arch": "mobilenet", "version": (1, 2)},
    "two deep": lambda state: {"model": {"state_dict": state}, "epoch": 3},
    "an unusual key": lambda state: {"classifier_of_ours": state, "epoch": 3},
}


def assert_same(found, model):
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


FILES = ("x.pth", "x.safetensors", "x.safetensors.index.json", "x.bin.index.json")
NAMINGS = ("ours", "timm", "huggingface")
WAYS = {(naming, "model._orig_mod.module.", file) for naming in NAMINGS for file in FILES} | {
    (naming, prefix, FILES[(n + m) % len(FILES)]) for n, naming in enumerate(NAMINGS) for m, prefix in enumerate(PREFIXES)
}


@pytest.mark.parametrize(("naming", "prefix", "file"), sorted(WAYS))
def test_prefixes(model, states, tmp_path, naming, prefix, file):
    """In a pickle, a safetensors file and an index of shards, of either kind; by `create` and by `find`, which --init uses.

    Every naming with every prefix and with every file.
    """
    state = PREFIXES[prefix](states[naming])
    names = sorted(state)
    halves = [{k: state[k] for k in names[::2]}, {k: state[k] for k in names[1::2]}]
    torch.save(state, tmp_path / "x.pth")
    files.write_tensors(tmp_path / "x.safetensors", state)
    for part, half in enumerate(halves):
        files.write_tensors(tmp_path / f"x-{part}.safetensors", half)
        torch.save(half, tmp_path / f"x-{part}.bin")
    for ending in ("safetensors", "bin"):
        index = {"weight_map": {name: f"x-{part}.{ending}" for part, half in enumerate(halves) for name in half}}
        (tmp_path / f"x.{ending}.index.json").write_text(json.dumps(index))
    found = load.find(NAME, str(tmp_path / file)) if file == "x.safetensors" else tmp_path / file
    assert_same(zoo.create(NAME, weights=found, width=0.1), model)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_what_load_and_load_state_read(model, states, tmp_path, prefix):
    files.write_tensors(tmp_path / "model.safetensors", PREFIXES[prefix](states["ours"]))
    files.write_json(tmp_path / "config.json", model.config)
    loaded = zoo.load(tmp_path / "model.safetensors" if "." in prefix else tmp_path)
    assert_same(loaded, model)
    for wrap in (torch.compile, nn.DataParallel):
        for value in loaded.state_dict().values():
            value.zero_()
        zoo.load_state(wrap(loaded), tmp_path)
        assert_same(loaded, model)


@pytest.mark.parametrize(
    ("kind", "prefix", "old"),
    [(kind, "bare", False) for kind in CHECKPOINTS]
    + [("model", "module._orig_mod.", False), ("state_dict_ema", "AveragedModel", False), ("state_dict", "module.", True)],
)
def test_checkpoints(model, states, tmp_path, kind, prefix, old):
    """Also as torch before 1.6 wrote files, and without the counters that torch has since 0.4.1."""
    state = PREFIXES[prefix](states["timm"])
    if old:
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(CHECKPOINTS[kind](state), tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    if kind in containers.STATES + containers.AVERAGES and prefix == "bare":  # what `create` goes on with
        found = load.find(NAME, str(tmp_path / "x.pth")).tensors
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
        return
    found = zoo.create(NAME, weights=tmp_path / "x.pth", width=0.1)
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], 0 * value if old and "num_batches" in key else value), key


def test_one_of_several_states_is_chosen(model, states, tmp_path):
    other = {k: torch.zeros_like(v) for k, v in states["timm"].items()}
    both = {"model": other, "model_ema": PREFIXES["AveragedModel"](states["timm"]), "epoch": 3}
    torch.save(both, path := tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds several states, model, model_ema: choose one, \S+x\.pth#model$"):
        zoo.create(NAME, weights=path, width=0.1)
    assert_same(zoo.create(NAME, weights=f"{path}#model_ema", width=0.1), model)
    assert not zoo.create(NAME, weights=f"{path}#model", width=0.1).head.output.weight.any()
    with pytest.raises(ValueError, match=r"holds several states|no state under 'teacher'"):
        zoo.create(NAME, weights=f"{path}#teacher", width=0.1)
    torch.save({"model": other}, path)
    with pytest.raises(ValueError, match="holds no state under 'teacher', but under model"):
        zoo.create(NAME, weights=f"{path}#teacher", width=0.1)
    flat = prefixed("student.")(other) | prefixed("teacher.")(states["ours"])
    files.write_tensors(path := tmp_path / "x.safetensors", flat)
    with pytest.raises(ValueError, match=r"names begin with 'student' \(\d+\), 'teacher' \(\d+\), such as student\.\w+"):
        zoo.create(NAME, weights=path, width=0.1)
    assert_same(zoo.create(NAME, weights=f"{path}#teacher", width=0.1), model)
    with pytest.raises(ValueError, match=r"no tensor whose name begins with 'ema': its \d+ names begin with 'student'"):
        zoo.create(NAME, weights=f"{path}#ema", width=0.1)


@pytest.mark.parametrize("wrap", [lambda flat: flat, lambda flat: {"state_dict": flat, "epoch": 3}])
def test_the_tensors_of_a_prefix_are_chosen_in_a_pickle_too(model, states, tmp_path, wrap):
    """As Lightning keeps a model and its average."""
    flat = prefixed("model.")({k: torch.zeros_like(v) for k, v in states["ours"].items()}) | prefixed("ema.net.")(states["timm"])
    torch.save(wrap(flat), path := tmp_path / "x.ckpt")
    assert_same(zoo.create(NAME, weights=f"{path}#ema", width=0.1), model)
    assert load.find(NAME, f"{path}#ema.net").tensors.keys() == states["timm"].keys()
    assert load.find(NAME, f"{path}#model").tensors.keys() == states["ours"].keys()
    with pytest.raises(ValueError, match="holds no state under 'teacher'"):
        zoo.create(NAME, weights=f"{path}#teacher", width=0.1)


def test_a_name_with_a_hash_sign_is_a_name(model, states, tmp_path):
    torch.save(states["timm"], tmp_path / "x#1.pth")
    assert_same(zoo.create(NAME, weights=tmp_path / "x#1.pth", width=0.1), model)


class Custom:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": nn.Linear(2, 2)}, r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear, which is not read\)"),
        ({"model": {}, "custom": Custom()}, r"more than tensors \(\S*Custom, which is not read\)"),
        ({"args": argparse.Namespace(model=Custom())}, r"Custom, which is not read"),
        ({"epoch": 3, "model": "resnet18"}, "got a dictionary with the keys 'epoch', 'model'"),
        ({"model": {"weights": [1, 2]}}, "got a dictionary with the keys 'model'"),
        ({}, "got a dictionary with the keys none"),
        ([torch.ones(2)], "got a list"),
        ({"model": {"conv.weight": torch.ones(2)}}, r"stands for head\.output\.weight; its 1 names begin with 'conv'"),
    ],
)  # fmt: skip
def test_what_else_is_found_is_said(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        zoo.create("resnet20", weights=tmp_path / "x.pth")


def test_torchvisions_reference_script(tmp_path):
    """As its references/classification/train.py writes them, average included."""
    theirs = torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.1)
    average = torch.optim.swa_utils.AveragedModel(theirs)
    args = argparse.Namespace(data_path="/data", model="mobilenet_v2", lr=0.1, weights=None)
    content = {
        "model": theirs.state_dict(),
        "optimizer": {},
        "lr_scheduler": {},
        "epoch": 1,
        "args": args,
        "model_ema": average.state_dict(),
    }
    torch.save(content, tmp_path / "model_1.pth")
    for key in ("model", "model_ema"):
        found = zoo.create("mobilenet_v2", weights=f"{tmp_path}/model_1.pth#{key}", width=0.1)
        assert torch.equal(found.head.output.weight, theirs.classifier[1].weight)
