"""The models, by name: ``zoo.create("vgg16_bn", num_classes=10)``, ``zoo.save``, ``zoo.load``, ``zoo.optimize``.

A model that `create` built carries `model.config`, a JSON object with its name and arguments; `save` writes it too. Of a model
composed by hand, `save_state` and `load_state` keep the weights.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

import layers

if not layers.__file__ or Path(layers.__file__).resolve().parent.parent != Path(__file__).resolve().parent.parent:
    raise ImportError(f"zooproof's package 'layers' is hidden by {layers.__file__ or layers.__path__}: rename that one")

from layers.weights import WeightMap
from zoo import (
    autoencoder,
    bert,
    dit,
    fasttext,
    files,
    gan,
    gpt,
    inception,
    mobilenet,
    recurrent,
    resnet,
    seq2seq,
    transformer,
    unet,
    vgg,
)
from zoo.deployment.export import export
from zoo.deployment.optimize import optimize
from zoo.deployment.quantize import quantize, replace
from zoo.deployment.quantized_images import QuantizedImages, load_images
from zoo.generation import decoding, sampling
from zoo.model import DiffusionModel, EncoderDecoder, ImageModel, LanguageModel, Model, without_values
from zoo.parallel import tensor_parallel
from zoo.pretrained import containers, preprocess
from zoo.pretrained.huggingface import to_huggingface
from zoo.pretrained.load import Weights, find
from zoo.pretrained.load import create as create_with
from zoo.pretrained.preprocess import Preprocess
from zoo.saving import DTYPES, dense_state, plain, saved
from zoo.summaries import summary

for _room in (decoding, sampling, preprocess):  # their names before there were rooms: `zoo.sampling`
    sys.modules[f"zoo.{_room.__name__.rpartition('.')[2]}"] = _room

FAMILIES = (
    vgg, resnet, inception, mobilenet, transformer, gpt, bert, recurrent, fasttext, seq2seq, unet, dit, gan, autoencoder,
)  # fmt: skip
MODELS: dict[str, Callable[..., Model]] = {name: build for family in FAMILIES for name, build in family.VARIANTS.items()}


def names(kind: type[Model] = Model) -> tuple[str, ...]:
    """Every name that `create` knows, of models of a kind: `ImageModel`, `LanguageModel`, `EncoderDecoder`, `DiffusionModel`."""
    return tuple(name for name in MODELS if issubclass(kind_of(name), kind))


def kind_of(name: str) -> type[Model]:
    """The class of a model, which the function that builds it returns."""
    build = MODELS[name]
    return typing.get_type_hints(getattr(build, "func", build)).get("return", Model)


def arguments(name: str) -> dict[str, Any]:
    """The arguments that a model takes, and their defaults, `zoo.REQUIRED` for those without one.

    Errors: `ValueError` for an unknown name, with the nearest one.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}, did you mean {near!r}?")
    return {p.name: REQUIRED if p.default is p.empty else p.default for p in inspect.signature(MODELS[name]).parameters.values()}


REQUIRED = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()


def create(name: str, *, weights: str | Path | Weights | None = None, **arguments: Any) -> Model:
    """Build a model by name; arguments are those that `zoo.arguments` lists, all of them JSON values.

    weights: None for new ones, a file, a folder of Hugging Face's, or what torchvision or timm publish, as `zoo.pretrained.load`
             says. The model then has the arguments that they were trained with, where they tell them and none are given, new
             output layers for another `num_classes` or head, and knows its `preprocess`.
    Errors: `ValueError` for an unknown name, with the nearest one, for an argument that the model does not take or accept, and
            for weights that cannot be had or do not fit.
    """
    if weights is None:
        return build(name, **arguments)
    if not isinstance(weights, str | Path | Weights):
        raise ValueError(f"weights must be a file, hf:PATH, gguf:FILE, torchvision:NAME or timm:NAME, got {weights!r}")
    require_arguments(name, arguments)
    found = weights if isinstance(weights, Weights) else find(name, str(weights))
    return create_with(build, name, found, arguments)


