"""What tasks that read texts share: the model and its tokenizer, new ones or somebody's, and texts as rows of tokens.

A row is ``cls text sep``, of two texts ``cls first sep second sep``, as BERT reads them, with token types 0 and 1. RoBERTa has
two ``sep`` between them. A text that is too long loses its end; of two the longer one does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tasks.options import Options, UserError, did_you_mean, option
from tasks.saved import require_run_of, run_or_path

HUB = "hf:"
DEFAULT = "bert_small"
LEVELS = ("bpe", "unigram", "word", "char")


@dataclass
class LearningOptions(Options):
    """What of a model learns."""

    title = "model"
    freeze: str = option("", "parts to leave as they are, such as embedding,encoder1")
    lora_rank: int | None = option(None, "learn matrices of this rank beside linear layers, and a head, nothing else", least=1)
    lora_alpha: float | None = option(None, "what their product weighs (default: 2 times the rank)", above=0)
    lora_targets: str = option("query,value", "linear layers that get them, by their last names")


@dataclass
class TextModelOptions(LearningOptions):
    title = "model"
    model: str = option("", "a model of zoo.names() that reads tokens (default: bert_small, or what --init is)")
    init: str = option("", "start from a run, a folder or file of one, or hf:PATH, a folder of Hugging Face's", path=True)
    tokenizer: str = option("", "tokenizer.json to use (default: one is trained, or that of --init)", path=True)
    level: str = option("bpe", "what a trained tokenizer's tokens are", LEVELS)
    vocab_size: int = option(4000, "tokens of a trained tokenizer, at most", least=5, most=10_000_000)
    context: int = option(128, "tokens that the model sees", least=4)
    layers: int | None = option(None, "of a new model (default: its own)", least=1)
    dim: int | None = option(None, "of a new model (default: its own)", least=1)
    dropout: float | None = option(None, "in the model (default: the model's own)", least=0, below=1)


class Reader(NamedTuple):
    """A model, its tokenizer, and how it is called."""

    model: Any
    tokenizer: Any
    typed: bool
    """Whether the model takes token types."""
    told: Sequence[str] = ()
    """Lines about the weights."""


class Row(NamedTuple):
    """A text, or two, as the model reads it."""

    tokens: list[int]
    types: list[int]
    cut: int
    """Tokens that were too many, and left out."""


def begin(
    options: Any,
    folder: Path,
    texts: Iterable[str],
    head: str,
    *,
    classes: Sequence[str] = (),
    apart: bool = False,
    **arguments: Any,
) -> Reader:
    """The model of --model and --init with this head, and the tokenizer; of a run that goes on, what its folder has.

    texts:     to train a tokenizer on.
    classes:   names in the order of the output layer, where those of --init are to be found by their names.
    apart:     whether punctuation marks are tokens of their own, for what is to be found in texts.
    arguments: of the head, such as `num_classes`.
    Errors: `UserError` and `ValueError` for whatever is wrong with the options and the weights.
    """
    import torch

    import zoo
    from zoo.files import read_json
    from zoo.pretrained import load

    require_learnt(options)
    arguments |= {"num_classes": len(classes)} if classes else {}
    kept = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    place, weights = place_of(options, folder)
    known = kept or (read_json(place / "config.json") if place and (place / "config.json").is_file() else {})
    name = options.model or name_of(known, place or folder, options.init)
    require_reader(name, "--model" if options.model else str(place or folder))
    tokenizer = tokenizer_of(options, texts, [path for path in (folder, place) if path], apart)
    tokenizer = tokenizer.with_padding().require("cls", "sep", "unk")
    torch.manual_seed(options.seed)
    told: list[str] = []
    if kept:
        model = zoo.create(kept["model"], **kept["arguments"])
    elif weights:
        found = load.find(name, weights)
        given = {} if options.dropout is None else {"dropout": options.dropout}
        model = zoo.create(name, weights=found, head=head, **arguments, **given)
        told = told_of_head(model, found, head, classes)
    else:
        sizes = {n: getattr(options, n) for n in ("layers", "dim", "dropout") if getattr(options, n) is not None}
        fixed = {"vocab_size": tokenizer.vocab_size, "padding": tokenizer.pad, "max_positions": options.context}
        takes = zoo.arguments(name)
        model = zoo.create(name, head=head, **arguments, **sizes, **{n: x for n, x in fixed.items() if n in takes})
    tokenizer.require_vocab_size(vocab_size_of(model))
    most = getattr(getattr(model, "positions", None), "max_positions", options.context)
    if options.context > most:
        raise UserError(f"--context must be {most} or less for {name}, got {options.context}")
    told += limited(model, options)
    model.config |= {"tokenizer": tokenizer.fingerprint, "context": options.context}
    return Reader(model, tokenizer, takes_types(model), told)


def tokenizer_of(options: Any, texts: Iterable[str], folders: Sequence[Path], apart: bool = False) -> Any:
    """The one of --tokenizer, else of the first folder that has one, else a new one."""
    from tasks.data.tokenizer import load_tokenizer, train_tokenizer

    files = [options.tokenizer] if options.tokenizer else [path for path in folders if (path / "tokenizer.json").is_file()]
    if folders[1:] and not files:
        raise UserError(f"--init {options.init}: {folders[1]} has no tokenizer.json: give --tokenizer")
    return load_tokenizer(files[0]) if files else train_tokenizer(texts, options.level, options.vocab_size, apart)


def told_of_head(model: Any, weights: Any, head: str, classes: Sequence[str]) -> list[str]:
    """A line on what becomes of the weights' head, whose rows are put in the order of our classes."""
    from tasks.classes import match_classes

    if weights.arguments.get("head") != head:
        return ["--init: a new head, for the weights have none of this kind"]
    return match_classes(model, weights.about.get("classes"), classes) if classes else []


