"""A folder of transformers' Marian as it is published, small, with random weights; ours and theirs out of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

import zoo
from tasks import marian

WORDS = {
    "eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five", "rot": "red", "grün": "green", "blau": "blue",
    "Hund": "dog", "Katze": "cat", "Maus": "mouse", "und": "and", "groß": "big", "klein": "small",
}  # fmt: skip
PAIRS = [(f"{a} {b} {c}", f"{WORDS[a]} {WORDS[b]} {WORDS[c]}")
         for n, a in enumerate(WORDS) for b in list(WORDS)[n % 3 :: 4] for c in list(WORDS)[n % 5 :: 5]]  # fmt: skip


def pieces(texts: list[str]) -> bytes:
    """A small model of SentencePiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=60, character_coverage=1.0, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return model.getvalue()


def make(folder: Path, end: float = 1.0, **changed: Any) -> Path:
    """A folder as `save_pretrained` leaves it: random weights, a bias that ends sentences now and then, or more often."""
    (folder / "made").mkdir(parents=True)
    models = {"source": pieces([a for a, _ in PAIRS]), "target": pieces([b for _, b in PAIRS])}
    known = dict.fromkeys(["</s>", "<unk>", ">>fr<<"])
    for side, content in models.items():
        (folder / "made" / f"{side}.spm").write_bytes(content)
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        known |= dict.fromkeys(processor.id_to_piece(n) for n in range(3, len(processor)) if n % 7)  # some are not in it
    vocabulary = {piece: n for n, piece in enumerate([*known, "<pad>"])}
    (folder / "made" / "vocab.json").write_text(json.dumps(vocabulary))
    made = {side: str(folder / "made" / f"{side}.spm") for side in models}
    tokenizer = MarianTokenizer(made["source"], made["target"], str(folder / "made" / "vocab.json"))
    size, pad = len(vocabulary), vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=size, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, activation_function="swish", scale_embedding=True, max_position_embeddings=128,
        pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos_token_id=0, dropout=0.0, **changed,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    for name, p in model.named_parameters():
        if "embed_positions" not in name:
            torch.nn.init.normal_(p, 1.0 if name.endswith("norm.weight") else 0.0, 0.4 if "shared" in name else 0.3)
    torch.nn.init.normal_(model.final_logits_bias, std=0.1)
    model.final_logits_bias[0, [0, pad]] = torch.tensor([end, 6.0])  # without bad_words_ids padding would come
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    return folder / "hf"


def ours(folder: Path) -> tuple[Any, Any]:
    published = marian.read(folder)
    model = zoo.create(marian.FORM, **published.arguments)
    published.load(model)
    return model.eval(), published.tokenizer


def theirs(folder: Path) -> tuple[Any, Any]:
    return MarianMTModel.from_pretrained(folder).eval(), MarianTokenizer.from_pretrained(folder)
