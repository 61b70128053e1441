"""Command-line options from dataclasses: the field is the option, its help the documentation, its type the check."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, get_args, get_type_hints


class UserError(Exception):
    """Something that the user can mend: printed as one line, exit code 2."""


def option(default: Any, help: str, choices: Sequence[str] = (), many: bool = False) -> Any:
    """A dataclass field that is an option; `many` takes one or more values."""
    metadata = {"help": help, "choices": choices, "many": many}
    return field(default_factory=lambda: list(default), metadata=metadata) if many else field(default=default, metadata=metadata)


def parse(program: str, commands: Mapping[str, tuple[type, str]], argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command (the first one if none is given) and the options that were given; `--batch-size` and `--batch_size` are one."""
    first = next(iter(commands))
    argv = [
        f"--{a[2:].partition('=')[0].replace('-', '_')}{''.join(a.partition('=')[1:])}" if a.startswith("--") else a for a in argv
    ]
    if not argv or argv[0] not in commands:
        argv = [first, *argv]
    kind, summary = commands[argv[0]]
    usage = f"python -m {program} [{'|'.join(commands)}] [options]"
    parser = argparse.ArgumentParser(
        usage=usage, description=f"{argv[0]}: {summary}", argument_default=argparse.SUPPRESS, allow_abbrev=False,
        epilog="Commands: " + "; ".join(f"{c}: {s}" for c, (_, s) in commands.items()),
    )  # fmt: skip
    hints = get_type_hints(kind)
    for spec in fields(kind):
        add(parser, spec, hints[spec.name])
    return argv[0], vars(parser.parse_args(argv[1:]))


def add(parser: argparse.ArgumentParser, spec: Field[Any], hint: Any) -> None:
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
class EngineOptions:
    """How to train, whatever the task."""

    epochs: int = option(10, "passes over the training data")
    optimizer: str = option("adamw", "sgd has Nesterov momentum 0.9", choices=("adamw", "adam", "sgd"))
    lr: float = option(None, "peak learning rate (default: 0.001, for sgd 0.02)")
    schedule: str = option(
        "cosine",
        "cosine falls to zero; step divides by ten at 1/2 and 3/4; rsqrt falls as 1 / sqrt(step)",
        choices=("cosine", "step", "rsqrt", "constant"),
    )
    warmup: float = option(1.0, "epochs in which the learning rate rises from zero")
    weight_decay: float = option(
        None, "on matrices and kernels only, not on norms and biases (default: 0.05 for adamw, 0 for adam, 0.0005 for sgd)"
    )
    ema: float = option(0.0, "decay of an exponential moving average of the weights, which is then evaluated and kept; 0 is off")
    average: int = option(0, "average the weights of so many epochs, the last ones, and keep that if it is better; 0 is off")
    patience: int = option(0, "stop after so many epochs without a better model; 0 is off")
    accumulate: int = option(1, "micro-batches that make up a step, for less memory")
    clip: float = option(0.0, "largest gradient norm; 0 is off")
    precision: str = option("fp32", "fp16 needs a GPU", choices=("fp32", "bf16", "fp16"))
    compile: bool = option(False, "torch.compile the model")
    device: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "of initial weights, order, augmentation and dropout")
    checkpoint_every: int = option(0, "steps between checkpoints; there is one after every epoch anyway")
    resume: bool = option(False, "continue the run --name where its last checkpoint is")
    name: str = option("", "folder of the run under --runs_dir (default: model, data and time)")
    runs_dir: str = option("runs", "folder of all runs")

    def __post_init__(self) -> None:
        lr, weight_decay = {"adamw": (0.001, 0.05), "adam": (0.001, 0.0), "sgd": (0.02, 5e-4)}[self.optimizer]
        self.lr = lr if self.lr is None else self.lr
        self.weight_decay = weight_decay if self.weight_decay is None else self.weight_decay
