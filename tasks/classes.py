"""What classifiers of pictures and of texts share: classes by their names, what a model says of a split, how good that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Measured(NamedTuple):
    """Logarithms of probabilities (n, classes), float32, and labels (n,)."""

    logs: Tensor
    labels: Tensor


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How many are right, and of more than five classes how many are among the five likeliest."""
    found = {"accuracy": (logits.argmax(-1) == labels).sum()}
    if logits.shape[-1] > 5:
        found["top5_accuracy"] = (logits.topk(5).indices == labels[:, None]).sum()
    return found


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


def agreement(measured: Measured) -> dict[str, float]:
    """macro_f1, the mean over the classes that occur, and matthews, the correlation of what is said and what is right (Gorodkin,
    2004, for many classes; 0 where one of the two is always the same)."""
    from sklearn.metrics import matthews_corrcoef

    predicted, labels = measured.logs.argmax(-1).numpy(), measured.labels.numpy()
    return {"macro_f1": float(by_class(measured)[2].mean()), "matthews": float(matthews_corrcoef(labels, predicted))}


def table(measured: Measured, classes: Sequence[str], unit: str = "images") -> Iterator[str]:
    """Lines: class, recall (the part of its images that is right), precision, F1, images, or whatever is classified."""
    present = [classes[label] for label in measured.labels.unique().tolist()]
    width = max(map(len, ["class", *present]))
    yield f"{'class':<{width}}  recall  precision  F1      {unit}"
    for name, precision, recall, f1, count in zip(present, *by_class(measured), strict=True):
        yield f"{name:<{width}}  {recall:.4f}  {precision:.4f}     {f1:.4f}  {count:,}"


def match_classes(model: Any, known: Sequence[str] | None, classes: Sequence[str]) -> list[str]:
    """Give each class the row of the output layer that its name has had, or all a new layer; lines that say which.

    known: what the weights were trained for, in order, or None for weights that do not tell.
    """
    import zoo

    if known is None:
        return ["--init: the weights do not tell their classes: the output layer is kept if it has as many"]
    if [*known] == [*classes]:
        return ["--init: the output layer is kept, for the classes are the same"]
    layers = [model.get_submodule(name) for name in model.output_layers]
    if sorted(known) != sorted(classes):
        fresh = zoo.create(model.config["model"], **model.config["arguments"])
        for layer, name in zip(layers, model.output_layers, strict=True):
            layer.load_state_dict(fresh.get_submodule(name).state_dict())
        return [
            f"--init: a new output layer, for the weights know other classes: {', '.join(known[:10])}{' ...' * (len(known) > 10)}"
        ]
    order = torch.tensor([[*known].index(name) for name in classes])
    with torch.no_grad():
        for x in (x for layer in layers for x in layer.parameters()):
            x.copy_(x[order].clone())
    return ["--init: the output layer is kept, its rows in the order of these classes"]
