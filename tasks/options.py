"""Command-line options from dataclasses: the field is the option, its help the documentation, its type and range the check."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_type_hints


class UserError(Exception):
    """Something that the user can mend: printed as one line, exit code 2."""


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    many: bool = False,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is an option. `many` takes one or more values; `least`, `above` and `below` bound a number."""
    metadata = {"help": help, "choices": choices, "many": many, "least": least, "above": above, "below": below}
    return field(default_factory=lambda: list(default), metadata=metadata) if many else field(default=default, metadata=metadata)


class Options:
    """Base of all options: none is ever out of its range, whether it comes from a command line, from code or from a file."""

    def __post_init__(self) -> None:
        """Errors: `UserError` that names the first option out of range, its value and what would be right."""
        for spec in fields(self):  # type: ignore
            value, rules = getattr(self, spec.name), spec.metadata
            if rules["choices"] and value is not None and value not in rules["choices"]:
                raise UserError(f"--{spec.name} must be one of {', '.join(rules['choices'])}, got {value}")
            if isinstance(value, int | float) and not within(value, rules):
                raise UserError(f"--{spec.name} must be {words(rules)}, got {value}")


def within(value: float, rules: Any) -> bool:
    """NaN and infinity are in no range."""
    low, above, below = rules["least"], rules["above"], rules["below"]
    return (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def words(rules: Any) -> str:
    bounds = {"{} or more": rules["least"], "above {}": rules["above"], "below {}": rules["below"]}
    return " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None) or "a finite number"


def add(parser: argparse.ArgumentParser, kind: type) -> None:
    """Every field of the dataclass as an option of the parser."""
    hints = get_type_hints(kind)
    for spec in fields(kind):
        add_option(parser, spec, hints[spec.name])


def add_option(parser: argparse.ArgumentParser, spec: Field[Any], hint: Any) -> None:
    default = None if spec.default is MISSING else spec.default
    text = spec.metadata["help"].replace("%", "%%")
    names = [f"--{spec.name}"]
    if hint is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, help=text)
        return
    kind = next((t for t in get_args(hint) if t is not type(None)), hint)
    options: dict[str, Any] = {"nargs": "+"} if spec.metadata["many"] else {}
    if spec.metadata["choices"]:
        options["choices"] = spec.metadata["choices"]
    text += "" if default is None else f" (default: {default})"
    parser.add_argument(
        *names, type=kind, help=text, metavar=None if options.get("choices") else kind.__name__.upper(), **options
    )


@dataclass
class EngineOptions(Options):
    """How to train, whatever the task."""

    epochs: int = option(10, "passes over the training data", least=1)
    optimizer: str = option("adamw", "sgd has Nesterov momentum 0.9", choices=("adamw", "adam", "sgd"))
    lr: float = option(None, "peak learning rate (default: 0.001, for sgd 0.02)", above=0)
    schedule: str = option(
        "cosine",
        "cosine falls to zero; step divides by ten at 1/2 and 3/4; rsqrt falls as 1 / sqrt(step)",
        choices=("cosine", "step", "rsqrt", "constant"),
    )
    warmup: float = option(1.0, "epochs in which the learning rate rises from zero", least=0)
    weight_decay: float = option(
        None,
        "on matrices and kernels only, not on norms and biases (default: 0.05 for adamw, 0 for adam, 0.0005 for sgd)",
        least=0,
    )
    ema: float = option(
        0.0, "decay of an exponential moving average of the weights, which is then evaluated and kept; 0 is off", least=0, below=1
    )
    average: int = option(
        0, "average the weights of so many epochs, the last ones, and keep that if it is better; 0 is off", least=0
    )
    patience: int = option(0, "stop after so many epochs without a better model; 0 is off", least=0)
    accumulate: int = option(1, "micro-batches that make up a step, for less memory", least=1)
    clip: float = option(0.0, "largest gradient norm; 0 is off", least=0)
    precision: str = option("fp32", "fp16 needs a GPU", choices=("fp32", "bf16", "fp16"))
    compile: bool = option(False, "torch.compile the model")
    device: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "of initial weights, order, augmentation and dropout", least=0)
    checkpoint_every: int = option(0, "steps between checkpoints; there is one after every epoch anyway", least=0)
    resume: bool = option(False, "continue the run --name where its last checkpoint is")
    name: str = option("", "folder of the run under --runs_dir (default: model, data and time)")
    runs_dir: str = option("runs", "folder of all runs")

    def __post_init__(self) -> None:
        lr, weight_decay = {"adamw": (0.001, 0.05), "adam": (0.001, 0.0)}.get(self.optimizer, (0.02, 5e-4))
        self.lr = lr if self.lr is None else self.lr
        self.weight_decay = weight_decay if self.weight_decay is None else self.weight_decay
        super().__post_init__()
