"""Weights that somebody has trained: what torchvision or timm publish, or a file. ``zoo.create(name, weights=...)`` loads them.

    "hf:path/to/folder"             a folder or file in the names of Hugging Face's transformers, in one file or in shards
    "gguf:path/to/model.gguf"       a Llama in a file of llama.cpp's, quantised or not
    "torchvision:IMAGENET1K_V2"     a name out of `torchvision.models.get_model_weights`, or DEFAULT
    "timm:resnet50.a1_in1k"         a name out of `timm.list_pretrained()`
    "path/to/resnet50-11ad3fa6.pth" a file (.safetensors, or a state dict of `torch.save`) or folder, in our names or theirs
    "checkpoint.pth#model_ema"      one of several states in a checkpoint, or the tensors whose names begin so

Prefixes such as `module.` and `_orig_mod.` are taken off, and the state is found within a checkpoint. Weights go in through the
model's weight map, which finds every name that does not fit. What comes by timm's name is tried out too, for two of its nets may
share all names and shapes and compute different things. Another `num_classes` gets new output layers, and so does another head of
a model of tokens. The arguments of the model are those of a config.json beside the weights, ours or one that `huggingface` reads,
where they are not given.

A model is built without memory; then the tensors of safetensors files are read into it one after another. So loading takes
little more memory than the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layers.weights import Source, Stored, WeightMap, headers
from zoo import files
from zoo.files import first_line
from zoo.model import ImageModel, Model, without_values
from zoo.pretrained import containers
from zoo.pretrained.architecture import made_by
from zoo.pretrained.preprocess import Preprocess

Build = Callable[..., Any]


@dataclass
class Weights:
    """What `find` has found."""

    source: str
    tensors: Source
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the model that they were trained in, by name, where they are not the default ones."""
    about: dict[str, Any] = field(default_factory=dict)
    """For the model's config: "preprocess", a `Preprocess` as JSON, and "classes", names in the order of the logits."""
    naming: str | None = None
    """A reference in the model's `maps`, or None for a file, whose names tell."""
    reference: nn.Module | None = None
    """Their model, where loading its weights must give its outputs."""


def find(name: str, source: str) -> Weights:
    """Fetch or read the weights that `source` stands for; `name` is the model's.

    Errors: `ValueError` that says what is not there, could not be fetched, or is damaged.
    """
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        return of_torchvision(name, source, rest)
    if kind == "timm":
        return of_timm(name, source, rest)
    if kind == "gguf":
        return of_gguf(name, source, rest)
    if kind == "hf":
        return replace(of_file(name, rest), source=source, naming="huggingface")
    return of_file(name, source)


def published(name: str) -> dict[str, Any]:
    """torchvision's weights of a model by their names, those of whole classifiers."""
    from torchvision import models

    entries = models.get_model_weights(name).__members__ if name in models.list_models() else {}
    return {key: entry for key, entry in entries.items() if entry.meta.get("categories")}


def described(entry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and `about` of one of torchvision's weights."""
    preset = entry.transforms()
    preprocess = Preprocess(preset.crop_size[0], preset.mean, preset.std, preset.resize_size[0], str(preset.interpolation.value))
    inception = entry.url.rpartition("/")[2].startswith(("inception", "googlenet"))
    about = {"preprocess": preprocess.config(), "classes": list(entry.meta["categories"])}
    return {"transform_input": True} if inception else {}, about


def of_torchvision(name: str, source: str, entry_name: str) -> Weights:
    entries = published(name)
    if not entries:
        raise ValueError(f"weights must be a file for {name}, which torchvision has no weights of, got {source!r}")
    entries["DEFAULT"] = next(iter(reversed(entries.values())))
    if entry_name not in entries:
        raise ValueError(f"weights must be torchvision: and one of {', '.join(entries)} for {name}, got {source!r}")
    entry = entries[entry_name]
    try:
        tensors = entry.get_state_dict(progress=False, check_hash=True)
    except files.UNREADABLE as error:
        file = entry.url.rpartition("/")[2]
        if (kept := Path(torch.hub.get_dir()) / "checkpoints" / file).exists():
            raise ValueError(f"{kept}, fetched before, is damaged ({first_line(error)}): delete it") from error
        raise ValueError(
            f"weights {source!r} could not be fetched from {entry.url} ({first_line(error)}): fetch that file where there is a "
            f"network, and give its path, weights='{file}'"
        ) from error
    arguments, about = described(entry)
    return Weights(source, tensors, arguments, about, "torchvision")


def of_timm(name: str, source: str, timm_name: str) -> Weights:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"weights {source!r} need the package timm: pip install timm") from error
    if not timm.is_model(timm_name.partition(".")[0]):
        raise ValueError(f"weights must be timm: and a name of timm's, as in timm.list_pretrained(), got {source!r}")
    try:
        reference = timm.create_model(timm_name, pretrained=True).eval()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights {source!r} could not be fetched ({first_line(error)}): fetch model.safetensors of timm/{timm_name} from "
            f"the Hugging Face hub where there is a network, and give its path"
        ) from error
    found: dict[str, Any] = timm.data.resolve_model_data_config(reference)
    size = found["input_size"][-1]
    preprocess = Preprocess(size, found["mean"], found["std"], int(size / found["crop_pct"]), found["interpolation"])
    about: dict[str, Any] = {"preprocess": preprocess.config()}
    if subset := timm.data.infer_imagenet_subset(reference):
        about["classes"] = timm.data.ImageNetInfo(subset).label_descriptions()
    return Weights(source, reference.state_dict(), {}, about, "timm", reference)


