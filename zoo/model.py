"""What models of the zoo have in common beside their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from layers.checks import require, require_axes, require_pixels
from layers.conditioning import ClassEmbedding, TimeEmbedding, require_multiples
from layers.weights import WeightMap
from zoo.pretrained.preprocess import Preprocess

References = Mapping[str, Callable[[Any], WeightMap]]


class NotKnown(AttributeError, ValueError):
    """A model lacks what was asked for. Both kinds of error, for tools that look into modules catch `AttributeError` only."""


class Maps(Mapping[str, WeightMap]):
    """The weight maps of a model by the names of its references, each made when it is asked for.

    Errors: `ValueError` that names the model and its references, for any other name.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __getitem__(self, reference: str) -> WeightMap:
        if reference not in self:
            name = self.model.config.get("model", type(self.model).__name__)
            raise NoTwin(f"{name} has no twin in {reference}, it has {', '.join(self) or 'none'}")
        return self.model.references[reference](self.model)

    def __contains__(self, reference: object) -> bool:
        return reference in self.model.references

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.references)

    def __len__(self) -> int:
        return len(self.model.references)


class NoTwin(ValueError, KeyError):
    """A `KeyError` too, which `Mapping.get` expects."""

    __str__ = Exception.__str__


class Model(nn.Module):
    """Abstract: what all models know of themselves, as data that a family or a variant sets."""

    config: dict[str, Any]
    """JSON object: the model's name and arguments, and what a run added ("preprocess", "classes"); empty if composed by hand."""
    references: References = {}
    """Name of a reference implementation -> function from the model to the weight map between the two; `maps` calls it."""
    output_layers: tuple[str, ...] = ()
    """Names of the linear layers that put out a number for each class."""
    outputs: tuple[str, ...] = ("logits",)
    """Names of what a call gives, for files that other programs run."""
    frozen: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    @property
    def maps(self) -> Maps:
        """Weight maps by reference: ``model.maps["torchvision"].load(model, theirs.state_dict())``."""
        return Maps(self)

    def adapted(self, tensors: Mapping[str, Any], reference: str) -> dict[str, Any]:
        """The weights of a model with another head, as `maps[reference]` knows them, or our own names where that is "".

        A family whose models differ in their heads leaves out here what belongs to other heads.
        """
        return dict(tensors)

    def parts(self) -> dict[str, nn.Module]:
        """What `freeze` takes, in order: each child that has parameters, and of lists each entry: encoder1, encoder2, ..."""
        parts: dict[str, nn.Module] = {}
        for name, child in self.named_children():
            several = enumerate(child, start=1) if isinstance(child, nn.ModuleList) else ()
            parts |= {f"{name}{n}": entry for n, entry in several} or {name: child}
        return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}

    def freeze(self, parts: Iterable[str]) -> None:
        """Train these parts no further: no gradients, and their batch norms stay in eval mode, whatever `train` says.

        parts: names of `parts()`. Errors: `ValueError` that lists them, for any other name; nothing is frozen then.
        """
        parts, known = tuple(parts), self.parts()
        for name in parts:
            require(name in known, "freeze", name, f"one of {', '.join(known)}")
        for name in parts:
            known[name].requires_grad_(False)
        self.frozen = tuple(dict.fromkeys(self.frozen + parts))
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for name in self.frozen:
            self.parts()[name].eval()
        return self

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module | None:
        """What `zoo.optimize` returns, where it is more than a compiled `forward`, such as compiled decoding; else None."""
        return None


class LanguageModel(Model):
    """Abstract: tokens (b, n) -> logits (b, n, vocab_size) for what follows each; ``start(capacity=...)`` begins to decode."""

    embedding: Any


class EncoderDecoder(Model):
    """Abstract: source and target tokens -> logits for what follows each target token; `start` begins to decode a target.

    ``alignments(source, target, source_mask)`` tells what is seen of the source, (b, m, n), where each target token is followed.
    """

    embedding: Any


