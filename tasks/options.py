"""Command-line options from dataclasses: the field is the option, its help the documentation, its type and range the check."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib.metadata import version
from os.path import expanduser
from typing import Any, ClassVar, get_args, get_type_hints


class UserError(Exception):
    """Something that the user can mend: printed as one line, exit code 2."""


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    many: bool = False,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field that is an option. `many` takes one or more values; `least`, `most`, `above` and `below` bound a number;
    in a `path`, ~ at the start is the user's home."""
    bounds = {"least": least, "most": most, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, "many": many, "path": path, **bounds}
    return field(default_factory=lambda: list(default), metadata=metadata) if many else field(default=default, metadata=metadata)


class Options:
    """Base of all options: none is ever out of its range, whether it comes from a command line, from code or from a file.

    title:   what `--help` calls the options that a class adds.
    program: whose runs its commands make and take, such as "tasks.translation"; "" takes any.
    """

    title: ClassVar[str] = "options"
    program: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Errors: `UserError` that names the first option of another type or out of range, its value and what would be right."""
        hints = get_type_hints(type(self))
        for spec in fields(self):  # type: ignore
            value: Any = getattr(self, spec.name)
            require_valid(spec, hints[spec.name], value)
            if spec.metadata["path"]:
                setattr(self, spec.name, [expanduser(x) for x in value] if spec.metadata["many"] else expanduser(value))


def require_valid(spec: Field[Any], hint: Any, value: Any) -> None:
    """Errors: `UserError` that names the option if its value is of another type, none of its choices or out of its range."""
    rules = spec.metadata
    if value != spec.default and not fits(value, hint):
        raise UserError(f"--{spec.name} must be of type {getattr(hint, '__name__', hint)}, got {value!r}")
    if rules["choices"] and value is not None and value not in rules["choices"]:
        near = did_you_mean(value, rules["choices"], like=0.3)
        raise UserError(f"--{spec.name} must be one of {', '.join(rules['choices'])}, got {value!r}{near}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"--{spec.name} must be below 2**63, got {value}")
    if isinstance(value, int | float) and not within(value, rules):
        raise UserError(f"--{spec.name} must be {limits(rules)}, got {value}")


def read_value(spec: Field[Any], hint: Any, text: str) -> Any:
    """The value that a word of the command line stands for. Errors: `UserError` for what is no number where one is needed."""
    try:
        return scalar(hint)(text)
    except ValueError:
        raise UserError(f"--{spec.name} must be {expected(spec, hint)}, got {text!r}") from None


def scalar(hint: Any) -> type:
    """The type of one value: `int` of ``int | None``, `str` of ``list[str]``."""
    return (*get_args(hint), hint)[0]


def expected(spec: Field[Any], hint: Any) -> str:
    """What an option wants: "a whole number, 1 or more", "one of fp32, bf16, fp16"; nothing where any text will do."""
    if spec.metadata["choices"]:
        return f"one of {', '.join(spec.metadata['choices'])}"
    kind = {int: "a whole number", float: "a number"}.get(scalar(hint), "")
    return f"{kind}, {limits(spec.metadata)}" if kind else ""


def did_you_mean(word: str, known: Iterable[str], before: str = "", like: float = 0.6) -> str:
    """The end of a sentence that names the known word most like one that is unknown; nothing where none is as much `like` it."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=like)
    return f", did you mean {before}{near[0]}?" if near else ""


def restored(kind: type, saved: Mapping[str, Any], folder: Any) -> Any:
    """The options of `kind` among those that a run has kept. Errors: `UserError` for values that they may not have."""
    try:
        return kind(**{spec.name: saved[spec.name] for spec in fields(kind) if spec.name in saved})
    except UserError as error:
        raise UserError(f"{folder}/options.json: {error}") from error


