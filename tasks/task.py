"""What a task brings to `tasks.engine`: data in splits, losses, metrics, and which metric decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tasks.engine import Run
    from tasks.options import EngineOptions


@dataclass(frozen=True)
class Split:
    """Examples to train on, or to measure on, whose only epoch is 0.

    size:    the number of examples.
    batches: ``batches(epoch)`` are the indices of the examples in every step of that epoch, a pure function of it.
    batch:   ``batch(indices, epoch)`` are those examples as a tuple of tensors, augmented for that epoch, a pure function too.
             Where another process calls it, it changes nothing here.
    """

    size: int
    batches: Callable[[int], Sequence[Tensor]]
    batch: Callable[[Tensor, int], Any]


@dataclass(frozen=True)
class Metric:
    """A metric that decides which epoch is the best one, and its direction."""

    name: str
    lower_is_better: bool = False

    def rank(self, measured: Mapping[str, float], prefix: str = "") -> tuple[float, float]:
        """Larger is better: the metric first, then the smaller loss. NaN is worse than any number."""
        value, loss = measured[f"{prefix}{self.name}"], measured[f"{prefix}loss"]
        rank = (-value if self.lower_is_better else value, -loss)
        return rank[0] if not math.isnan(rank[0]) else -math.inf, rank[1] if not math.isnan(rank[1]) else -math.inf


class Task:
    """Base of all tasks. A task with one loss sets the splits and `units`, and writes `loss`; nothing else is needed.

    Its model must be one that `zoo.save` accepts: one of `zoo.MODELS`, made by `zoo.create`. Add your own to `zoo.MODELS`.
    """

    unit: str = "examples"
    """What the examples are called, such as "images"."""
    train: Split
    valid: Split
    """What is measured after every epoch."""
    by_methods: bool = False
    """Whether losses call methods of the model, which a wrapper of the whole would not see."""
    primary: Metric = Metric("accuracy")
    """What decides which epoch is the best one: "loss", a metric of `loss` or `losses`, or one of `score`."""
    channels_last: bool = False
    """Whether kernels lie channels-last in memory, as suits convolutions of images."""
    workers: int = 0
    """Processes that prepare batches, where --workers does not say."""
    identity: Mapping[str, Any] = {}
    """What the data is, by name, as JSON: sizes, classes, fingerprints. A run keeps it, and goes on with the same only."""
    told: Sequence[str] = ()
    """Lines about data and model to print as a run begins."""

    def units(self, batch: Any) -> int:
        """How many images, or tokens, the losses sum over."""
        return len(batch[0])

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the units, and sums of metrics over them, such as {"accuracy": number of correct ones}."""
        raise NotImplementedError

    def score(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the validation set that are no sums over it, such as BLEU."""
        return {}

    # Several losses, each for a part of the model with an optimizer of its own, as in a GAN:

    def parts(self, model: Any) -> dict[str, nn.Module]:
        """What the losses train, by name: every trainable parameter belongs to one part."""
        return {"model": model}

    def losses(self, model: nn.Module, batch: Any) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Name of a part, its loss and metrics, one after the other, always in the same order.

        When the next one is asked for, the part of the last one has made its step on the whole batch. A loss moves its own part
        alone, whatever else it depends on. A part may come several times, and so may a metric's name: each counts with its mean.
        The generators of all micro-batches run side by side, and what they hold stays in memory until the step ends.
        Evaluation asks for the losses too, in eval mode and without gradients: a loss that needs some, such as a gradient
        penalty, must ask `torch.is_grad_enabled()`, or turn them on by `torch.enable_grad()`.
        """
        yield ("model", *self.loss(model, batch))

    def optimizer(self, part: str, module: nn.Module, options: EngineOptions) -> Optimizer:
        """Its groups' learning rates are the peak ones, which follow the schedule."""
        from tasks.optimizers import make_optimizer

        return make_optimizer(module, options)

    # A run's folder, for `tasks.runs`:

    def keep(self, folder: Path) -> None:
        """Write what the model needs besides its weights, such as a tokenizer."""

    def report(self, run: Run, summary: dict[str, Any]) -> dict[str, Any]:
        """Measure the test set, draw pictures, print; what comes back is added to the summary."""
        return {}
