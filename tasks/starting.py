"""Where the training of a translator starts: anew, from a run, from a file of weights, or from a published model."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from typing import Any

import zoo
from tasks import marian
from tasks.data import DataError
from tasks.data.tokenizer import TextTokenizer, load_tokenizer
from tasks.options import UserError
from tasks.saved import require_run_of, run_or_path
from zoo import files

DEFAULT = "transformer_small"
ABOUT = ("start", "huggingface")
"""What a model's config keeps of the published one that it was: the token that decoding starts with, and files to export."""
HUB = "hf:"


@dataclass
class Start:
    """What model to build, with which tokenizer and weights; `about` goes to its config."""

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    expected: str | None = None
    """Fingerprint of the tokenizer that the weights were trained with, where they do not bring it."""
    tokenizer: TextTokenizer | None = None
    load: Callable[[Any], None] = lambda model: None


def start_of(options: Any, folder: Path) -> Start:
    """What --init and --model say; of a run that goes on, what its folder has, so that --init may be gone by then.

    Errors: `UserError` and `DataError` for another model, another tokenizer, or weights that cannot be had.
    """
    if options.model:
        require_transformer(options.model)
    if not options.init:
        return Start(options.model or DEFAULT)
    if (folder / "last.safetensors").exists():
        return of_run(folder, lambda model: None)
    if options.init.startswith(HUB):
        published = marian.read(Path(expanduser(options.init.removeprefix(HUB))))
        about = {"start": published.start, "huggingface": published.kept}
        found = Start(marian.FORM, published.arguments, about, tokenizer=published.tokenizer, load=published.load)
    else:
        path = Path(run_or_path(options.init, folder.parent))
        require_run_of(options.program, path, f"--init {options.init}")
        path = files.weights_file(str(path))
        found = of_run(path.parent, lambda model: zoo.load_state(model, path), options.model)
    if options.model and found.model != options.model:
        raise UserError(f"--init {options.init} is a {found.model}, --model is {options.model}: leave --model out")
    require_tokenizer(options, found)
    return found


def of_run(folder: Path, load: Callable[[Any], None], model: str = "") -> Start:
    """A run's model and tokenizer; of weights that lie in no run, a new model of that name."""
    config = files.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not isinstance(config.get("model"), str) or not isinstance(config.get("arguments"), dict):
        return Start(model or DEFAULT, load=load)
    require_transformer(config["model"], str(folder))
    about = {key: config[key] for key in ABOUT if key in config}
    known = (folder / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(folder / "tokenizer.json").starting(config.get("start")) if known else None
    return Start(config["model"], config["arguments"], about, None if known else config.get("tokenizer"), tokenizer, load)


def require_tokenizer(options: Any, start: Start) -> None:
    """Errors: `UserError` unless the options leave a model its tokenizer."""
    if start.tokenizer is None:
        return
    for name in ("level", "vocab_size"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} {getattr(options, name)}: --init {options.init} brings its tokenizer, leave it out")
    if options.tokenizer and load_tokenizer(options.tokenizer).with_padding().fingerprint != start.tokenizer.fingerprint:
        raise UserError(f"--tokenizer {options.tokenizer}: --init {options.init} was trained with another one: leave it out")


def require_transformer(name: str, where: str = "--model") -> None:
    """Errors: `DataError` for a model that is none from tokens to tokens, with the nearest one."""
    known = zoo.names(zoo.EncoderDecoder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise DataError(f"{where} must be one of {', '.join(known)}, got {name!r}, did you mean {near!r}?")
