"""Networks of images whose convolutions and linear layers multiply integers of 8 bits, by torchao's PT2E.

Weights have a scale for each channel, and images between layers one scale and zero each, which pictures for calibration tell;
Jacob et al., 2017 (arXiv 1712.05877). `zoo.optimize` makes one program of the integers, for processors with VNNI.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from layers.checks import require, require_axes
from layers.convolution import SqueezeExcite, hard_sigmoid
from zoo import files
from zoo.deployment.optimize import prepared
from zoo.model import ImageModel, trained_with
from zoo.pretrained.preprocess import Preprocess

LEAST = "2.11"
"""The first torch that torchao has kernels for."""
BATCH = 32


def quantize_images(model: ImageModel, calibration: Tensor) -> QuantizedImages:
    """calibration: images (n, c, y, x) as the model takes them; some hundreds of its training set, prepared as for validation."""
    require(isinstance(calibration, Tensor), "calibration", calibration, "images (n, c, y, x)")
    model.check(calibration, model.smallest_image)
    require(len(calibration) > 0, "calibration", tuple(calibration.shape), "of one image at least")
    require(calibration.is_floating_point(), "calibration", calibration.dtype, "floats")
    require(bool(calibration.isfinite().all()), "calibration", "NaN or infinity", "finite")
    return QuantizedImages(model, calibration.float(), {**model.config, "quantized": "static", "size": [*calibration.shape[1:]]})


class QuantizedImages(nn.Module):
    """images (b, c, y, x) -> logits (b, num_classes), in integers; only for inference. Images are of the calibration's size.

    The graph has weights and scales under names of its own. In files the layers are numbered as they are called.
    """

    def __init__(self, model: ImageModel, calibration: Tensor, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = copy.deepcopy(config)
        self.graph = converted(prepared(model, torch.float32), calibration)

    def forward(self, images: Tensor) -> Tensor:
        require_axes(images, "images", "batch channels height width", channels=self.config["size"][0])
        size = tuple(self.config["size"][1:])
        require(tuple(images.shape[-2:]) == size, "images", tuple(images.shape), f"{size}, the size of those for calibration")
        return self.graph(images)

    def train(self, mode: bool = True) -> QuantizedImages:
        """Stays in evaluation."""
        self.training = False
        return self

    @property
    def preprocess(self) -> Preprocess:
        """As `ImageModel.preprocess`."""
        return trained_with(self.config)

    def saved(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `zoo.save` writes. Errors: `ValueError` for a network that was composed by hand."""
        require("model" in self.config, "model", "a network that was composed by hand", "of zoo.create or zoo.load")
        return {name: value for name, value in self.config.items() if name != "file"}, self.state()

    def state(self) -> dict[str, Tensor]:
        """All numbers, by names that do not depend on how torch calls the parts of a graph."""
        state = {name: attribute(self.graph, node) for name, node in self.weights()}
        return state | {name: torch.tensor(node.args[1:3], dtype=torch.float64) for name, node in self.roundings()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Errors: `ValueError` for the state of another network."""
        own = self.state()
        if own.keys() != state.keys():
            raise ValueError(f"another network: {', '.join(sorted(own.keys() ^ state.keys())[:5])}")
        if wrong := [name for name, x in own.items() if (x.shape, x.dtype) != (state[name].shape, state[name].dtype)]:
            raise ValueError(f"another network: {', '.join(wrong[:5])} must have other shapes or dtypes")
        with torch.no_grad():
            for name, node in self.weights():
                attribute(self.graph, node).copy_(state[name])
        for name, node in self.roundings():
            scale, zero = state[name].tolist()
            for same in (node, *(user for user in node.users if "dequantize" in str(user.target))):
                same.args = (same.args[0], scale, int(zero), *same.args[3:])
        self.graph.recompile()

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Names, and the nodes that give integers, scales, zeros and biases."""
        layers = [node for node in self.graph.graph.nodes if str(node.target).startswith(("aten.conv2d", "aten.linear"))]
        for n, layer in enumerate(layers):
            parts = dict(zip(("weight", "scale", "zero"), layer.args[1].args, strict=False)) | {"bias": (*layer.args, None)[2]}
            yield from ((f"{n}.{name}", node) for name, node in parts.items() if node is not None)

    def roundings(self) -> Iterator[tuple[str, Any]]:
        """Names, and the nodes that round what is between layers."""
        found = [
            node for node in self.graph.graph.nodes if str(node.target).startswith("quantized_decomposed.quantize_per_tensor")
        ]
        return ((f"rounding.{n}", node) for n, node in enumerate(found))


def attribute(graph: Any, node: Any) -> Tensor:
    """What a node of the graph reads."""
    *path, name = node.target.split(".")
    owner = graph.get_submodule(".".join(path))
    return getattr(owner, name)


def tools() -> tuple[Any, Any, Any]:
    """What torchao has for it. Errors: `RuntimeError` if torch is too old for it, or it is not there."""
    if torch.__version__ < LEAST:  # compared as a version
        raise RuntimeError(f"quantizing networks of images needs torch {LEAST} or newer, got {torch.__version__}")
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except ImportError as error:
        raise RuntimeError(
            f"quantizing networks of images needs torchao ({error}): pip install zooproof[quantization]"
        ) from error
    return prepare_pt2e, convert_pt2e, x86_inductor_quantizer


def converted(model: nn.Module, calibration: Tensor) -> Any:
    """A graph of the model in which integers are written out. Errors: `RuntimeError` if torchao cannot be had."""
    prepare_pt2e, convert_pt2e, x86 = tools()
    example = calibration[:2] if len(calibration) > 1 else calibration.repeat(2, 1, 1, 1)  # compilers specialise on 1
    for part in model.modules():
        if isinstance(part, SqueezeExcite) and part.gate is hard_sigmoid:
            part.gate = F.hardsigmoid  # the same; torchao takes the x + 3 of the other for a sum of two images
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch and torchao about each other
        exported = export(model, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
        observed = prepare_pt2e(exported.module(), quantizer)
        for images in calibration.split(BATCH):
            observed(images)
        return convert_pt2e(observed)


def load_images(build: Callable[[], Any], config: dict[str, Any], path: Path) -> QuantizedImages:
    """What `zoo.save` wrote of such a network; build: gives one as the config says, with any weights.

    Errors: `ValueError` for the file of another network; `RuntimeError` if torchao cannot be had.
    """
    size: Any = config.get("size")
    good = isinstance(size, list) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)
    require(good, "size", size, "channels, rows and columns")
    with torch.random.fork_rng(devices=[]):
        loaded = QuantizedImages(build().eval(), torch.rand(2, *size), config)
    try:
        loaded.load(files.read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return loaded