def of_gguf(name: str, source: str, path: str) -> Weights:
    import zoo
    from zoo import gpt
    from zoo.pretrained import gguf_files

    if made_by(zoo.MODELS[name])[0] is not gpt.llama:
        raise ValueError(f"weights {source!r} are for Llamas, such as smollm2_135m, not for {name}")
    return Weights(source, *gguf_files.read(path), naming="huggingface")


def of_file(name: str, source: str) -> Weights:
    where, _, key = source.rpartition("#") if "#" in source and not Path(source).exists() else (source, "", "")
    path = files.weights_file(where)
    if path.suffix in files.PICKLES:
        entry = next((e for e in published(name).values() if e.url.endswith(f"/{path.name}")), None)
        if entry is not None:
            require_hash(path)
            return Weights(source, containers.read_pickle(path), *described(entry), "torchvision")
        tensors = containers.read_pickle(path, key)
    else:
        tensors = stored_tensors(path, key)
    config = files.read_json(path.parent / "config.json") if (path.parent / "config.json").exists() else {}
    names, arguments, classes = trained_as(config, path.parent) or ([name], {}, {})
    if name not in names:
        raise ValueError(f"{path} holds weights of another architecture, {', '.join(names)}, not of {name}")
    about = {key: config[key] for key in ("preprocess", "classes") if key in config} | classes
    return Weights(source, tensors, arguments, about)


def stored_tensors(path: Path, key: str) -> Source:
    """Tensors, still in their file or shards unless these are pickles; only those whose names begin with `key`."""
    tensors = files.read_tensors(path, containers.read_any) if path.suffix == ".json" else files.read_state(path)
    if key:
        whole, tensors = tensors, containers.beginning_with(key, tensors)
        if not tensors:
            raise ValueError(f"{path} holds no tensor whose name begins with {key!r}: {containers.found_names(whole)}")
    return tensors


