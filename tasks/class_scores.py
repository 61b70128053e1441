"""How good a classifier is, whatever it classifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Measured(NamedTuple):
    """Logarithms of probabilities (n, classes), float32, and labels (n,)."""

    logs: Tensor
    labels: Tensor


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


def by_class_lines(measured: Measured, classes: Sequence[str], unit: str) -> Iterator[str]:
    """Lines: class, recall (the part of it that is right), precision, F1, how many there are. unit: such as "images"."""
    present = [classes[label] for label in measured.labels.unique().tolist()]
    width = max(map(len, ["class", *present]))
    yield f"{'class':<{width}}  recall  precision  F1      {unit}"
    for name, precision, recall, f1, count in zip(present, *by_class(measured), strict=True):
        yield f"{name:<{width}}  {recall:.4f}  {precision:.4f}     {f1:.4f}  {count:,}"


def text_scores(measured: Measured) -> dict[str, float]:
    """Those of `scores`, macro_f1 (the mean over the classes that occur) and matthews, the correlation of what is said and true.

    Source: Matthews, 1975; of several classes Gorodkin, 2004. As scikit-learn has them.
    """
    from sklearn.metrics import matthews_corrcoef

    said, labels = measured.logs.argmax(-1).numpy(), measured.labels.numpy()
    more = {"macro_f1": float(by_class(measured)[2].mean()), "matthews": float(matthews_corrcoef(labels, said))}
    found = scores(measured)
    return {"accuracy": found.pop("accuracy"), **more, **found}