def require_learnt(options: Any) -> None:
    """Errors: `UserError` for LoRA on a model that is new."""
    if options.lora_rank and not options.init:
        raise UserError("--lora_rank is for a model that has learnt something: give --init")


def limited(model: Any, options: Any) -> list[str]:
    """Let only a part of the model learn, as --lora_rank and --freeze say; lines that tell which."""
    from torch import nn

    from layers.lora import add_lora

    split = {name: [x.strip() for x in getattr(options, name).split(",") if x.strip()] for name in ("lora_targets", "freeze")}
    told = []
    try:
        if options.lora_rank:
            layers = add_lora(model, options.lora_rank, targets=split["lora_targets"], alpha=options.lora_alpha)
            if isinstance(getattr(model, "head", None), nn.Module):
                model.head.requires_grad_(True)
            learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
            told = [f"LoRA of rank {options.lora_rank} in {len(layers)} layers: {learning:,} parameters learn, merged when saved"]
        model.freeze(split["freeze"])
    except ValueError as error:
        message = str(error)
        raise UserError(f"--{message if message.startswith('freeze') else f'lora_{message}'}") from error
    return told + ([f"frozen: {', '.join(model.frozen)}"] if model.frozen else [])


def vocab_size_of(model: Any) -> int:
    import zoo

    arguments = model.config["arguments"]
    return arguments.get("vocab_size", zoo.arguments(model.config["model"])["vocab_size"])


def place_of(options: Any, folder: Path) -> tuple[Path | None, str | None]:
    """The folder that --init means, and what `zoo.create` calls its weights; none for a run that goes on, which has its own.

    Errors: `UserError` for what is not there, and for a run of another program.
    """
    if not options.init or (folder / "config.json").is_file():
        return None, None
    if options.init.startswith(HUB):
        path = Path(options.init.removeprefix(HUB)).expanduser()
        if not path.exists():
            raise UserError(f"--init {options.init}: {path} is not there")
        return path if path.is_dir() else path.parent, f"{HUB}{path}"
    path = Path(run_or_path(options.init, folder.parent))
    if not path.exists():
        raise UserError(f"--init {options.init} is not there: a run, one of its .safetensors files or hf:PATH is expected")
    require_run_of(options.program, path, f"--init {options.init}")
    return path if path.is_dir() else path.parent, str(path)


