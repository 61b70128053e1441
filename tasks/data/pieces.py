"""Marian's tokenizers: SentencePiece cuts each language into pieces of its own, and one vocabulary gives both their ids.

As `transformers.MarianTokenizer` reads them from a folder with source.spm, target.spm and vocab.json: pieces that the vocabulary
lacks are unknown, and a text may start with a language to translate into, such as >>fr<<. In a run all of it is one JSON file.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.data import DataError
from tasks.data.text_files import optional

FORMAT = "zooproof sentencepiece 1"
VOCABULARY = "vocab.json"
SIDES = ("source", "target")
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)


class Encoded(NamedTuple):
    ids: list[int]


class Pieces:
    """One side of Marian's tokenizer, with as much of `tokenizers.Tokenizer` as `TextTokenizer` asks for.

    vocabulary: pieces and their ids. models: what SentencePiece wrote, by side.
    Errors:     `DataError` for damaged models, and for a vocabulary without <unk>, </s> and <pad>.
    """

    def __init__(self, vocabulary: Mapping[str, int], models: Mapping[str, bytes], side: str = "source") -> None:
        self.vocabulary, self.models, self.side = vocabulary, models, side
        if lacking := [name for name in ("</s>", "<unk>", "<pad>") if name not in vocabulary]:
            raise DataError(f"{VOCABULARY} lacks {', '.join(lacking)}")
        self.pieces = {number: piece for piece, number in vocabulary.items()}
        self.unknown = vocabulary["<unk>"]
        self.special = {vocabulary[name] for name in ("</s>", "<unk>", "<pad>")}
        try:
            self.processor = optional("sentencepiece").SentencePieceProcessor(model_proto=models[side])
            if self.processor.get_piece_size() < 1:  # an empty file passes for a model
                raise RuntimeError
        except RuntimeError as error:
            raise DataError(f"{side}.spm is damaged, no model of SentencePiece") from error

    @classmethod
    def read(cls, folder: Path) -> Pieces:
        """The source's, out of a folder. Errors: `DataError` for a file that is missing or damaged."""
        from zoo import files

        paths = [folder / f"{side}.spm" for side in SIDES]
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path} is not there: Marian's tokenizers are {VOCABULARY}, source.spm and target.spm")
        models = dict(zip(SIDES, (path.read_bytes() for path in paths), strict=True))
        return cls.checked(files.read_json(folder / VOCABULARY), models, f"{folder / VOCABULARY}")

    @classmethod
    def of(cls, content: str) -> Pieces:
        """What `to_str` has written."""
        found = json.loads(content)
        try:
            models = {side: base64.b64decode(found[side], validate=True) for side in SIDES}
            return cls.checked(found["vocabulary"], models, FORMAT, found["side"])
        except (KeyError, TypeError, binascii.Error) as error:
            raise DataError(f"a tokenizer of format {FORMAT!r} lacks a part or has a damaged one ({error})") from error

    @classmethod
    def checked(cls, vocabulary: Any, models: Mapping[str, bytes], name: str, side: str = "source") -> Pieces:
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
        if not ids or not all(type(n) is int for n in ids) or sorted(ids) != list(range(len(ids))):
            raise DataError(f"{name} must give pieces the ids 0, 1, 2 and so on, each once")
        return cls(vocabulary, models, side)

    @property
    def other(self) -> Pieces:
        """The target's."""
        return Pieces(self.vocabulary, self.models, "target")

    # -------------------------------------------------------------------------------- what `tokenizers.Tokenizer` has

    def to_str(self, pretty: bool = False) -> str:
        models = {side: base64.b64encode(self.models[side]).decode() for side in SIDES}
        return json.dumps({"format": FORMAT, "side": self.side, "vocabulary": self.vocabulary, **models}, ensure_ascii=False)

    def get_vocab(self) -> Mapping[str, int]:
        return self.vocabulary

    def id_to_token(self, number: int) -> str:
        return self.pieces[number]

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def no_padding(self) -> None:
        """There is none."""

    def no_truncation(self) -> None:
        """There is none."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[Encoded]:
        return [Encoded([self.vocabulary.get(piece, self.unknown) for piece in self.cut(text)]) for text in texts]

    def cut(self, text: str) -> list[str]:
        code = LANGUAGE.match(text)
        rest = text[code.end() :] if code else text
        return [*([code[0]] if code else []), *self.processor.encode(rest, out_type=str)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text without special tokens, unknown ones among them."""
        pieces = [self.pieces[n] for n in ids if n not in self.special]
        return self.processor.decode(pieces).replace(SPACE, " ").strip()
