"""A tokenizer.json as `transformers` wants it: beside a model, with the names of its special tokens."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from zoo.files import PART, first_line

SPELLINGS = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<PAD>"),
    "bos": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<BOS>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", "<EOS>", "[SEP]"),
    "unk": ("<unk>", "[UNK]", "<|unk|>", "<UNK>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
"""How tokenizers spell each special token; where one has several of a kind, the first in the list counts."""
READERS, WRITERS = ("pad", "unk", "cls", "sep", "mask"), ("pad", "unk", "bos", "eos")
"""The kinds that models need which read in both directions, and those that go on with a text."""
TRANSLATORS = ("pad", "unk", "eos")
"""Those of models whose source ends with `eos`."""


def special_tokens(vocabulary: Collection[str], declared: Collection[str]) -> dict[str, str]:
    """Kind -> its spelling, of the kinds that there are. declared: the special ones, where any are: "[MASK]" may be a word."""
    found = {}
    for kind, spellings in SPELLINGS.items():
        known = [x for x in spellings if x in vocabulary and (x in declared or not declared or kind == "unk")]
        if known:
            found[kind] = known[0]
    return found


def fast_tokenizer(
    tokenizer: Any, vocab_size: int, *, kinds: Sequence[str] = WRITERS, types: bool = False, longest: int | None = None
) -> Any:
    """A `transformers.PreTrainedTokenizerFast` for a model.

    tokenizer: one of `tokenizers.Tokenizer`, or the path of a tokenizer.json or of a folder that holds it.
    kinds:     special tokens that the model needs, where the tokenizer has them: `READERS`, `WRITERS` or `TRANSLATORS`.
    types:     whether the model takes token types. longest: tokens that it can read, None where there is no bound.
    Errors:    `ValueError` for a file that is missing or damaged, and for a vocabulary of another size than the model's.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    given: dict[str, Any] = {"tokenizer_object": tokenizer}
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer) / "tokenizer.json" if Path(tokenizer).is_dir() else Path(tokenizer)
        if not path.is_file():
            raise ValueError(f"{path} is not there: expected a tokenizer.json")
        given = {"tokenizer_file": str(path)}
    elif not callable(getattr(tokenizer, "get_added_tokens_decoder", None)):
        raise ValueError(f"tokenizer must be a tokenizers.Tokenizer or the path of a tokenizer.json, got {tokenizer!r}")
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    bound = {} if longest is None else {"model_max_length": longest}
    side = "left" if kinds == WRITERS else "right"
    try:
        fast = PreTrainedTokenizerFast(**given, model_input_names=names, padding_side=side, **bound)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{tokenizer} is truncated or damaged, not a tokenizer.json ({first_line(error)})") from error
    inner = fast.backend_tokenizer
    inner.no_padding()
    inner.no_truncation()
    vocabulary = inner.get_vocab()
    if (size := max(vocabulary.values(), default=-1) + 1) != vocab_size:
        raise ValueError(
            f"tokenizer has {size} tokens, and the model's vocab_size is {vocab_size}: give the one it was trained with"
        )
    declared = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    for kind, spelling in special_tokens(vocabulary, declared).items():
        if kind in kinds:
            setattr(fast, f"{kind}_token", spelling)
    if kinds == TRANSLATORS and fast.eos_token is not None and inner.num_special_tokens_to_add(False) == 0:
        ending = [(fast.eos_token, fast.eos_token_id)]
        inner.post_processor = TemplateProcessing(single=f"$A {fast.eos_token}", special_tokens=ending)
    return fast


def require_new(folder: str | Path) -> Path:
    """Errors: `ValueError` where there is something already."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"folder {path} exists already: give another one")
    return path


def save(folder: Path, *parts: Any) -> None:
    """Write what has `save_pretrained` to a new folder, which is there once all of it is."""
    temporary = folder.absolute().parent / f".{folder.name[:40]}.{secrets.token_hex(8)}{PART}"
    temporary.mkdir(parents=True)
    try:
        for part in parts:
            part.save_pretrained(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
