"""What a classifier says of a split, and how good that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.data.images import Images


class Measured(NamedTuple):
    """Logarithms of probabilities (n, classes), float32, and labels (n,)."""

    logs: Tensor
    labels: Tensor


def measure(model: nn.Module, context: AbstractContextManager[Any], images: Images, batch_size: int) -> Measured:
    """On the model's device, within `context`, as `tasks.saved.placed` gives both; what comes back is on the CPU."""
    batches = torch.arange(len(images)).split(batch_size)
    return Measured(torch.cat([log_probabilities(model, context, images.batch(rows)[0]) for rows in batches]), images.labels)


def log_probabilities(model: nn.Module, context: AbstractContextManager[Any], images: Tensor) -> Tensor:
    """images (b, c, y, x), normalised -> (b, classes)"""
    device = next(model.parameters()).device
    with torch.inference_mode(), context:
        return model(images.to(device)).float().log_softmax(-1).cpu()


def scores(measured: Measured) -> dict[str, float]:
    """accuracy, of more than five classes top5_accuracy, balanced_accuracy (the mean over the classes that occur), and loss."""
    logs, labels = measured
    found = {"accuracy": (logs.argmax(-1) == labels).double().mean().item()}
    if logs.shape[-1] > 5:
        found["top5_accuracy"] = (logs.topk(5).indices == labels[:, None]).any(-1).double().mean().item()
    balanced = float(by_class(measured)[1].mean())
    return found | {"balanced_accuracy": balanced, "loss": F.nll_loss(logs.double(), labels).item()}


def by_class(measured: Measured) -> Any:
    """Precision, recall, F1 and count of the classes that occur, as scikit-learn has them; of what was never said they are 0."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted, labels = measured.logs.argmax(-1).numpy(), measured.labels.numpy()
    return precision_recall_fscore_support(labels, predicted, labels=measured.labels.unique().numpy(), zero_division=0)


def table(measured: Measured, classes: Sequence[str]) -> Iterator[str]:
    """Lines: class, recall (the part of its images that is right), precision, F1, images."""
    present = [classes[label] for label in measured.labels.unique().tolist()]
    width = max(map(len, ["class", *present]))
    yield f"{'class':<{width}}  recall  precision  F1      images"
    for name, precision, recall, f1, count in zip(present, *by_class(measured), strict=True):
        yield f"{name:<{width}}  {recall:.4f}  {precision:.4f}     {f1:.4f}  {count:,}"
