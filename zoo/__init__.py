"""The models, by name: ``zoo.create("vgg16_bn", num_classes=10)``, ``zoo.save``, ``zoo.load``, ``zoo.optimize``.

A model that `create` built carries `model.config`, a JSON object with its name and arguments; `save` writes it too.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import layers

if not layers.__file__ or Path(layers.__file__).resolve().parent.parent != Path(__file__).resolve().parent.parent:
    raise ImportError(f"zooproof's package 'layers' is hidden by {layers.__file__ or layers.__path__}: rename that one")

from layers.weights import WeightMap
from zoo import files, inception, mobilenet, resnet, transformer, vgg
from zoo.deployment.optimize import optimize
from zoo.generation import decoding, sampling
from zoo.model import ImageModel, Model
from zoo.pretrained import preprocess
from zoo.pretrained.load import Weights, find
from zoo.pretrained.load import create as create_with
from zoo.pretrained.preprocess import Preprocess

for _room in (decoding, sampling, preprocess):  # under their names of before there were rooms: `zoo.sampling`
    sys.modules[f"zoo.{_room.__name__.rpartition('.')[2]}"] = _room

FAMILIES = (vgg, resnet, inception, mobilenet, transformer)
MODELS: dict[str, Callable[..., Model]] = {f.__name__: f for family in FAMILIES for f in family.VARIANTS}


def names() -> tuple[str, ...]:
    """Every name that `create` knows."""
    return tuple(MODELS)


def create(name: str, *, weights: str | Path | Weights | None = None, **arguments: Any) -> Model:
    """Build a model by name; arguments are those of its function, all of them JSON values.

    weights: None for new ones, a file, or what torchvision or timm publish, as `zoo.pretrained.load` says. The model then has the
             arguments that they were trained with, where none are given, new output layers for another `num_classes`, and
             knows its `preprocess`.
    Errors: `ValueError` for an unknown name, with the nearest one, for an argument that the model does not take or accept, and
            for weights that cannot be had or do not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}, did you mean {near!r}?")
    if weights is None:
        return build(name, **arguments)
    if not isinstance(weights, str | Path | Weights):
        raise ValueError(f"weights must be a file, torchvision:NAME or timm:NAME, got {weights!r}")
    found = weights if isinstance(weights, Weights) else find(name, str(weights))
    return create_with(build, name, found, arguments)


def build(name: str, **arguments: Any) -> Model:
    """A model of a known name, without weights of others."""
    try:
        inspect.signature(MODELS[name]).bind(**arguments)
        model = MODELS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {str(error).split('() ')[-1]}, got {arguments}") from error
    model.config = {"model": name, "arguments": arguments}
    return model


def save(model: nn.Module, folder: str | Path, file: str = "model.safetensors") -> None:
    """Write `folder/config.json` and the state to `folder/file`, each of them whole or not at all."""
    if not isinstance(config := getattr(model, "config", None), dict):
        raise ValueError(f"model must come from zoo.create or zoo.load, got a {type(model).__name__} without a config")
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_tensors(Path(folder) / file, model.state_dict())
    files.write_json(Path(folder) / "config.json", config)


def load(path: str | Path) -> Model:
    """Rebuild a model in eval mode from a folder (config.json with best.safetensors or model.safetensors) or one of its files.

    Errors: `ValueError` that names the file and what is wrong: missing, damaged, a pickle, another architecture.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = files.read_json(folder / "config.json")
    if not isinstance(config.get("model"), str) or not isinstance(config.get("arguments"), dict):
        raise ValueError(f"{folder / 'config.json'} must give a 'model' and its 'arguments', got {config}")
    model = create(config["model"], **config["arguments"])
    load_state(model, path)
    model.config = config
    return model.eval()


def load_state(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a file into the model; nothing is changed unless every name, shape and dtype fits."""
    tensors = files.read_state(path)
    try:
        WeightMap(("", "")).load(model, tensors)
    except ValueError as error:
        raise ValueError(f"{path} holds another architecture or class count: {error}") from error


__all__ = ["ImageModel", "Model", "Preprocess", "Weights", "create", "load", "load_state", "names", "optimize", "save"]