def build(name: str, **arguments: Any) -> Model:
    """A model without weights of others."""
    require_arguments(name, arguments)
    try:
        model = MODELS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {str(error).split('() ')[-1]}, got {arguments}") from error
    model.config = {"model": name, "arguments": arguments}
    return model


def build_as(config: Mapping[str, Any]) -> Model:
    """The model of a config, without the weights, quantized if that is."""
    model = build(config["model"], **config["arguments"])
    if "quantized" in config:
        replace(model, config["quantized"])
    return model


def require_arguments(name: str, given: Mapping[str, Any]) -> None:
    known = arguments(name)
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"{name} takes {', '.join(known)}, got {', '.join(f'{k}={given[k]!r}' for k in unknown)}")


def save(model: nn.Module, folder: str | Path, file: str | None = None) -> None:
    """Write `folder/config.json` and the state to `folder/file`, each of them whole or not at all.

    file: "model.safetensors" by default. ``load(folder)`` gives what was last saved under this name or "best.safetensors"; under
          another name, load it by its path.
    What torch.compile or DataParallel has wrapped is saved as the model within, and what LoRA has learnt is merged. Nothing is
    written unless `load` will give the model back, in its dtype.
    Errors: `ValueError` for a model that `create` would not build as it is now: composed or changed by hand, pruned,
            parametrized, folded, without values.
    """
    file = file or files.MODEL
    if not file.endswith(".safetensors") or Path(file).name != file:
        raise ValueError(f"file must be a name that ends in .safetensors, got {file!r}")
    config, state = model.saved() if isinstance(model, QuantizedImages) else saved(model, build_as)
    last = file if file in (files.MODEL, files.BEST) else files.saved_file(Path(folder))
    config |= {"file": last} if last == files.MODEL and (Path(folder) / files.BEST).exists() else {}
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_tensors(Path(folder) / file, state)
    files.write_json(Path(folder) / "config.json", config)


def save_state(model: nn.Module, path: str | Path) -> None:
    """Write the weights of any model to a .safetensors file, for `load_state` into one composed in the same way.

    Errors: `ValueError` for another ending, or for what such a file cannot hold: tensors without values, or objects.
    """
    if not str(path).endswith(".safetensors"):
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    files.write_tensors(path, dense_state(plain(model)))


def load(path: str | Path) -> Any:
    """Rebuild a model in eval mode, in the dtype that it had, from a folder that `save` or a run left, or one of its files.

    Errors: `ValueError` that names the file and what is wrong: missing, damaged, a pickle, another architecture.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = files.read_json(folder / "config.json")
    if not isinstance(config.get("model"), str) or not isinstance(config.get("arguments"), dict):
        raise ValueError(f"{folder / 'config.json'} must give a 'model' and its 'arguments', got {config}")
    config.pop("file", None)
    dtype = config.pop("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"{folder / 'config.json'} must give one of {', '.join(DTYPES)} as dtype, got {dtype!r}")
    if config.get("quantized") == "static":
        return load_images(lambda: build(config["model"], **config["arguments"]), config, path)
    with without_values():
        model = build_as(config).to(DTYPES[dtype])
    load_state(model, path)
    model.config = config
    return model.eval()


def load_state(model: nn.Module, path: str | Path) -> None:
    """Put the tensors of a file into the model, one after another; nothing is changed unless every name, shape and dtype fits.

    What the model has on the meta device gets memory of its own. Prefixes that all names share, such as torch.compile's, are
    taken off where the model's names lack them.
    """
    model, tensors = plain(model), files.read_state(path)
    try:
        WeightMap(("", "")).load(model, containers.fitting(tensors, model.state_dict().keys()))
    except ValueError as error:
        raise ValueError(f"{path} holds another architecture or class count: {error}") from error


__all__ = [
    "DiffusionModel", "EncoderDecoder", "ImageModel", "LanguageModel", "Model", "Preprocess", "Weights", "arguments", "create",
    "export", "kind_of", "load", "load_state", "names", "optimize", "quantize", "save", "save_state", "summary",
    "tensor_parallel", "to_huggingface",
]  # fmt: skip
