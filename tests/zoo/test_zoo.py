from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import zoo
from zoo import files

SMALL = dict(head="small", num_classes=3, in_channels=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = zoo.create("vgg11_bn", **SMALL)
    folder = tmp_path_factory.mktemp("model")
    zoo.save(model, folder)
    return model.eval(), folder


def test_names_can_all_be_created_on_meta():
    with torch.device("meta"):
        for name in zoo.names():
            sizes = {"vocab_size": 9} if name.startswith("transformer") else {}
            assert isinstance(zoo.create(name, **sizes), torch.nn.Module)
    assert len(zoo.names()) == len(set(zoo.names())) == 32


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"got 'vgg16bn', did you mean 'vgg16_bn'\?"):
        zoo.create("vgg16bn")


def test_an_unknown_argument_is_named():
    with pytest.raises(ValueError, match="classes"):
        zoo.create("vgg11", classes=10)


def test_save_and_load_give_the_same_bits(saved):
    model, folder = saved
    images = torch.randn(2, 1, 32, 32)
    for path in (folder, folder / "model.safetensors"):
        loaded = zoo.load(path)
        assert not loaded.training
        assert loaded.config == model.config == {"model": "vgg11_bn", "arguments": SMALL}
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))


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
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="must give a 'model' and its 'arguments'"):
        zoo.load(tmp_path)
    with pytest.raises(ValueError, match="without a config"):
        zoo.save(torch.nn.Linear(1, 1), tmp_path)


def test_importing_the_zoo_does_not_import_torchvision():
    program = "import sys, zoo; sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