class DiffusionModel(Model):
    """Abstract: noisy images (b, c, y, x), times (b,) and classes (b,) -> what is predicted of them, (b, out_channels, y, x).

    Times are integers or floats. Classes are from 0 to `no_class`, which stands for none, as None does for all rows.
    """

    in_channels: int
    out_channels: int
    multiple: int
    """What rows and columns of images are multiples of."""
    time: TimeEmbedding
    class_embedding: ClassEmbedding | None
    outputs = ("predicted",)

    @property
    def no_class(self) -> int | None:
        """The class that stands for none; None of a network that knows no classes."""
        return None if self.class_embedding is None else self.class_embedding.no_class

    def condition(self, images: Tensor, times: Tensor, classes: Tensor | None) -> Tensor:
        """The sum of the embeddings of times and classes, (b, dim). Errors: `ValueError` for what the network does not take."""
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        require_multiples(images, self.multiple)
        require_axes(times, "times", "batch", batch=images.shape[0])
        if self.class_embedding is None:
            require(classes is None, "classes", "classes", "None for a network that was built without classes")
            return self.time(times)
        if classes is None:
            classes = torch.full((images.shape[0],), self.class_embedding.no_class, device=images.device)
        require_axes(classes, "classes", "batch", batch=images.shape[0])
        return self.time(times) + self.class_embedding(classes)

    def predict(self, images: Tensor, condition: Tensor) -> Tensor:
        """Of images and what `condition` made of the rest: all that depends on images, and nearly all of the work."""
        raise NotImplementedError

    def forward(self, images: Tensor, times: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.predict(images, self.condition(images, times, classes))

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """A copy for inference, which samplers call as they call the model; see `zoo.optimize`."""
        from zoo.deployment.compiled_diffusion import optimize_diffusion  # which imports this module

        return optimize_diffusion(self, example, dtype)


class ImageModel(Model):
    """Abstract: images (b, c, y, x) -> logits (b, num_classes), by a stem, stages and a head, which a final model sets."""

    in_channels: int
    smallest_image: int = 1
    """Rows and columns that the least image must have, in pixels."""
    smallest_auxiliary: int = 0
    """The same for the auxiliary heads."""
    auxiliary_weight: float = 0.0
    """What the losses of the auxiliary heads count for, where the main one counts for 1."""
    output_layers: tuple[str, ...] = ("head.output",)
    stem: nn.Module
    stages: Any
    """`nn.ModuleList` of modules from images to images."""
    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary: Any = {}
        """Number of a stage -> module from its output to logits, which only training calls for."""

    @property
    def smallest_training_image(self) -> int:
        """Rows and columns that the least image to train on must have, in pixels."""
        return max(self.smallest_image, self.smallest_auxiliary)

    @property
    def preprocess(self) -> Preprocess:
        """Pictures -> images, as the weights expect them. Errors: `NotKnown` for a model that was not trained on pictures."""
        return trained_with(self.config)

    def __getattr__(self, name: str) -> Any:
        # Python asks here once more after the AttributeError of a property, and torch's answer would hide what that said
        return trained_with(self.config) if name == "preprocess" else super().__getattr__(name)

    def parts(self) -> dict[str, nn.Module]:
        """stem, stage1, stage2, ... in order."""
        return {"stem": self.stem} | {f"stage{n}": stage for n, stage in enumerate(self.stages, start=1)}

    def check(self, images: Tensor, smallest: int) -> None:
        require_axes(images, "images", "batch channels height width", channels=self.in_channels)
        require_pixels(images, smallest)

    def features(self, images: Tensor) -> list[Tensor]:
        """Output (b, c, y, x) of every stage."""
        self.check(images, self.smallest_image)
        outputs = [self.stem(images)]
        for stage in self.stages:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]

    def forward(self, images: Tensor) -> Any:
        """Keeps only one stage's output in memory."""
        self.check(images, self.smallest_image)
        images = self.stem(images)
        for stage in self.stages:
            images = stage(images)
        return self.head(images)


def trained_with(config: Mapping[str, Any]) -> Preprocess:
    if "preprocess" not in config:
        raise NotKnown("preprocess is known of models that a run has trained, or that were made with weights=..., only")
    try:
        return Preprocess.of(config["preprocess"])
    except ValueError as error:
        raise NotKnown(str(error)) from error


class LinearHead(nn.Module):
    """Dropout and one linear layer on the mean over rows and columns: grid (b, c, y, x) -> logits (b, num_classes)."""

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        return self.output(self.dropout(grid.mean((-2, -1))))


DRAW = {nn.init.normal_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.add_, Tensor.mul_, Tensor.div_, Tensor.clamp_}


class Undrawn(TorchFunctionMode):
    """Leaves out what draws values on the meta device, which has none, and where that would import all of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAW and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
            return tensor
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Models that are built under it are on the meta device: they take no time and no memory, until weights are loaded."""
    with torch.device("meta"), Undrawn():
        yield


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """He's normal law with the fan-out for convolutions, N(0, 0.01^2) for linear layers, zero biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)