def data_of(saved: Mapping[str, Any]) -> Any:
    """What options.json says of the run's data; None if an older version wrote it."""
    about = saved.get("about")
    data = about.get("data") if isinstance(about, dict) else None
    return data if isinstance(data, dict) else None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, of a file for instance, is of the type that the command line would have made it."""
    if hint == list[str]:
        return isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
    kinds = get_args(hint) or (hint,)
    return any(isinstance(value, (int, float) if kind is float else kind) for kind in kinds) and (
        bool in kinds or not isinstance(value, bool)
    )


def within(value: float, rules: Any) -> bool:
    """NaN and infinity are in no range."""
    low, high, above, below = (rules[name] for name in ("least", "most", "above", "below"))
    return (
        math.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def limits(rules: Any) -> str:
    if rules["least"] is not None and rules["most"] is not None:
        return f"from {rules['least']} to {rules['most']:,}"
    bounds = {"{} or more": rules["least"], "{} or less": rules["most"], "above {}": rules["above"], "below {}": rules["below"]}
    return " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None) or "a finite number"


def owner(kind: type, name: str) -> Any:
    """The class that brought an option; another one may only have given it another default."""
    return next(c for c in reversed(kind.__mro__) if name in vars(c).get("__annotations__", {}))


OPTIMIZERS = ("adamw", "adam", "sgd", "muon")


@dataclass
class EngineOptions(Options):
    """How to train, whatever the task."""

    title = "training"

    epochs: int = option(10, "passes over the training data", least=1)
    optimizer: str = option(
        "adamw",
        "muon makes steps of hidden matrices orthogonal, the rest is adamw's; sgd has Nesterov momentum 0.9",
        choices=OPTIMIZERS,
    )
    lr: float = option(None, "peak learning rate (default: 0.001, for muon 0.003, for sgd 0.02)", above=0)
    schedule: str = option(
        "cosine",
        "cosine falls to zero; step divides by ten at 1/2 and 3/4; rsqrt falls as 1 / sqrt(step)",
        choices=("cosine", "step", "rsqrt", "constant"),
    )
    warmup: float = option(1.0, "epochs in which the learning rate rises from zero", least=0)
    beta2: float = option(0.999, "decay of the mean of squared gradients, which sgd has not", least=0, below=1)
    weight_decay: float = option(
        None,
        "on matrices and kernels only, not on norms and biases (default: 0.05 for adamw and muon, 0 for adam, 0.0005 for sgd)",
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
    layer_decay: float = option(
        1.0,
        "learning rate of each part of the model over that of the next one, such as 0.75 for fine-tuning",
        above=0,
        most=1,
    )
    precision: str = option("fp32", "fp16 needs a GPU", choices=("fp32", "bf16", "fp16"))
    compile: bool = option(False, "torch.compile the model")
    gradient_checkpointing: bool = option(False, "compute what the backward pass needs again: less memory, a third more time")
    device: str = option("auto", "auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    shard: str = option(
        "none",
        "under torchrun, what each process holds of the model: none is all of it (DDP), fsdp slices of each tensor (torch 2.9)",
        choices=("none", "fsdp"),
    )
    tensor: int = option(1, "processes that share each attention and feed-forward network, for Transformers", least=1)
    workers: int | None = option(
        None, "processes that prepare batches; they change nothing but the speed (default: 0, some for pictures on disk)", least=0
    )
    seed: int = option(0, "of initial weights, order, augmentation and dropout", least=0)
    log_every: int = option(0, "steps between lines in steps.jsonl; 0 is off", least=0)
    profile: int = option(
        0, "steps to profile, after two: a trace.json of torch's profiler, and the ten most costly blocks; 0 is off", least=0
    )
    tracker: str = option("auto", "wandb, tensorboard or another one that accelerate knows; none; auto is tensorboard if there")
    checkpoint_every: int = option(0, "steps between checkpoints; there is one after every epoch anyway", least=0)
    resume: bool = option(False, "continue the run --name where its last checkpoint is")
    name: str = option("", "folder of the run under --runs_dir (default: model, data and time)")
    runs_dir: str = option("runs", "folder of all runs", path=True)

    def __post_init__(self) -> None:
        lr, weight_decay = {"adamw": (0.001, 0.05), "adam": (0.001, 0.0), "muon": (0.003, 0.05)}.get(self.optimizer, (0.02, 5e-4))
        self.lr = lr if self.lr is None else self.lr
        self.weight_decay = weight_decay if self.weight_decay is None else self.weight_decay
        super().__post_init__()
        require_device(self)
        if self.gradient_checkpointing and self.compile:
            raise UserError("--gradient_checkpointing and --compile exclude each other: a compiler decides itself what to keep")
        if self.profile and self.compile:
            raise UserError("--profile and --compile exclude each other: a compiler leaves no blocks to tell apart")
        require_divisible(self)


def require_divisible(options: EngineOptions) -> None:
    """Errors: `UserError` if the model cannot be divided among processes as the options ask."""
    found = version("torch")
    if options.shard == "fsdp" and tuple(map(int, found.split(".")[:2])) < (2, 9):
        raise UserError(
            f"--shard fsdp needs torch 2.9 or newer, this is {found}: 2.7 and 2.8 double gradients on the CPU without a word"
        )
    for given in ("--shard fsdp",) * (options.shard == "fsdp") + (f"--tensor {options.tensor}",) * (options.tensor > 1):
        if options.compile:
            raise UserError(f"{given} and --compile exclude each other")
        if options.precision == "fp16":
            raise UserError(f"{given} and --precision fp16 exclude each other: take bf16")
    if options.tensor > 1 and options.optimizer == "muon":
        raise UserError(
            f"--tensor {options.tensor} and --optimizer muon exclude each other, for muon needs whole matrices: take adamw"
        )


def require_device(options: Any) -> None:
    """Errors: `UserError` if there is no such device, or if it lacks the precision."""
    if "cuda" not in options.device and options.precision != "fp16":
        return  # before torch is imported
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    if options.precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("--precision fp16 needs a GPU; bf16 works on the CPU too")