def trained_as(config: Mapping[str, Any], folder: Path) -> tuple[list[str], dict[str, Any], dict[str, Any]] | None:
    """Names that fit, arguments, and "classes", of a config.json, ours or Hugging Face's; None where it does not tell them."""
    import zoo
    from zoo.pretrained import huggingface

    if isinstance(config.get("model"), str) and isinstance(config.get("arguments"), dict):
        return [config["model"]], config["arguments"], {}
    try:
        found, classes = huggingface.read(config), huggingface.classes_of(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if found is None:
        return None
    build, arguments = found
    names = [name for name, made in zoo.MODELS.items() if made_by(made) == made_by(build)]
    return names, arguments, {"classes": classes} if classes else {}


def require_hash(path: Path) -> None:
    """torchvision's files have the beginning of their SHA-256 in their names."""
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise ValueError(f"{path} is damaged: its SHA-256 begins with {digest[: len(expected)]}, its name says {expected}")


# ------------------------------------------------------------------------------------------------------------------- loading


def create(build: Build, name: str, weights: Weights, arguments: dict[str, Any]) -> Any:
    """The model with these weights; `build(name, **arguments)` makes one without.

    Errors: `ValueError` that lists what does not fit.
    """
    given, arguments = arguments, {k: v for k, v in weights.arguments.items() if k != "num_classes"} | arguments
    bare = on_meta(build, name, arguments)
    if hasattr(bare, "head") and not isinstance(bare, ImageModel):
        return with_head(build, name, weights, given)
    tensors, naming = fitting(bare, weights)
    trained_in, about = dict(arguments), dict(weights.about)
    if isinstance(bare, ImageModel):
        classes, auxiliary = heads(bare, naming, tensors, weights.source)
        trained_in |= {"num_classes": classes}
        if bare.auxiliary or "auxiliary" in arguments:
            trained_in |= {"auxiliary": auxiliary}
        arguments = trained_in | arguments
        if arguments["num_classes"] != classes:
            about.pop("classes", None)
    model = on_meta(build, name, trained_in)
    mapping = maps_of(model)[naming]
    counters = {f"{k.rpartition('.')[0]}.num_batches_tracked" for k in tensors if k.endswith(".running_mean")}
    tensors |= {k: torch.tensor(0) for k in counters - tensors.keys()}  # torch has them since 0.4.1
    new = {} if trained_in == arguments else new_entries(build(name, **arguments), model)
    try:
        mapping.load(model, tensors)
    except ValueError as error:
        raise ValueError(f"weights {weights.source!r} do not fit {name}: {error}") from error
    if weights.reference is not None:
        require_same(model, weights)
    if trained_in != arguments:
        state, model = model.state_dict(), on_meta(build, name, arguments)
        model.load_state_dict({key: new.get(key, state.get(key)) for key in model.state_dict()}, assign=True)
    model.config |= about
    return model


def on_meta(build: Build, name: str, arguments: Mapping[str, Any]) -> Any:
    with without_values():
        return build(name, **arguments)


def heads(model: ImageModel, naming: str, tensors: Source, source: str) -> tuple[int, bool]:
    """The number of classes that the weights are for, and whether they have auxiliary heads."""
    layer = f"{model.output_layers[0]}.weight"
    output = maps_of(model)[naming].to_ours(headers(tensors), strict=False).get(layer)
    if output is None:
        lacking = f"no name of theirs stands for {layer}"
        raise ValueError(f"weights {source!r} do not fit {model.config['model']}: {lacking}; {containers.found_names(tensors)}")
    return len(output), any(key.startswith("auxiliary.") or "aux" in key.lower() for key in tensors)


def with_head(build: Build, name: str, weights: Weights, given: dict[str, Any]) -> Any:
    """A model of tokens, whose head may be another than that of the weights.

    All but the head must be there. A head with an output layer takes what there is of it; the rest of it is new, and so is an
    output layer for another number of classes.
    """
    head = weights.arguments.get("head")
    other = given.get("head", head) != head
    arguments = {k: v for k, v in weights.arguments.items() if not (other and k == "num_classes")} | given
    bare = on_meta(build, name, arguments)
    tensors, naming = fitting(bare, weights)
    tensors = {k: x.read() if isinstance(x, Stored) else x for k, x in tensors.items()}
    if other and "head" in weights.arguments:  # the same name may be another thing in it
        was = on_meta(build, name, weights.arguments)
        heads = {k: x for k, x in was.state_dict().items() if k.startswith(was.output_layers)} if was.output_layers else {}
        theirs = maps_of(was)[naming].to_theirs(heads, strict=False)
        tensors = {k: v for k, v in tensors.items() if not k.startswith("head.") and k not in theirs}
    outputs = {f"{layer}.{kind}" for layer in bare.output_layers for kind in ("weight", "bias")}
    try:
        found = maps_of(bare)[naming].to_ours(tensors, like=bare.state_dict())
        count = next((len(found[key]) for key in outputs & found.keys()), None)
        if len(weights.about.get("classes", ())) not in (0, count or 0) and outputs & found.keys():
            raise ValueError(f"their classes are {len(weights.about['classes'])}, and the output layer has {count}")
        if count not in (None, *(len(bare.state_dict()[key]) for key in outputs)):
            arguments = {"num_classes": count} | arguments
        model = build(name, **arguments)
        state = model.state_dict()
        may_lack = bool(outputs) and (other or "head" not in weights.arguments)
        new = {k: x for k, x in state.items() if may_lack and k.startswith("head.") and k not in found}
        new |= {k: state[k] for k in outputs & found.keys() if found[k].shape != state[k].shape}
        WeightMap(("", "")).load(model, found | new)
    except ValueError as error:
        raise ValueError(f"weights {weights.source!r} do not fit {name}: {error}") from error
    model.config |= {k: v for k, v in weights.about.items() if k != "classes" or not outputs & new.keys()}
    return model


def maps_of(model: Model) -> dict[str, WeightMap]:
    """The model's maps, and under "" that of its own names."""
    return {"": WeightMap(("", "")), **model.maps}


def fitting(model: Model, weights: Weights) -> tuple[dict[str, Tensor | Stored], str]:
    """The tensors without prefixes of wrappers, and the naming, the weights' or any, that knows most of their names."""
    state, best = model.state_dict().keys(), -1
    maps = maps_of(model)
    if weights.naming:  # and what begins so, such as the names in files where they differ
        maps = {weights.naming: model.maps[weights.naming]} | {k: x for k, x in maps.items() if k.startswith(weights.naming)}
    found = dict(weights.tensors), ""
    for tensors in containers.unwrapped(weights.tensors):
        for naming, mapping in maps.items():
            adapted = model.adapted(tensors, naming)
            known = len(mapping.to_ours(headers(adapted), strict=False).keys() & state)
            if known > best:
                found, best = (adapted, naming), known
            if known == len(state):
                return found
    return found


def new_entries(model: Model, trained: Model) -> dict[str, Tensor]:
    """What the trained one lacks or has of another size: output layers."""
    known = {key: x.shape for key, x in trained.state_dict().items()}
    return {key: x for key, x in model.state_dict().items() if known.get(key) != x.shape}


def require_same(model: ImageModel, weights: Weights) -> None:
    """Errors: `ValueError` if the reference gives other logits for an image of noise."""
    size = max(64, model.smallest_image)
    images = torch.rand(2, model.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    training = model.training
    with torch.inference_mode():
        ours, theirs = model.eval()(images), weights.reference(images)  # type: ignore[misc]
    model.train(training)
    error = ((ours - theirs).square().mean() / theirs.square().mean()).sqrt().item()
    if not error < 1e-4:
        raise ValueError(
            f"weights {weights.source!r} are of another architecture: all names fit, and logits differ by {error:.1%}"
        )