def name_of(config: dict[str, Any], folder: Path, init: str, default: str = DEFAULT) -> str:
    """The model that a config.json describes, ours or Hugging Face's; the default one where nothing is to be loaded."""
    from zoo.pretrained.load import trained_as

    if not config and not init:
        return default
    names, *_ = (trained_as(config, folder) if config else None) or ([],)
    if not names:
        raise UserError(f"--init {init}: no config.json in {folder} tells the model: give --model")
    return names[0]


def require_reader(name: str, where: str = "--model") -> None:
    """Errors: `UserError` for a model that gets no head on its states of tokens, with the nearest one."""
    import zoo

    known = [name for name in zoo.names() if "head" in zoo.arguments(name) and not issubclass(zoo.kind_of(name), zoo.ImageModel)]
    if name not in known:
        raise UserError(f"{where}: {name} is no model that reads texts{did_you_mean(name, known)}; there are {', '.join(known)}")


def takes_types(model: Any) -> bool:
    types = getattr(model, "types", None)
    return "types" in inspect.signature(model.forward).parameters and types is not None and types.table.num_embeddings > 1


def rows(tokenizer: Any, texts: Sequence[Sequence[str]], context: int) -> list[Row]:
    """texts: one or two an example."""
    cls, sep = tokenizer.cls, tokenizer.sep
    between = [sep, sep] if tokenizer.inner.id_to_token(cls) == "<s>" else [sep]
    sides = [tokenizer.encode_batch(side) for side in zip(*texts, strict=True)]
    found = []
    for parts in zip(*sides, strict=True):
        room = context - 2 - (len(between) if len(parts) > 1 else 0)
        kept = shortened([len(part) for part in parts], room)
        first, *second = (part[:size] for part, size in zip(parts, kept, strict=True))
        tokens, types = [cls, *first, sep], [0] * (len(first) + 2)
        if second:
            tokens = [cls, *first, *between, *second[0], sep]
            types += [0] * (len(between) - 1) + [1] * (len(second[0]) + 1)
        found.append(Row(tokens, types, sum(map(len, parts)) - sum(kept)))
    return found


def shortened(lengths: Sequence[int], room: int) -> list[int]:
    """What is left of each length so that the sum is at most `room`: the longer one gives first.

    >>> shortened([10, 3], 8)
    [5, 3]
    """
    kept = list(lengths)
    for n in sorted(range(len(kept)), key=lambda n: -kept[n]):
        over = sum(kept) - room
        if over > 0:
            other = max((size for m, size in enumerate(kept) if m != n), default=0)
            kept[n] = max(kept[n] - over, min(other, room // len(kept)))
    return kept


def told_of(found: Sequence[Row], context: int) -> list[str]:
    """A line where texts were cut."""
    cut = sum(row.cut > 0 for row in found)
    return [f"{cut:,} of {len(found):,} texts are longer than --context {context}, and lose their ends"] if cut else []


def called(reader: Reader, model: Any, tokens: Any, types: Any) -> Any:
    """What the model, `reader`'s own or a wrapper of it, makes of padded rows (b, n)."""
    mask = tokens != reader.tokenizer.pad
    return model(tokens, mask, types) if reader.typed else model(tokens, mask)


def load_reader(folder: Path) -> Reader:
    """Model and tokenizer of a run. Errors: `ValueError` where they are damaged or do not belong together."""
    import zoo
    from tasks.data.tokenizer import load_tokenizer

    model: Any = zoo.load(folder / "best.safetensors")
    tokenizer = load_tokenizer(folder / "tokenizer.json").with_padding().require("cls", "sep", "unk")
    tokenizer.require_vocab_size(vocab_size_of(model))
    if model.config.get("tokenizer") != tokenizer.fingerprint:
        raise UserError(f"{folder / 'tokenizer.json'} is not the tokenizer that the model was trained with")
    return Reader(model, tokenizer, takes_types(model))
